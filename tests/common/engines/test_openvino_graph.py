from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from common.engines.openvino import import_openvino
from common.engines.openvino_graph import normalise_in_steps, split_concatenations

pytest.importorskip("openvino")


def _network(
    parts: Sequence[int], out: int, *, axis: int = 1, shared: bool = False, stride: int = 1, half: bool = False
) -> Any:
    """Convolutions of one image, joined, and a convolution of that."""
    ov, rng = import_openvino(), np.random.default_rng(len(parts) + out)
    from openvino import opset13 as ops

    def convolution(value: Any, channels: int, made: int, stride: int = 1) -> Any:
        weights = rng.standard_normal((made, channels, 3, 3, 3), np.float32)
        kernel = ops.convert(ops.constant(weights.astype(np.float16)), "f32") if half else ops.constant(weights)
        return ops.convolution(value, kernel, [stride] * 3, [1] * 3, [1] * 3, [1] * 3)

    image = ops.parameter([1, 2, 12, 10, 8], np.float32)
    joined = ops.concat([convolution(image, 2, made) for made in parts], axis)
    channels = sum(parts) if axis in (1, -4) else parts[0]
    result = convolution(joined, channels, out, stride)
    return ov.Model([result, ops.relu(joined)] if shared else [result], [image])


IMAGE = np.random.default_rng(0).standard_normal((1, 2, 12, 10, 8)).astype(np.float32)


def _values(model: Any, image: Any = IMAGE) -> Any:
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    return import_openvino().Core().compile_model(model, "CPU", exact)([image])[0]


def _kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        ((3, 5), {"out": 8}),
        ((16, 16, 1), {"out": 4, "axis": -4}),
        ((7, 9), {"out": 16, "stride": 2}),
        ((3, 5), {"out": 8, "half": True}),  # weights that are widened when they are read
    ],
)
def test_parts_are_convolved_apart(parts: Sequence[int], options: dict[str, Any]) -> None:
    model = _network(parts, **options)
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


def _normalised(axes: Sequence[int], shape: Sequence[int], *, scaled: bool = False, twice: bool = False) -> Any:
    """An instance normalisation, perhaps with a weight and a bias, perhaps read by a second operator."""
    ov = import_openvino()
    from openvino import opset13 as ops

    image = ops.parameter(list(shape), np.float32)
    first = ops.mvn(image, np.array(axes), True, 1e-5, "inside_sqrt")
    result = first
    if scaled:
        weight, bias = (np.array(values, np.float32).reshape(1, -1, 1, 1, 1) for values in (WEIGHT, BIAS))
        result = ops.add(ops.multiply(ops.constant(weight), first), ops.constant(bias))
    return ov.Model([result, ops.relu(first)] if twice else [result], [image])


WEIGHT, BIAS = (0.5, -2.0, 0.0), (3.0, 0.0, -1.0)


@pytest.mark.parametrize(("spatial", "twice"), [((96, 96, 96), False), ((1, 300, 200), False), ((5, 7, 9), True)])
def test_channels_are_summed_in_steps(spatial: Sequence[int], twice: bool) -> None:
    """Far from zero, hardly changing, and usual channels, each within what float32 values themselves leave."""
    shape = (1, 3, *spatial)
    spread, centre = (np.array(values, np.float32).reshape(1, 3, 1, 1, 1) for values in ((1, 0.01, 30), (20, 0, -4)))
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * spread + centre
    model = _normalised((2, 3, 4), shape, scaled=True, twice=twice)
    axes = (2, 3, 4)
    wide = image.astype(np.float64)
    exact = (wide - wide.mean(axes, keepdims=True)) / np.sqrt(wide.var(axes, keepdims=True) + 1e-5)
    weight, bias = (np.reshape(values, (1, 3, 1, 1, 1)) for values in (WEIGHT, BIAS))
    exact = exact * weight + bias
    before = np.abs(_values(model, image) - exact).max()
    assert normalise_in_steps(model) == 1
    model.validate_nodes_and_infer_types()
    assert "MVN" not in _kinds(model)
    after = np.abs(_values(model, image) - exact).max()
    assert after < 1e-5
    if spatial == (96, 96, 96):
        assert after < before / 4


@pytest.mark.parametrize(
    ("axes", "shape"), [((4,), (1, 2, 3, 4, 8)), ((1, 2, 3, 4), (1, 2, 3, 4, 8)), ((2,), (1, 2, 99))]
)
def test_other_normalisations_stay(axes: Sequence[int], shape: Sequence[int]) -> None:
    model = _normalised(axes, shape)
    assert normalise_in_steps(model) == 0 and "MVN" in _kinds(model)


def test_a_shape_that_is_not_known_stays() -> None:
    model = _normalised((2, 3, 4), (1, 2, -1, -1, -1))
    assert normalise_in_steps(model) == 0
    model.reshape([1, 2, 6, 6, 6])
    assert normalise_in_steps(model) == 1
