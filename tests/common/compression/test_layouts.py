"""Sizes of tables: as wanted, and byte for byte what a table of that layout holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.compression.embeddings import EmbeddingTable
from common.compression.layouts import KINDS, layout
from common.compression.row_formats import FORMATS
from common.compression.stored import Start

MADE = [kind for kind in KINDS if kind not in FORMATS]


def test_bytes_a_row_of_stored_tables() -> None:
    made = [layout(kind, rows=1, width=64, row_bytes=0) for kind in ("full", "int8", "int4")]
    assert [table.total for table in made] == [table.bytes_per_row for table in made] == [260, 70, 38]


def test_odd_widths_of_half_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\b5\b.*\b4 bits"):
        layout("int4", rows=3, width=5, row_bytes=38)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(2, 700),
    width=st.sampled_from([2, 6, 16, 30, 64]),
    row_bytes=st.integers(1, 300),
)
def test_a_table_holds_what_it_is_priced_at(kind: str, rows: int, width: int, row_bytes: int) -> None:
    made = layout(kind, rows=rows, width=width, row_bytes=row_bytes)
    table = EmbeddingTable(made, Start(0.1))
    held = {name: buffer.nbytes for name, buffer in table.named_buffers()}
    state = sum(size for name, size in held.items() if name.endswith("state"))
    counters = [size for name, size in held.items() if name.endswith("step_count")]  # one number for all rows
    assert set(counters) <= {8}
    assert (sum(held.values()) - sum(counters), state) == (made.total, made.optimizer)
    assert not list(table.parameters())
    assert table.read(torch.arange(rows)).shape == (rows, width)


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize(("rows", "row_bytes"), [(3_706, 38), (40_981, 38), (40_981, 70), (1_000_000, 16)])
def test_tables_of_real_sizes_take_what_was_wanted(kind: str, rows: int, row_bytes: int) -> None:
    if kind == "frequency" and row_bytes == 16:
        row_bytes = 27  # its narrow rows alone
    made = layout(kind, rows=rows, width=64, row_bytes=row_bytes)
    assert made.bytes_per_row <= row_bytes
    # ``tt`` is limited by its rank; codes come in whole bytes that divide the width.
    least = {"tt": 0.0, "pq": 0.4}.get(kind, 0.9 if rows > 10_000 else 0.75)
    assert made.total >= least * row_bytes * rows


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(MADE), rows=st.integers(2, 10**6), width=st.sampled_from([8, 64]), less=st.integers(4, 200))
def test_more_bytes_are_never_used_for_less(kind: str, rows: int, width: int, less: int) -> None:
    small = layout(kind, rows=rows, width=width, row_bytes=less)
    large = layout(kind, rows=rows, width=width, row_bytes=less + 20)
    assert small.total <= large.total
