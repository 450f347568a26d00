"""Tables: bytes as priced, row-wise Adagrad as written down, only touched rows move, small tables learn."""

import pytest
import torch

from common.compression.embeddings import EmbeddingTable, TableOptimizer
from common.compression.prices import KINDS, table_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_holds_what_it_is_priced_at(kind: str) -> None:
    table = EmbeddingTable(kind, 1000, 64, deviation=0.1)
    price = table_bytes(kind, rows=1000, width=64)
    assert sum(buffer.nbytes for buffer in table.buffers()) == price.total
    assert (price.gradients, price.optimizer) == (0, 4 * 1000)
    assert not list(table.parameters())


def test_bytes_a_row_of_weights_gradients_and_state() -> None:
    assert [table_bytes(kind, rows=1, width=64).total for kind in ("full", "int8", "int4")] == [260, 70, 38]


def test_descend_is_row_wise_adagrad() -> None:
    torch.manual_seed(0)
    table = EmbeddingTable("full", 20, 4, deviation=0.5)
    weights, state = table.codes.clone(), torch.zeros(20)
    for ids in (torch.tensor([3, 7, 11]), torch.tensor([7, 19])):
        table.load(ids)
        positions = torch.tensor([0, 1, 1])
        (table(positions) * torch.arange(1.0, 13.0).view(3, 4)).sum().backward()
        gradient = torch.zeros(20, 4)
        gradient.index_add_(0, ids[positions], torch.arange(1.0, 13.0).view(3, 4))
        table.descend(0.3)
        state += gradient.square().mean(1)
        weights -= 0.3 * gradient / (state.sqrt()[:, None] + 1e-10)
    torch.testing.assert_close(table.codes, weights)
    torch.testing.assert_close(table.state, state)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_were_not_loaded_stay(kind: str) -> None:
    torch.manual_seed(0)
    table = EmbeddingTable(kind, 30, 8, deviation=0.5)
    before = table.read(torch.arange(30))
    table.load(torch.tensor([4, 9]))
    table(torch.tensor([0, 1])).square().sum().backward()
    table.descend(0.5)
    moved = (table.read(torch.arange(30)) != before).any(1)
    assert moved.nonzero().flatten().tolist() == [4, 9]


@pytest.mark.parametrize(("kind", "error"), [("full", 0.02), ("int8", 0.05), ("int4", 0.4)])
def test_small_steps_add_up(kind: str, error: float) -> None:
    """Rounding to nearest would never move: each step is a tenth of a code or less."""
    torch.manual_seed(0)
    table = EmbeddingTable(kind, 4, 16, deviation=1.0)
    optimizer = TableOptimizer([table], 0.05)
    target = torch.randn(4, 16)
    for _ in range(1500):
        table.load(torch.arange(4))
        (table(torch.arange(4)) - target).square().sum().backward()
        optimizer.step()
    assert (table.read(torch.arange(4)) - target).square().mean().sqrt() < error


def test_a_failed_step_leaves_no_gradient() -> None:
    table = EmbeddingTable("full", 4, 8, deviation=1.0)
    optimizer = TableOptimizer([table], 0.1)
    table.load(torch.arange(4))
    table(torch.arange(4)).sum().backward()
    optimizer.zero_grad()
    before = table.codes.clone()
    optimizer.step()
    assert torch.equal(table.codes, before)
