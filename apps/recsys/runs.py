"""Commands of ``Recommender`` that make a model folder: frames are written for them, and their record is returned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from apps.recsys import frames
from apps.recsys.data.columns import Columns
from common.api import command

MODEL = "model"
"""The model folder, in scratch."""
TEXT_BELOW = 96 << 20
"""Under a smaller ceiling Arrow cannot be loaded and nothing can be trained; of text the command then counts the rows,
and names a ceiling that would do."""


def train(
    folder: Path, frame: Any, wanted: Columns, titles: Any, options: list[object], memory: str | int
) -> dict[str, Any]:
    """Write the frames into a folder, train there, and return the record."""
    small = command.budget_of(memory).host_bytes < TEXT_BELOW
    names = ("frame.csv" if small else "frame.arrow", "titles.arrow", MODEL)
    interactions, items, output = (folder / name for name in names)
    columns, types = frames.write_interactions(frame, wanted, interactions)
    if titles is not None:
        frames.write_titles(titles, items)
        options = [*options, "--items", items]
    record = command.run(
        "apps.recsys",
        ["train", interactions, "-o", output, *options, *frames.column_options(columns)],
        memory=memory,
        name="recsys train",
        shown={str(interactions): "frame", str(items): "titles", str(output): "model"},
    )
    for path in (interactions, items):
        path.unlink(missing_ok=True)
    frames.write_types(output, types)
    return record


def update(
    model: Path, manifest: Mapping[str, Any], folder: Path, frame: Any, forget: Sequence[Any], memory: str | int
) -> dict[str, Any]:
    """Write new rows into a folder, make the updated model there, and return the record.

    Parameters
    ----------
    model, manifest
        The model folder and its ``model.json``.
    folder
        Takes the new model, as ``MODEL``.
    frame
        New rows; ``None``: there are none.
    forget
        Ids of users to leave out.
    memory
        The ceiling.
    """
    rows, output = folder / "frame.arrow", folder / MODEL
    words: list[object] = ["update", model]
    if frame is not None:
        known = manifest.get("columns")
        wanted = Columns(known["user"], known["item"], known["value"]) if known is not None else Columns()
        columns, _ = frames.write_interactions(frame, wanted, rows)
        words += [rows, *frames.column_options(columns)]
    words += ["-o", output, *(f"--forget={frames.id_text(user)}" for user in forget)]
    record = command.run(
        "apps.recsys", words, memory=memory, name="recsys update", shown={str(rows): "frame", str(output): "model"}
    )
    rows.unlink(missing_ok=True)
    if types := frames.read_types(model):
        frames.write_types(output, types)
    return record


def record(folder: Path) -> Mapping[str, Any]:
    """The record of a model's training; empty where it is not there."""
    with suppress(OSError, ValueError):
        return dict(json.loads((folder / "run.json").read_text(encoding="utf-8")))
    return {}
