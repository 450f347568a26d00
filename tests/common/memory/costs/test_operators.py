"""Replays of single operators, and the file that remembers them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.memory.costs import operators
from common.memory.costs.operators import Call, OperatorCosts
from common.memory.costs.store import CostStore
from common.memory.process import glibc
from common.memory.process.meter import anonymous

MIB = 1 << 20


def call(function: Any, *arguments: Any) -> Call:
    from torch.utils._pytree import tree_flatten

    found = Call.of(function, *tree_flatten((arguments, {})))
    assert found is not None
    return found


def replayed(each: Call) -> operators.Cost:
    return operators.replay(each.function, each.arguments)


PRODUCT = call(torch.ops.aten.mm.default, torch.empty(512, 256), torch.empty(256, 512))


def test_key_is_operator_shapes_strides_dtypes_and_other_arguments() -> None:
    mm, a, b = torch.ops.aten.mm.default, torch.empty(8, 8), torch.empty(8, 8)
    others = [
        call(mm, torch.empty(8, 4), torch.empty(4, 8)),
        call(mm, a.t(), b),
        call(mm, a.double(), b.double()),
        call(torch.ops.aten.add.Tensor, a, b),
        call(torch.ops.aten.softmax.int, a, 0),
        call(torch.ops.aten.softmax.int, a, 1),
    ]
    assert len({each.key for each in [call(mm, a, b), *others]}) == 7
    assert call(mm, a, b).key == call(mm, torch.ones(8, 8), torch.ones(8, 8)).key


def test_replayed_once_for_all_plans(tmp_path: Path) -> None:
    file = tmp_path / "new" / "operators.jsonl"
    first, again = OperatorCosts(file), OperatorCosts(file)
    cost = first[PRODUCT]
    assert first[PRODUCT] == cost and OperatorCosts(file)[PRODUCT] == cost
    assert len(file.read_text().splitlines()) == 1  # a line a replay
    assert again[PRODUCT].workspace == pytest.approx(cost.workspace, abs=4 * MIB)
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.parametrize("damage", ["", "{", '{"key": "KEY"}', "null", '{"key": "KEY", "workspace": 1, "more": 2}'])
def test_a_damaged_line_is_replayed_and_the_others_stay(tmp_path: Path, damage: str) -> None:
    file, other = tmp_path / "operators.jsonl", call(torch.ops.aten.sin.default, torch.empty(8))
    OperatorCosts(file)[other]
    with file.open("a") as stream:
        stream.write(damage.replace("KEY", PRODUCT.key) + "\n")
    costs = OperatorCosts(file)
    costs[other], costs[PRODUCT]
    assert len(file.read_text().splitlines()) == 3


def test_another_version_is_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    before = operators.default_file()
    monkeypatch.setattr(operators, "VERSION", operators.VERSION + 1)
    after = operators.default_file()
    monkeypatch.setattr("common.memory.costs.probes._version", lambda distribution: "9.9")
    assert len({before, after, operators.default_file()}) == 3


def test_a_place_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    costs = OperatorCosts(tmp_path / "file" / "operators.jsonl")
    assert costs[PRODUCT] == costs[PRODUCT] and PRODUCT in costs


def test_workspace_is_what_is_taken_beyond_the_result() -> None:
    """A single small sample is convolved by a matrix of 27 shifted copies; a pointwise operator takes nothing."""
    glibc.pin_thresholds()
    image, kernel = torch.empty(1, 4, 32, 32, 32), torch.empty(4, 4, 3, 3, 3)
    options = ([1, 1, 1], [1, 1, 1], [1, 1, 1], False, [0, 0, 0], 1)
    unfolded = 27 * image.nbytes
    convolved = replayed(call(torch.ops.aten.convolution.default, image, kernel, None, *options))
    assert unfolded - MIB <= convolved.workspace <= unfolded + 32 * MIB  # and the buffers of the matrix product
    large = torch.empty(4096, 1024)
    for function in (torch.ops.aten.sin.default, torch.ops.aten.sin_.default):
        # Of 16 MiB; this process, in which other tests ran, may grow by something of its own meanwhile (1.1 once).
        assert replayed(call(function, large)).workspace <= 2 * MIB


def test_a_call_written_down_is_replayed_in_a_child_that_has_only_torch(tmp_path: Path) -> None:
    image, kernel = torch.empty(1, 4, 32, 32, 32), torch.empty(4, 4, 3, 3, 3)
    convolution = call(
        torch.ops.aten.convolution.default, image, kernel, None, [1] * 3, [1] * 3, [1] * 3, False, [0] * 3, 1
    )
    cast = call(torch.ops.aten._to_copy.default, torch.empty(1024, 1024).t())
    cast = Call.of(cast.function, [*cast.leaves, torch.bfloat16], _layout((torch.empty(0),), {"dtype": 0}))  # type: ignore
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        patch.setenv("OMP_NUM_THREADS", "1")  # costs are remembered for each number of threads
        probes = [each.probe for each in (convolution, cast)]
        # The ceiling counts this process too, in which all tests before this one have left something.
        found = CostStore().collect(probes, ceiling=1024 * MIB + anonymous())
        remembered = OperatorCosts()
        assert convolution in remembered and cast in remembered
    for each, probe in zip((convolution, cast), probes, strict=True):
        assert found[probe]["workspace"] == pytest.approx(replayed(each).workspace, abs=4 * MIB)
        assert remembered[each].workspace == found[probe]["workspace"]
    assert found[probes[0]]["workspace"] > 26 * image.nbytes


def test_what_cannot_be_written_down_has_no_probe() -> None:
    assert call(torch.ops.aten.add.Tensor, torch.empty(8), torch.empty(8)).probe is not None
    assert call(torch.ops.aten.add.Tensor, torch.empty(8), 1j).probe is None


def _layout(args: Any, kwargs: Any) -> Any:
    from torch.utils._pytree import tree_flatten

    return tree_flatten((args, kwargs))[1]
