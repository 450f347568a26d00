"""Answer a file of questions to one model: how the Python API asks ``recsys recommend`` and ``recsys similar``.

``python -m apps.recsys.commands.answer_file recommend MODEL_DIR QUESTIONS -o ANSWERS --by user ...`` is no command for
people: its files are the API's own. Questions have one column, ``ids``, a list of text; answers have ``question`` (its
number), ``rank``, ``item``, ``score``, and ``title`` where the model has titles.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from apps.recsys.data import arrow_numpy
from apps.recsys.data.id_table import IdTable
from apps.recsys.models.recommender import load_manifest, read_manifest
from apps.recsys.planning.baselines import warm_up_for
from apps.recsys.planning.questions.answer_file import (
    IDS,
    LINES,
    MODULE,
    AnswerFileRequest,
    AnswerFileWorkload,
    RecommendFileRequest,
    SimilarFileRequest,
)
from apps.recsys.planning.questions.diversity import require_choice
from apps.recsys.serving.service import RecommenderService, UnknownId
from common.cli import main
from common.cli.main import Command
from common.cli.session import CommandSession
from common.files import atomic_file
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REQUESTS: Mapping[str, type[AnswerFileRequest]] = {"recommend": RecommendFileRequest, "similar": SimilarFileRequest}


def parser() -> argparse.ArgumentParser:
    """Both questions, with the options of the commands that they are named after."""
    top = argparse.ArgumentParser(prog="recsys")
    commands = top.add_subparsers(required=True)
    for name, request in REQUESTS.items():
        one = commands.add_parser(name)
        one.add_argument("model", type=Path)
        one.add_argument("questions", type=Path)
        one.add_argument("-o", "--output", type=Path, required=True)
        one.add_argument("--by", choices=("user", "history", "item"), required=True)
        one.add_argument("--batch-bytes", type=int, required=True)
        one.add_argument("-k", type=main.positive, default=10)
        one.add_argument("--exclude", type=Path)
        one.add_argument("--only", type=Path)
        one.add_argument("--where")
        one.add_argument("--diversity", type=float, default=0.0)
        main.add_common_options(one)
        one.set_defaults(command=Command(f"recsys {name}", request.of, workload, warm_up, execute))
    return top


def workload(request: AnswerFileRequest, budget: MemoryBudget) -> AnswerFileWorkload:
    """Read the model's manifest; raises as ``recommender.load_manifest``."""
    manifest = load_manifest(request.model)
    require_choice(request.where, request.diversity, manifest)
    return AnswerFileWorkload(request, manifest)


def warm_up(request: AnswerFileRequest) -> str:
    """Name of the warm-up function."""
    return warm_up_for(read_manifest(request.model), request.warm_up)


def execute(session: CommandSession[AnswerFileRequest, AnswerFileWorkload]) -> Mapping[str, Any]:
    """Write the answers.

    Raises
    ------
    UnknownId
        A user or an item is not in the model.
    """
    import pyarrow as pa

    request = session.request
    questions = lines = 0
    with session.phase("answer"), atomic_file(request.output) as part:
        service = RecommenderService(request.model, session.workload.manifest)
        writer = None
        with pa.OSFile(str(part), "wb") as sink:
            for answered, table in _tables(service, request, session.say):
                writer = writer or pa.ipc.new_file(sink, table.schema)
                writer.write_table(table)
                questions, lines = questions + answered, lines + table.num_rows
            if writer is not None:
                writer.close()
    return {"users": questions, "rows": lines, "k": request.k}


def _tables(
    service: RecommenderService, request: AnswerFileRequest, say: Callable[[str], object]
) -> Iterator[tuple[int, Any]]:
    """Tables of answers, each with the number of questions that it answers."""
    lists: list[Sequence[tuple[int, float]]] = []
    first = lines = 0
    for answer in _answers(service, request, say):
        lists.append(answer)
        lines += len(answer)
        if lines >= LINES:
            yield len(lists), _table(service.items, lists, first)
            first, lines, lists = first + len(lists), 0, []
    yield len(lists), _table(service.items, lists, first)


def _table(items: IdTable, lists: Sequence[Sequence[tuple[int, float]]], first: int) -> Any:
    """The lines of some answers; ``first`` is the number of the first one's question."""
    import numpy as np
    import pyarrow as pa

    lengths = np.array([len(answer) for answer in lists], np.int64)
    rows = np.array([row for answer in lists for row, _ in answer], np.int32)
    ends = np.repeat(np.cumsum(lengths), lengths)
    columns = {
        "question": arrow_numpy.numbers(np.repeat(np.arange(first, first + len(lists), dtype=np.int64), lengths)),
        "rank": arrow_numpy.numbers(np.arange(len(rows)) - ends + np.repeat(lengths, lengths) + 1),
        "item": items.ids(rows),
        "score": arrow_numpy.numbers(np.array([score for answer in lists for _, score in answer], np.float64)),
    }
    titles = items.titles(rows)
    return pa.table(columns if titles is None else {**columns, "title": titles})


def _answers(
    service: RecommenderService, request: AnswerFileRequest, say: Callable[[str], object]
) -> Iterator[Sequence[tuple[int, float]]]:
    """Rows and scores of the items that answer each question, the best first."""
    import numpy as np

    model = service.recommender
    how: dict[str, Any] = {"diversity": request.diversity}
    allowed = None if request.only is request.exclude is None else np.full(len(service.items), request.only is None)
    for path, value in ((request.only, True), (request.exclude, False)):
        if path is not None and allowed is not None:
            named = [id_ for lists in _batches(path) for ids in lists for id_ in ids]
            allowed[_rows(service.items, "item", named)] = value
    how["allowed"] = service.passing(request.where, allowed, say)
    for asked in _batches(request.questions):
        what, table = ("user", service.users) if request.by == "user" else ("item", service.items)
        rows = iter(_rows(table, what, [id_ for ids in asked for id_ in ids]))
        for ids in asked:
            own = np.array([next(rows) for _ in ids], np.int64)
            if request.by == "user":
                history = model.history
                yield model.recommend(history.items(own[0]), history.values(own[0]), request.k, **how)
            elif request.by == "history":
                own = np.unique(own)
                yield model.recommend(own, np.ones(len(own), np.float32), request.k, **how)
            else:
                yield model.similar(int(own[0]), request.k)


def _rows(table: IdTable, what: str, ids: Sequence[str]) -> NDArray[np.int64]:
    """The rows of ids, all of which must be there."""
    rows = table.rows(ids)
    if (rows < 0).any():
        raise UnknownId(what, ids[int((rows < 0).argmax())])
    return rows


def _batches(path: Path) -> Iterator[list[list[str]]]:
    """Lists of ids, a batch of the file at a time."""
    import pyarrow as pa

    with pa.OSFile(str(path)) as stream:
        file = pa.ipc.open_file(stream, options=pa.ipc.IpcReadOptions(use_threads=False))
        for number in range(file.num_record_batches):
            yield file.get_batch(number).column(IDS).to_pylist()


def run() -> NoReturn:
    """Run the command line."""
    sys.exit(main.main(parser(), MODULE))


if __name__ == "__main__":
    run()
