"""Class tables: the installed one, and what a table must not say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.commands.arguments import class_table
from apps.imaging.training.data.label_table import read_table
from common.errors import BadInput
from tests.messages import refused

TABLE: dict[str, Any] = {
    "name": "Ball",
    "contrasts": {"T1": 0.25},
    "classes": [
        {"value": 0, "name": "background", "tissues": [{"labels": [0]}, {"labels": [500], "levels": {"T1": [40, 5]}}]},
        {"value": 7, "name": "shell", "outer": True, "tissues": [{"labels": [24]}]},
        {"value": 3, "name": "ball", "tissues": [{"labels": [10, 49], "levels": {"T1": [130, 20]}}]},
    ],
}


def write(path: Path, table: Any = TABLE) -> Path:
    path.write_text(json.dumps(table))
    return path


def test_tissues_are_numbered_and_belong_to_classes(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "table.json"))
    assert list(table.labels.items()) == [(0, "background"), (3, "ball"), (7, "shell")]
    tissues = table.tissues(np.array([[0, 500], [24, 10], [49, 0]]))
    assert tissues.tolist() == [[0, 1], [3, 2], [2, 0]] and tissues.dtype == np.uint8
    assert table.class_of[tissues].tolist() == [[0, 0], [2, 1], [1, 0]]
    assert table.outer.tolist() == [False, False, False, True]
    assert table.levels["T1"][1:3].tolist() == [[40, 5], [130, 20]] and np.isnan(table.levels["T1"][[0, 3]]).all()
    assert table.missing([0, 49, 3, 501]) == [3, 501]
    assert table.about == {"name": "Ball"}


def test_the_installed_table_of_the_brain(dataset: Callable[[str], Path]) -> None:
    table = read_table(class_table("brain"))
    assert len(table.labels) == 19 and list(table.labels) == list(range(19))
    maps = dataset("brain-labels") / "labels_classes_priors"
    assert table.missing(map(int, np.load(maps / "generation_labels.npy"))) == []
    # Left and right look alike: FreeSurfer's labels from 2 to 28 and from 41 to 60.
    for left, right in ((2, 41), (3, 42), (4, 43), (8, 47), (10, 49), (17, 53), (18, 54), (26, 58), (28, 60)):
        assert table.tissue_of[left] == table.tissue_of[right]
    assert not np.isnan(table.levels["T1"]).any()


def changed(**fields: Any) -> dict[str, Any]:
    return {**TABLE, **fields}


BACKGROUND, SHELL, BALL = TABLE["classes"]


@pytest.mark.parametrize(
    ("table", "facts"),
    [
        (changed(classes=[BACKGROUND]), ["classes"]),
        (changed(classes=[SHELL, BALL]), ["value 0", "background"]),
        (changed(classes=[BACKGROUND, BALL, {**SHELL, "value": 3}]), ["value 3", "two classes"]),
        (changed(classes=[BACKGROUND, BALL, {**SHELL, "value": 0}]), ["value 0", "two classes"]),
        (changed(classes=[BACKGROUND, BALL, {**SHELL, "name": "ball"}]), ["'ball'", "two classes"]),
        (changed(classes=[BACKGROUND, BALL, {**SHELL, "tissues": [{"labels": [49]}]}]), ["label 49", "two tissues"]),
        (changed(contrasts={"T1": 0.7, "T2": 0.6}), ["contrasts", "more than 1"]),
        (changed(contrasts={}), ["'T1'", "contrasts"]),
        (changed(classes=[BACKGROUND, {**SHELL, "value": 255}]), ["254"]),
        (changed(classes=[BACKGROUND, {**SHELL, "tissues": [{"labels": [-1]}]}]), ["labels", "at least 0"]),
        (changed(clases=[]), ["clases"]),
    ],
)
def test_tables_that_cannot_be_meant(tmp_path: Path, table: Any, facts: list[str]) -> None:
    path = write(tmp_path / "table.json", table)
    with refused(BadInput, str(path), *facts):
        read_table(path)


def test_more_tissues_than_a_byte_counts(tmp_path: Path) -> None:
    many = [{"labels": [label]} for label in range(1, 256)]
    path = write(tmp_path / "table.json", changed(classes=[BACKGROUND, {"value": 1, "name": "all", "tissues": many}]))
    path.write_text(path.read_text().replace('"labels": [500]', '"labels": [600]'))
    with refused(BadInput, str(path), "257", "254"):
        read_table(path)
