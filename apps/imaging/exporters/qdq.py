"""Write the int8 network of a model folder as ONNX with QuantizeLinear and DequantizeLinear, as other programs read it.

The model folder has it in OpenVINO's format, made of the same ``network.onnx``. Both have the same names of tensors, so
the ranges, the whole numbers of the weights and the corrected biases are put in the places of the ONNX graph that they
have there. OpenVINO's FakeQuantize with 256 levels between ``low`` and ``high`` is the same as QuantizeLinear to uint8
with the scale (high - low) / 255 and the zero point -low / scale.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.engines.openvino import import_openvino, read_int8
from common.errors import BadInput
from common.memory.process import libraries

CONVOLUTIONS = frozenset({"Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData"})
LEVELS = 256
HIGHEST = LEVELS - 1


def quantise_graph(network: Any, directory: Path) -> int:
    """Put the quantisation of a model folder into its float32 ONNX network, in place.

    Parameters
    ----------
    network
        ``onnx.ModelProto`` of ``network.onnx``.
    directory
        The model folder, which has an int8 network.

    Returns
    -------
    int
        Number of tensors that are quantised.

    Raises
    ------
    BadInput
        If there is none, or one that ONNX cannot express, which is named.
    """
    libraries.priced("openvino")  # a term of the plan
    quantised = read_int8(import_openvino().Core(), directory)
    graph = _Graph(network.graph)
    for operation in quantised.get_ordered_ops():
        kind = operation.get_type_name()
        if kind == "FakeQuantize" and operation.input_value(0).get_node().get_type_name() != "Constant":
            graph.quantise_values(operation)
        elif kind in CONVOLUTIONS:
            graph.quantise_weight(operation)
    if not graph.count:
        raise BadInput(f"{directory}: its int8 network has nothing quantised", public="not quantised")
    graph.write()
    return graph.count


class _Graph:
    """An ONNX graph that gets quantised tensors."""

    def __init__(self, graph: Any) -> None:
        self.graph, self.count = graph, 0
        self._nodes = list(graph.node)
        self._makers = {name: node for node in self._nodes for name in node.output}
        self._images = {one.name for one in graph.input}
        self._after: dict[str, list[Any]] = {}
        """Nodes that follow the maker of a tensor; of an image or a constant they come first."""

    def quantise_values(self, operation: Any) -> None:
        """Quantise a tensor where the operations read it that read this FakeQuantize."""
        name = self._tensor(operation.input_value(0))
        readers = [self._node(target.get_node()) for target in _readers(operation)]
        low, high = (_number(operation, place) for place in (1, 2))
        if name is None or None in readers or (low, high) != tuple(_number(operation, place) for place in (3, 4)):
            raise _inexpressible(operation)
        scale = np.float32((high - low) / HIGHEST)
        zero = np.uint8(np.clip(np.round(-low / scale), 0, HIGHEST))
        self.count += 1
        result = self._pair(name, f"{name}.q{self.count}", scale, zero)
        for node in readers:
            node.input[:] = [result if one == name else one for one in node.input]

    def quantise_weight(self, operation: Any) -> None:
        """Store the weight of a convolution in whole numbers, if OpenVINO's has them, and its bias as that has it."""
        from onnx import helper

        node = self._node(operation)
        if node is None:
            raise _inexpressible(operation)
        found = _whole_weight(operation.input_value(1).get_node())
        if found is not None:
            whole, scale, zero = found
            self.count += 1
            name = f"{node.name}.weight.q{self.count}"
            shape = self._shape(node.input[1])
            axes = [axis for axis, size in enumerate(scale.shape) if size > 1]
            if whole.size != np.prod(shape) or len(axes) > 1 or (axes and whole.shape != shape):
                raise _inexpressible(operation)
            # One scale for all is a scale for each of the first axis.
            axis = axes[0] if axes else 0
            scales = np.broadcast_to(scale.reshape(-1), shape[axis]).astype(np.float32)
            zeros = np.broadcast_to(zero.reshape(-1), shape[axis]).astype(whole.dtype)
            names = [self._constant(f"{name}.{part}", values) for part, values in (("whole", whole.reshape(shape)),)]
            names += [self._constant(f"{name}.scale", scales), self._constant(f"{name}.zero", zeros)]
            self._after.setdefault("", []).append(helper.make_node("DequantizeLinear", names, [name], axis=axis))
            node.input[1] = name
        if (bias := self._bias(operation, node)) is not None:
            node.input[2:] = [self._constant(f"{node.name}.bias.corrected", bias)]

    def _bias(self, operation: Any, node: Any) -> npt.NDArray[Any] | None:
        """What OpenVINO's network adds to a convolution; ``None`` if that is no part of the ONNX node."""
        targets = _readers(operation)
        if len(targets) != 1 or (addition := targets[0].get_node()).get_type_name() != "Add":
            return None
        maker = next((self._makers[name] for name in addition.output(0).get_names() if name in self._makers), node)
        constant = addition.input_value(1 - targets[0].get_index()).get_node()
        while constant.get_type_name() in ("Reshape", "Convert"):
            constant = constant.input_value(0).get_node()
        if maker is not node or constant.get_type_name() != "Constant":
            return None
        values = np.asarray(constant.data, np.float32).reshape(-1)
        channels = operation.output(0).get_partial_shape()[1].get_length()
        return np.broadcast_to(values, channels).copy() if values.size in (1, channels) else None

    def _tensor(self, output: Any) -> str | None:
        """The ONNX name of one of OpenVINO's tensors."""
        names = sorted(name for name in output.get_names() if name in self._makers or name in self._images)
        return names[0] if names else None

    def _node(self, operation: Any) -> Any:
        """The ONNX node of one of OpenVINO's operations: of the tensor that it or the one after it makes."""
        while True:
            name = self._tensor(operation.output(0))
            if name is not None:
                return self._makers.get(name)
            targets = _readers(operation)
            if len(targets) != 1 or targets[0].get_node().get_type_name() == "Result":
                return None
            operation = targets[0].get_node()

    def _shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight, which may be stored in half precision."""
        while name in self._makers:
            name = self._makers[name].input[0]
        return next(tuple(one.dims) for one in self.graph.initializer if one.name == name)

    def _pair(self, name: str, result: str, scale: Any, zero: Any) -> str:
        """Quantise a tensor and bring it back; the name of the result."""
        from onnx import helper

        names = [self._constant(f"{result}.{part}", value) for part, value in (("scale", scale), ("zero", zero))]
        nodes = [
            helper.make_node("QuantizeLinear", [name, *names], [f"{result}.whole"]),
            helper.make_node("DequantizeLinear", [f"{result}.whole", *names], [result]),
        ]
        self._after.setdefault(name if name in self._makers else "", []).extend(nodes)
        return result

    def _constant(self, name: str, values: Any) -> str:
        from onnx import numpy_helper

        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def write(self) -> None:
        """Write the nodes in an order in which each has what it reads, without what nobody reads."""
        nodes = [*self._after.get("", [])]
        for node in self._nodes:
            nodes.append(node)
            for name in node.output:
                nodes += self._after.get(name, [])
        kept = [*_needed(nodes, {one.name for one in self.graph.output})]
        del self.graph.node[:]
        self.graph.node.extend(kept)
        read = {name for node in kept for name in node.input}
        for tensor in [one for one in self.graph.initializer if one.name not in read]:
            self.graph.initializer.remove(tensor)


def _needed(nodes: list[Any], wanted: set[str]) -> Iterator[Any]:
    """The nodes on which ``wanted`` depends, in order."""
    kept = []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    yield from reversed(kept)


def _readers(operation: Any) -> list[Any]:
    """The inputs that read an operation's values; its shape is the same whether they are quantised or not."""
    targets = operation.output(0).get_target_inputs()
    return [target for target in targets if target.get_node().get_type_name() != "ShapeOf"]


