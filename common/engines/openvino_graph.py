"""Changes of an OpenVINO graph that lower its memory and leave its values as they are, but for rounding."""

from typing import Any

import numpy as np


def split_concatenations(model: Any) -> int:
    """Replace each convolution of joined channels by the sum of the convolutions of its parts.

    A U-Net joins a skip connection and what comes from below, and its largest layer waits for the copy of both. With a
    tile of 128x128x128 of an nnU-Net of 32 features the peak is 254 MiB lower (of 1,904), the processor's time 0.99 and
    0.94 of what it was in two runs; layers alone, of 8 to 128 channels, take 0.92 to 0.99.

    Parameters
    ----------
    model
        An ``openvino.Model``, which is changed.

    Returns
    -------
    int
        Number of convolutions that were replaced.
    """
    from openvino import opset13 as ops

    replaced = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution" or not _joins(node):
            continue
        joined, weights = node.input_value(0).get_node(), node.input_value(1).get_node().get_data()
        options = node.get_attributes()
        first = 0
        total: Any = None
        for part in joined.input_values():
            last = first + part.get_partial_shape()[1].get_length()
            kernel = ops.constant(np.ascontiguousarray(weights[:, first:last]))
            names = ("strides", "pads_begin", "pads_end", "dilations", "auto_pad")
            values = ops.convolution(part, kernel, *(options[name] for name in names))
            total = values if total is None else ops.add(total, values)
            first = last
        for user in node.output(0).get_target_inputs():
            user.replace_source_output(total.output(0))
        replaced += 1
    return replaced


def _joins(node: Any) -> bool:
    """True if a convolution alone reads joined channels, and does not return more of them."""
    joined, kernel = (node.input_value(number).get_node() for number in range(2))
    return bool(
        joined.get_type_name() == "Concat"
        and joined.get_attributes()["axis"] in (1, 1 - node.input_value(0).get_partial_shape().rank.get_length())
        and len(joined.output(0).get_target_inputs()) == 1
        and kernel.get_type_name() == "Constant"
        and kernel.get_output_shape(0)[0] <= kernel.get_output_shape(0)[1]
        and all(value.get_partial_shape()[1].is_static for value in joined.input_values())
    )
