"""Random commands of ``recsys``: tables with ordinary defects, a training, and what users then ask of its model.

``python -m apps.recsys.bench.random.commands --seed 1 --seconds 3600``.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from apps.recsys.bench.random import tables as random_tables
from apps.recsys.bench.random.tables import Table
from apps.recsys.cli import parser
from apps.recsys.planning.compressing.request import LAYERS
from apps.recsys.planning.model_options import IN_PASSES, KINDS
from common.bench import random_commands
from common.bench.random_commands import SHARED_VALUES, Step, one_word

MODULE = "apps.recsys"
EMBEDDING_ONLY = ("loss", "table", "amp", "micro_batch", "accumulate")
"""Options of ``train`` that other models refuse."""
SETTINGS = {
    "ials": ("alpha=5", "regularization=3", "weight=linear", "frequency_scaling=0.5"),
    "bpr": ("learning_rate=0.05", "regularization=0.1"),
    "linear": ("form=filter", "form=spectral", "degree_power=0.3", "saturation=2", "bits=8", "bits=1"),
    "embedding": ("tables=2", "batch=64", "negatives=64", "window=10", "user_vectors=free", "row_bytes=20"),
}
"""Values of ``--set`` by model; a window of ``popularity`` needs times, which not all tables have. ``form=ease`` is
left out, since it takes no ``--factors``."""
COLUMNS = ("user_col", "item_col", "value_col", "time_col")
"""Options that the table adds where its names are unknown."""


@dataclass(frozen=True)
class RecsysSession:
    """A table, the options of its training, and further commands with theirs."""

    table: Table
    train: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    """Command and options, in which ``FOLDER`` stands for the session's folder."""

    def steps(self, folder: Path) -> Iterator[Step]:
        """Write the table, train on it, and ask the model."""
        source, model = self.table.write(folder), folder / "model"
        yield Step((MODULE, "train", str(source), "-o", str(model), *self.table.options(), *self.train), model)
        for command, *words in self.answers:
            if not (model / "model.json").is_file():
                return
            arguments = [word.replace("FOLDER", str(folder)) for word in words]
            yield Step((MODULE, command, str(model), *arguments))


def _log(low: int, high: int) -> st.SearchStrategy[int]:
    """Return whole numbers whose logarithms are even; the smallest is the simplest."""
    ratio = high / low
    return st.floats(0, 1).map(lambda share: round(low * ratio**share))


@st.composite
def tables(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Table:
    """Draw a table's description."""
    rows = draw(_log(60, 60_000))
    return Table(
        rows=rows,
        users=draw(_log(5, max(6, rows // 4))),
        items=draw(_log(5, max(6, rows // 3))),
        header=draw(st.sampled_from(sorted(random_tables.HEADERS))),
        user_ids=draw(st.sampled_from(random_tables.IDS)),
        item_ids=draw(st.sampled_from(random_tables.IDS)),
        values=draw(st.sampled_from(random_tables.VALUES)),
        times=draw(st.sampled_from(random_tables.TIMES)),
        format=draw(st.sampled_from(random_tables.FORMATS)),
        strings=draw(st.sampled_from(random_tables.STRINGS)),
        defects=tuple(sorted(draw(st.sets(st.sampled_from(random_tables.DEFECTS), max_size=3)))),
        seed=draw(st.integers(0, 9)),
    )


@st.composite
def sessions(draw: Callable[[st.SearchStrategy[Any]], Any]) -> RecsysSession:
    """Draw a table, a training and up to two further commands."""
    table = draw(tables())
    kind = draw(st.sampled_from(KINDS))
    values = SHARED_VALUES | {
        "factors": one_word(st.integers(1, 96)),
        "epochs": one_word(st.integers(1, 3)),
        "tune": one_word(st.integers(1, 2)),
        "min_value": one_word(st.integers(0, 4)),
        "min_user": one_word(st.integers(1, 4)),
        "min_item": one_word(st.integers(1, 4)),
        "set": st.sampled_from(SETTINGS.get(kind, ("",))).map(lambda pair: [pair]),
        "micro_batch": one_word(st.integers(1, 64)),
        "accumulate": one_word(st.integers(1, 4)),
        "duplicates": st.sampled_from((["sum"], ["last"], ["once"])),
        "delimiter": st.just(["tab" if table.format == "tsv" else ","]),
        "decimal": st.just(["."]),
    }
    left_out = (
        "model",
        "items",
        "resume",
        "no_header",
        "world_size",
        *COLUMNS,
        *(() if kind == "embedding" else EMBEDDING_ONLY),
    )
    left_out += () if kind in SETTINGS else ("set",)
    left_out += () if kind in IN_PASSES else ("epochs", "tune")
    options = random_commands.options(random_commands.command_parser(parser(), "train"), draw, values, left_out)
    if kind in IN_PASSES and "--epochs" not in options and "--tune" not in options:
        options += ["--epochs", "2"]
    answers = draw(st.lists(_answers(table), max_size=2))
    return RecsysSession(table, ("--model", kind, *options), tuple(answers))


@st.composite
def _answers(draw: Callable[[st.SearchStrategy[Any]], Any], table: Table) -> tuple[str, ...]:
    """Draw a command on the model."""
    command = draw(st.sampled_from(("recommend", "evaluate", "similar", "compress")))
    # The first items are the popular ones, which filters rarely drop.
    items = _log(1, 2000).map(lambda count: ",".join(table.item(n) for n in range(min(count, 1 + table.items // 3))))
    values = SHARED_VALUES | {
        "k": one_word(_log(1, 20_000)),
        "exclude": items.map(lambda text: [text]),
        "only": items.map(lambda text: [text]),
        "explain": one_word(st.integers(1, 20)),
        "where": st.sampled_from(("year >= 1990", "not (genre = 'x'", "")).map(lambda text: [text]),
        "diversity": one_word(st.sampled_from((0.0, 0.3, 1.0))),
        "metrics": st.sampled_from((["ndcg"], ["recall@50,hr@1"], ["coverage,map@300"])),
        "delimiter": st.just([","]),
        "decimal": st.just(["."]),
        "dimensions": one_word(st.integers(1, 96)),
        "codes": one_word(st.sampled_from(tuple(LAYERS))),
        "rounds": one_word(st.integers(0, 2)),
    }
    who: list[str] = []
    if command == "compress":
        size = st.sampled_from([["--target-bytes", "20"], ["--target-bytes", "2"], ["--bits", "1"], ["--bits", "4"]])
        who = ["-o", "FOLDER/small", *draw(size)]
    if command == "recommend":
        user = ["--user", table.user(draw(st.integers(0, 3)))]
        who = draw(st.sampled_from([user, ["--all-users", "-o", "FOLDER/lists.parquet"], ["--history", draw(items)]]))
    if command == "similar":
        who = ["--item", table.item(draw(st.integers(0, 3)))]
    left_out = (
        *("user", "users", "command", "history", "histories", "history_file", "item", "candidates", "against"),
        *("test", "negatives", "protocol", "no_header", "part", "format", "target_bytes", "bits", "scan", *COLUMNS),
    )
    words = random_commands.options(random_commands.command_parser(parser(), command), draw, values, left_out)
    return (command, *who, *words)


if __name__ == "__main__":
    sys.exit(random_commands.main("recsys", sessions()))