def _number(operation: Any, place: int) -> float:
    """A limit of a FakeQuantize of 256 levels, the same for all channels."""
    constant = operation.input_value(place).get_node()
    values = np.unique(constant.data) if constant.get_type_name() == "Constant" else np.empty(0)
    if len(values) != 1 or operation.get_attributes()["levels"] != LEVELS:
        raise _inexpressible(operation)
    return float(values[0])


def _whole_weight(node: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]] | None:
    """Whole numbers, scale and zero point of (whole - zero) * scale; ``None`` of a weight in floating point."""
    scale, zero = np.ones(1, np.float32), np.zeros(1)
    while node.get_type_name() == "Convert" and node.input_value(0).get_node().get_type_name() != "Constant":
        node = node.input_value(0).get_node()  # weights alone are widened at the end
    if node.get_type_name() == "Multiply":
        node, scale = node.input_value(0).get_node(), _constant_of(node.input_value(1).get_node())
    if node.get_type_name() == "Subtract":
        node, zero = node.input_value(0).get_node(), _constant_of(node.input_value(1).get_node())
    if node.get_type_name() != "Convert":
        return None
    whole = _constant_of(node.input_value(0).get_node())
    return (whole, scale, zero) if whole.dtype in (np.int8, np.uint8) else None


def _constant_of(node: Any) -> npt.NDArray[Any]:
    """The values of a constant, which may be converted."""
    while node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant":
        raise _inexpressible(node)
    return np.asarray(node.data)


def _inexpressible(operation: Any) -> BadInput:
    named = f"{operation.get_type_name()} {operation.get_friendly_name()!r}"
    message = f"--as onnx --precision int8: {named} of the int8 network has no counterpart in network.onnx"
    return BadInput(f"{message}; --precision float32 writes that", public="int8 network not expressible")
