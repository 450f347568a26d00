"""Tensors whose rows are shared out go into one file and come out of it, whatever the number of ranks."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import BadInput
from common.training.distributed import row_files
from common.training.distributed.group import ALONE
from common.training.distributed.row_files import SharedRows
from tests.messages import refused
from tests.ranks import over_ranks

MOVED = """
from pathlib import Path
from common.training.distributed import row_files
from common.training.distributed.row_files import SharedRows

row_files.BLOCK_BYTES = 40
made = torch.Generator().manual_seed(1)
whole = {
    "rows": torch.randn(10, 3, generator=made),
    "one": torch.randn(2, generator=made, dtype=torch.float64),
    "codes": torch.randint(-9, 9, (7, 2, 2), generator=made, dtype=torch.int8),
    "half": torch.randn(5, generator=made).to(torch.float16),
}
def shared(of):
    parts = {}
    for name, values in of.items():
        share = group.share(len(values))
        parts[name] = SharedRows.of(values[share.start : share.stop].clone(), len(values), group)
    parts["step"] = torch.tensor(7 if group.leads else 0)
    return parts

if (Path(folder) / "one.safetensors").exists():
    empty = shared({name: torch.zeros_like(values) for name, values in whole.items()})
    row_files.load(Path(folder) / "one.safetensors", empty, group)
    assert empty.pop("step") == 5
    for name, part in empty.items():
        share = group.share(len(whole[name]))
        assert torch.equal(part.own, whole[name][share.start : share.stop]), name
row_files.save(Path(folder) / f"{size}.safetensors", shared(whole), {"step": 3}, group)
most = max((len(block) for block in shared(whole)["rows"].blocks()), default=0)
assert most == (3 if group.leads else 0)
"""


def test_rows_of_one_process_and_of_some_ranks_are_the_same_file(tmp_path: Path) -> None:
    """Two and four ranks (two tensors have fewer rows than four ranks, or the last block is short)."""
    over_ranks(MOVED, 2, tmp_path)
    tensors = load_file(tmp_path / "2.safetensors")
    tensors["step"] = torch.tensor(5)
    save_file(tensors, tmp_path / "one.safetensors", {"state": json.dumps({})})
    (tmp_path / "store").unlink()
    over_ranks(MOVED, 4, tmp_path)
    assert (tmp_path / "2.safetensors").read_bytes() == (tmp_path / "4.safetensors").read_bytes()
    alone = {name: torch.zeros_like(values) for name, values in tensors.items()}
    row_files.load(tmp_path / "one.safetensors", alone, ALONE)
    assert all(torch.equal(alone[name], tensors[name]) for name in tensors)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _other_length(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 62) + path.read_bytes()[8:])


def _not_json(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"data_offsets", b"data_offset\xff"))


@pytest.mark.parametrize("damage", [_cut, _other_length, _not_json])
def test_damaged_files_are_refused(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path, rows = tmp_path / "a.safetensors", SharedRows.of(torch.ones(3, 2), 3, ALONE)
    row_files.save(path, {"rows": rows}, {}, ALONE)
    row_files.load(path, {"rows": rows}, ALONE)
    damage(path)
    with refused(BadInput, path, "damaged"):
        row_files.load(path, {"rows": rows}, ALONE)


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    row_files.save(path, {"rows": torch.ones(3, 2)}, {}, ALONE)
    for other in ({"rows": torch.ones(3, 3)}, {"rows": torch.ones(3, 2).double()}, {"more": torch.ones(3, 2)}):
        with refused(BadInput, path, "another network"):
            row_files.load(path, other, ALONE)
