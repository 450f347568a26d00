from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from common.engines.openvino import import_openvino
from common.engines.openvino_graph import split_concatenations

pytest.importorskip("openvino")


def _network(parts: Sequence[int], out: int, *, axis: int = 1, shared: bool = False, stride: int = 1) -> Any:
    """Convolutions of one image, joined, and a convolution of that."""
    ov, rng = import_openvino(), np.random.default_rng(len(parts) + out)
    from openvino import opset13 as ops

    def convolution(value: Any, channels: int, made: int, stride: int = 1) -> Any:
        kernel = ops.constant(rng.standard_normal((made, channels, 3, 3, 3), np.float32))
        return ops.convolution(value, kernel, [stride] * 3, [1] * 3, [1] * 3, [1] * 3)

    image = ops.parameter([1, 2, 12, 10, 8], np.float32)
    joined = ops.concat([convolution(image, 2, made) for made in parts], axis)
    channels = sum(parts) if axis in (1, -4) else parts[0]
    result = convolution(joined, channels, out, stride)
    return ov.Model([result, ops.relu(joined)] if shared else [result], [image])


def _values(model: Any) -> Any:
    image = np.random.default_rng(0).standard_normal((1, 2, 12, 10, 8)).astype(np.float32)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return import_openvino().Core().compile_model(model, "CPU", exact)([image])[0]


def _kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


@pytest.mark.parametrize(
    ("parts", "out", "axis", "stride"), [((3, 5), 8, 1, 1), ((16, 16, 1), 4, -4, 1), ((7, 9), 16, 1, 2)]
)
def test_parts_are_convolved_apart(parts: Sequence[int], out: int, axis: int, stride: int) -> None:
    model = _network(parts, out, axis=axis, stride=stride)
    before = _values(model)
    assert split_concatenations(model) == 1
    model.validate_nodes_and_infer_types()
    assert "Concat" not in _kinds(model)
    assert np.abs(_values(model) - before).max() < 1e-5 * np.abs(before).max()


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        ((3, 3), {"out": 7}),  # its output is larger than the copy
        ((3, 3), {"out": 2, "axis": 2}),
        ((3, 3), {"out": 2, "shared": True}),  # the copy is needed all the same
    ],
)
def test_what_saves_nothing_stays(parts: Sequence[int], options: dict[str, Any]) -> None:
    model = _network(parts, **options)
    before = _kinds(model)
    assert split_concatenations(model) == 0 and _kinds(model) == before
