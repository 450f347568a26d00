"""``recsys merge``: the lists that all parts of ``recommend --all-users --part`` wrote, in one file.

The record of each part says which it is, of which model and options, and how large its file is. So a part that is
missing, double, unfinished or of another command is found before anything is written. Users stand part by part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import BadInput, UsageError
from common.parts import require_whole

if TYPE_CHECKING:
    from apps.recsys.planning.questions.recommend_requests import RecommendAllRequest

TEXT = (".csv", ".jsonl")
"""Files that are joined line by line; all others are Parquet."""


@dataclass(frozen=True, slots=True)
class PartNote:
    """What the record of a part says of it, in ``results.part``."""

    part: int
    """From 1."""
    of: int
    settings: str
    """Digest of the model and of all options that decide the lists."""
    bytes: int
    """Size of its file."""

    @classmethod
    def of_request(cls, request: RecommendAllRequest) -> PartNote:
        """Describe the file that a request has written."""
        from apps.recsys.planning.resume_settings import resume_settings
        from common.files import sha256
        from common.model_folder import MANIFEST

        assert request.part is not None
        settings = json.dumps(resume_settings(request, model=sha256(request.model / MANIFEST)), sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()
        return cls(request.part.number, request.part.of, digest, request.output.stat().st_size)

    @classmethod
    def read(cls, path: Path) -> tuple[PartNote, Mapping[str, Any]]:
        """Read the record of a part's file; returns its note and its results.

        Raises
        ------
        BadInput
            There is no file or no record, the run did not end well, or the file is not the one that it wrote.
        """
        if not path.is_file():
            what = "a folder, and not a file of recommend --part" if path.is_dir() else "no such file"
            raise BadInput(f"{path}: {what}", public="no such file")
        place = path.with_suffix(".run.json")
        try:
            record = json.loads(place.read_text("utf-8"))
            results = record["results"] or {}
            ended, note = record["exit_code"], results.get("part") and cls(**results["part"])
        except OSError:
            raise BadInput(
                f"{path}: the record of its run, {place.name}, is not next to it", public="no record"
            ) from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BadInput(f"{place}: not the record of a run", public="no record") from None
        if ended != 0:
            raise BadInput(f"{path}: its run did not end well; run the part again", public="unfinished part")
        if not note:
            raise BadInput(f"{path}: not a part; recommend --all-users --part K/N makes parts", public="no part")
        if path.stat().st_size != note.bytes:
            raise BadInput(
                f"{path}: {path.stat().st_size:,} bytes, not the {note.bytes:,} that were written; run the part again",
                public="changed part",
            )
        return note, results


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parts = "files that recommend --all-users --part wrote, with their records (.run.json) next to them"
    parser.add_argument("parts", nargs="+", type=Path, metavar="LISTS", help=parts)
    output = "file of all lists, of the same kind as the parts"
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help=output)
    parser.set_defaults(run=_run, name="recsys merge")


def _run(args: argparse.Namespace) -> int:
    from common.files import atomic_file

    found = [(path, *PartNote.read(path)) for path in args.parts]
    require_whole([(path, note) for path, note, _ in found])
    paths = [path for path, _, _ in sorted(found, key=lambda each: each[1].part)]
    if wrong := [path for path in paths if path.suffix.lower() != args.output.suffix.lower()]:
        kind = wrong[0].suffix or "without a suffix"
        raise UsageError(f"-o {args.output}: {wrong[0]} is {kind}, and files of one kind are joined")
    if args.output.resolve() in [path.resolve() for path in paths]:
        raise UsageError(f"-o {args.output}: is one of the parts")
    with atomic_file(args.output) as draft:
        _join(paths, draft, args.output.suffix.lower())
    users, rows = (sum(results[name] for _, _, results in found) for name in ("users", "rows"))
    sys.stdout.write(f"{args.output}: {rows:,} rows, lists of {users:,} users from {len(paths)} parts\n")
    return 0


def _join(paths: Sequence[Path], draft: Path, suffix: str) -> None:
    if suffix not in TEXT:
        from apps.recsys.commands.lists import list_files

        list_files.write(_row_groups(paths), draft, suffix)
        return
    with draft.open("wb") as out:
        for number, path in enumerate(paths):
            with path.open("rb") as stream:
                if number and suffix == ".csv":
                    stream.readline()  # the names of columns
                shutil.copyfileobj(stream, out)


def _row_groups(paths: Sequence[Path]) -> Iterator[Any]:
    """Tables of the Parquet files, one at a time; of all files without a row, one."""
    import pyarrow.parquet as pq

    from apps.recsys.data import arrow_numpy

    for number, path in enumerate(paths):
        with pq.ParquetFile(arrow_numpy.native(path), pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False)
                if table.num_rows or not number:
                    yield table
