"""``imaging train --synthesize``: a network learns from label maps alone, resumes bit for bit, and keeps its price."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from common.errors import BadInput
from tests.apps.imaging import in_process
from tests.apps.imaging.commands.test_train import start
from tests.apps.imaging.training.data.test_label_table import TABLE, write
from tests.machine import patience, wait_until
from tests.messages import continued, refused, says
from tests.promise import kept

Runner = Callable[..., Any]
LAYERS = ("--layers", "init_filters=8", "--layers", "blocks_down=1,1", "--layers", "blocks_up=1")
OPTIONS = ("--fold", "0/5", "--patch", "16", "--spacing", "2", "--amp", "off", "--memory", "1GiB", "--json", *LAYERS)


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ball in a shell in tissue of the background, in air, and a table of their labels."""
    folder = tmp_path_factory.mktemp("maps")
    random, grid = np.random.default_rng(0), np.stack(np.meshgrid(*[np.arange(48)] * 3, indexing="ij"), -1)
    for number in range(5):
        distance = np.linalg.norm(grid - random.uniform(20, 28, 3), axis=-1)
        labels = np.select([distance < 9, distance < 14, distance < 20], [10, 24, 500], 0).astype(np.int16)
        (folder / "maps").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(labels, np.diag([-1.0, 1, 1, 1])), folder / "maps" / f"map_{number}.nii.gz")
    write(folder / "table.json")
    return folder


def command(maps: Path, output: Path, *more: object) -> list[str]:
    words = ("apps.imaging", "train", maps / "maps", "-o", output, "--synthesize", maps / "table.json", *OPTIONS, *more)
    return [str(word) for word in words]


def test_a_network_learns_from_label_maps_alone(maps: Path, tmp_path: Path, run: Runner, quick: Runner) -> None:
    words = command(maps, tmp_path / "model", "--steps", 150, "--set", "validation_cases=0")
    assert quick(*words, "--dry-run").code == 0  # planned first: what is measured counts in the run that measures
    done = run(*words)
    assert done.code == 0, done.err
    kept(done.record)
    results = done.record["results"]
    assert set(results["metrics"]["per_class"]) == {"ball", "shell"} and results["metrics"]["mean_dice"] > 0.3
    terms = {term["name"]: term["bytes"] for term in done.record["plan"]["terms"]}
    assert terms["cases in memory"] == 4 * 48**3 + 24**3 * 5  # maps as they are; the held-out one with its image
    manifest = json.loads((tmp_path / "model" / "model.json").read_text())
    assert [(label["value"], label["name"]) for label in manifest["labels"]] == [
        (0, "background"),
        (3, "ball"),
        (7, "shell"),
    ]
    assert manifest["spacing"] == [2, 2, 2] and manifest["network"]["arguments"]["init_filters"] == 8
    assert "synthesised" in (tmp_path / "model" / "card.md").read_text()


def test_a_stopped_training_goes_on_to_the_same_weights(maps: Path, tmp_path: Path, quick: Runner) -> None:
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    steps = ("--steps", 64)  # so many that it is still at work when it is stopped
    assert quick(*command(maps, whole, *steps, "--cache", "memory")).code == 0
    words = command(maps, out, *steps, "--cache", "disk")
    child = start(words[2:])
    checkpoint = out / ".training" / "last.safetensors"
    wait_until(checkpoint.is_file, seconds=120, alive=child)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=patience(60))
    assert child.returncode == 130, err
    other = write(tmp_path / "other.json", {**TABLE, "contrasts": {"T1": 0.5}})
    refused = quick(*words, "--resume", "--synthesize", other)
    assert refused.code == 2
    says(refused.err, "synthesis")
    again = quick(*words, "--resume")
    assert again.code == 0, again.err
    continued(again.err, "step")
    assert (out / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("more", "code", "facts"),
    [
        (["--synthesize", "absent.json"], 4, ["absent.json"]),
        (["--layers", "init_filters=wide"], 2, ["--layers init_filters=wide", "whole numbers"]),
        (["--layers", "init_filter=8"], 2, ["init_filter", "init_filters"]),
        (["--spacing", "0"], 2, ["--spacing", "millimetres"]),
        (["--init", "hippocampus"], 2, ["--init", "--layers"]),
        (["--patch", "15"], 2, ["multiple of 2"]),
    ],
)
def test_options_that_cannot_be_meant(
    maps: Path, tmp_path: Path, quick: Runner, more: list[str], code: int, facts: list[str]
) -> None:
    done = quick(*command(maps, tmp_path / "model", *more))
    assert done.code == code, done.err
    says(done.err, *facts)
    assert not (tmp_path / "model").exists()


def test_a_label_that_the_table_lacks_ends_the_command(maps: Path, tmp_path: Path) -> None:
    classes = json.loads(json.dumps(TABLE["classes"]))
    classes[1]["tissues"][0]["labels"] = [25]
    table = {**TABLE, "classes": classes}
    other = write(tmp_path / "table.json", table)
    with refused(BadInput, "map_1", "24", "class table"):
        in_process.done(*command(maps, tmp_path / "model", "--synthesize", other)[1:])
    assert not (tmp_path / "model" / "model.json").exists()
