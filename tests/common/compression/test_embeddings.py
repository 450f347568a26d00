"""Tables of stored rows: row-wise Adagrad as written down, only touched rows move, small tables learn."""

import pytest
import torch

from common.compression.embeddings import EmbeddingTable, TableOptimizer
from common.compression.layouts import Part, layout
from common.compression.row_formats import FORMATS
from common.compression.stored import Start, StoredRows


def table(kind: str, rows: int, width: int, *, deviation: float) -> EmbeddingTable:
    """A table of a kind that stores each row."""
    return EmbeddingTable(layout(kind, rows=rows, width=width, row_bytes=0), Start(deviation))


def test_descend_is_row_wise_adagrad() -> None:
    torch.manual_seed(0)
    made = table("full", 20, 4, deviation=0.5)
    assert isinstance(made.form, StoredRows)
    weights, state = made.form.codes.clone(), torch.zeros(20)
    for ids in (torch.tensor([3, 7, 11]), torch.tensor([7, 19])):
        made.load(ids)
        positions = torch.tensor([0, 1, 1])
        (made(positions) * torch.arange(1.0, 13.0).view(3, 4)).sum().backward()
        gradient = torch.zeros(20, 4)
        gradient.index_add_(0, ids[positions], torch.arange(1.0, 13.0).view(3, 4))
        made.descend(0.3)
        state += gradient.square().mean(1)
        weights -= 0.3 * gradient / (state.sqrt()[:, None] + 1e-10)
    torch.testing.assert_close(made.form.codes, weights)
    torch.testing.assert_close(made.form.state, state)


@pytest.mark.parametrize("kind", FORMATS)
def test_rows_that_were_not_loaded_stay(kind: str) -> None:
    torch.manual_seed(0)
    made = table(kind, 30, 8, deviation=0.5)
    before = made.read(torch.arange(30))
    made.load(torch.tensor([4, 9]))
    made(torch.tensor([0, 1])).square().sum().backward()
    made.descend(0.5)
    moved = (made.read(torch.arange(30)) != before).any(1)
    assert moved.nonzero().flatten().tolist() == [4, 9]


@pytest.mark.parametrize(("kind", "error"), [("full", 0.02), ("int8", 0.05), ("int4", 0.4)])
def test_small_steps_add_up(kind: str, error: float) -> None:
    """Rounding to nearest would never move: each step is a tenth of a code or less."""
    torch.manual_seed(0)
    made = table(kind, 4, 16, deviation=1.0)
    optimizer = TableOptimizer([made], 0.05)
    target = torch.randn(4, 16)
    for _ in range(1500):
        made.load(torch.arange(4))
        (made(torch.arange(4)) - target).square().sum().backward()
        optimizer.step()
    assert (made.read(torch.arange(4)) - target).square().mean().sqrt() < error


def test_a_failed_step_leaves_no_gradient() -> None:
    made = table("full", 4, 8, deviation=1.0)
    optimizer = TableOptimizer([made], 0.1)
    made.load(torch.arange(4))
    made(torch.arange(4)).sum().backward()
    optimizer.zero_grad()
    before = made.read(torch.arange(4))
    optimizer.step()
    assert torch.equal(made.read(torch.arange(4)), before)


def test_state_of_version_0_1_is_read() -> None:
    """Its count of steps had another name."""
    rows = StoredRows(Part("int8", 8, 4), Start(0.1))
    old = {name.replace("step_count", "turn"): value for name, value in rows.state_dict().items()}
    old["turn"] = torch.tensor(7)
    rows.load_state_dict(old)
    assert int(rows.step_count) == 7
