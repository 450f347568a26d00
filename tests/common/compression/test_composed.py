"""Tables made of fewer rows: their step is what autograd gives on dense copies, and each can do its kind's job."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.compression.composed import RULES, ComposedRows
from common.compression.embeddings import EmbeddingTable, TableOptimizer
from common.compression.layouts import Layout, Part, layout
from common.compression.stored import Start

ROWS, WIDTH = 50, 8
KINDS = list(RULES)


def made(kind: str, *, seed: int = 0, rows: int = ROWS, row_bytes: int = 20, stored: str = "full") -> EmbeddingTable:
    """A table of which all parts are stored in one format."""
    plan = layout(kind, rows=rows, width=WIDTH, row_bytes=row_bytes)
    parts = tuple(Part(stored, part.rows, part.width) for part in plan.parts)
    torch.manual_seed(seed)
    return EmbeddingTable(Layout(kind, rows, WIDTH, parts, plan.fixed), Start(0.5))


def naive(table: EmbeddingTable, ids: torch.Tensor, gradient: torch.Tensor, rate: float) -> list[torch.Tensor]:
    """The parts after a step, by autograd through dense float64 copies of all their rows, each id on its own."""
    form = table.form
    assert isinstance(form, ComposedRows)
    leaves = [part.codes.double().requires_grad_() for part in form.parts]
    loss = torch.zeros((), dtype=torch.float64)
    for number, id_ in enumerate(ids):
        fixed = None if form.fixed is None else form.fixed[id_][None]
        addresses = form.rule.addresses(id_[None], fixed)
        row = form.rule.combine([leaf[at] for leaf, at in zip(leaves, addresses, strict=True)], fixed)
        loss = loss + (row[0] * gradient[number].double()).sum()
    loss.backward()
    after = []
    for part, leaf in zip(form.parts, leaves, strict=True):
        assert leaf.grad is not None
        size = leaf.grad.square().mean(1, keepdim=True).sqrt()
        step = rate * part.lr_scale * leaf.grad / size.clamp(min=1e-300)
        after.append(leaf.detach() - torch.where(size > 0, step, 0.0))
    return after


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 1000), count=st.integers(1, ROWS))
def test_a_step_is_that_of_a_dense_reference(kind: str, seed: int, count: int) -> None:
    table = made(kind, seed=seed)
    ids = torch.randperm(ROWS)[:count].sort().values
    weights = torch.randn(count, WIDTH)
    expected = naive(table, ids, weights, 0.3)
    table.load(ids)
    (table(torch.arange(count)) * weights).sum().backward()
    TableOptimizer([table], 0.3).step()
    assert isinstance(table.form, ComposedRows)
    for part, after in zip(table.form.parts, expected, strict=True):
        torch.testing.assert_close(part.codes.double(), after, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_begin_with_the_deviation_that_was_asked_for(kind: str) -> None:
    torch.manual_seed(0)
    table = EmbeddingTable(layout(kind, rows=3000, width=32, row_bytes=24), Start(0.1))
    assert table.dense().std() == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_different_and_read_alike_in_any_order(kind: str) -> None:
    table = made(kind, rows=40)
    every = torch.from_numpy(table.dense())
    assert len(every.unique(dim=0)) == 40
    order = torch.randperm(40)
    torch.testing.assert_close(table.read(order), every[order])


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_learns_rows_that_it_can_hold(kind: str) -> None:
    """Towards the rows of a table of the same kind and size."""
    layouts_ = layout(kind, rows=ROWS, width=WIDTH, row_bytes=30)
    torch.manual_seed(0)
    table, target = EmbeddingTable(layouts_, Start(0.3)), EmbeddingTable(layouts_, Start(0.3))
    wanted, every = torch.from_numpy(target.dense()), torch.arange(ROWS)
    first = float((table.read(every) - wanted).square().mean())
    optimizer = TableOptimizer([table], 0.1)
    for _ in range(200):
        table.load(every)
        (table(every) - wanted).square().sum().backward()
        optimizer.step()
    assert float((table.read(every) - wanted).square().mean()) < 0.15 * first


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_trains_the_same_table_and_its_state_round_trips(kind: str) -> None:
    def trained(table: EmbeddingTable, steps: int) -> EmbeddingTable:
        optimizer = TableOptimizer([table], 0.1)
        for step in range(steps):
            table.load(torch.arange(step, ROWS, 3))
            table(torch.arange(5)).square().sum().backward()
            optimizer.step()
        return table

    one, other = (trained(made(kind, stored="int8"), 6) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))
    again = made(kind, seed=5, stored="int8")
    again.load_state_dict(copy.deepcopy(one.state_dict()))
    assert torch.equal(again.read(torch.arange(ROWS)), one.read(torch.arange(ROWS)))


def test_a_seldom_used_row_has_fewer_numbers() -> None:
    plan = layout("frequency", rows=ROWS, width=WIDTH, row_bytes=12)
    whole, narrow, matrix = plan.parts
    places = torch.arange(ROWS - 1, -1, -1, dtype=torch.int32)[:, None]  # the last row is used most
    table = EmbeddingTable(plan, Start(1.0), places)
    rows = torch.from_numpy(table.dense())
    assert 0 < whole.rows < ROWS and (narrow.width, matrix.rows) == (2, 2)
    assert torch.linalg.matrix_rank(rows[: narrow.rows]) == 2
    assert torch.linalg.matrix_rank(rows[narrow.rows :]) == min(WIDTH, whole.rows)


def test_codes_that_agree_share_their_piece() -> None:
    plan = layout("pq", rows=ROWS, width=WIDTH, row_bytes=45)
    assert (plan.fixed, plan.parts[0].rows, plan.parts[0].width) == (2, 100, 4)
    codes = torch.randint(plan.parts[0].rows // plan.fixed, (ROWS, plan.fixed), dtype=torch.uint8)
    rows = torch.from_numpy(EmbeddingTable(plan, Start(1.0), codes).dense()).view(ROWS, plan.fixed, -1)
    alike = codes[:, None] == codes
    assert torch.equal((rows[:, None] == rows).all(-1), alike)
