"""A small trained model, made once a worker through the real command line."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apps.recsys.data import synthetic


@dataclass(frozen=True)
class Trained:
    """A model folder and what it was made from."""

    model: Path
    interactions: Path
    titles: Path
    record: dict[str, Any]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, run: Callable[..., Any]) -> Trained:
    """The generated sample, trained with a user holdout."""
    folder = tmp_path_factory.mktemp("trained")
    interactions, titles = synthetic.write(folder, users=300, items=200)
    model = folder / "model"
    options = ("--model", "ials", "--split", "user-holdout", "--factors", 16, "--memory", "300MiB", "--json")
    done = run("apps.recsys", "train", interactions, "--items", titles, "-o", model, *options)
    assert done.code == 0, done.err
    return Trained(model, interactions, titles, done.record)
