"""Random commands of ``imaging``: studies of ordinary kinds, segmented, evaluated, and now and then a training.

``python -m apps.imaging.bench.robustness.random_commands --seed 1 --seconds 3600``.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from apps.imaging.bench.robustness import random_studies
from apps.imaging.bench.robustness.random_studies import Model, Volume
from apps.imaging.cli import parser
from common.bench import random_commands
from common.bench.random_commands import SHARED_VALUES, Step, one_word

MODULE = "apps.imaging"
SLOW = 6
"""One session in this many trains, which takes as long as the others together."""


@dataclass(frozen=True)
class InferSession:
    """Studies, a model, the options of ``infer``, and whether its labels are then evaluated."""

    volumes: tuple[Volume, ...]
    model: Model
    infer: tuple[str, ...]
    evaluate: bool

    def steps(self, folder: Path) -> Iterator[Step]:
        """Write the studies and the model, segment, and compare the labels with themselves."""
        studies, out = folder / "studies", folder / "out"
        studies.mkdir()
        for number, volume in enumerate(self.volumes):
            volume.write(studies, f"case{number}")
        source = studies if len(self.volumes) > 1 else next(studies.iterdir())
        yield Step((MODULE, "infer", str(source), "-m", self.model.write(folder), "-o", str(out), *self.infer), out)
        if self.evaluate and any(out.glob("*.nii.gz")):
            yield Step((MODULE, "evaluate", str(out), str(out)))


@dataclass(frozen=True)
class TrainSession:
    """A small training set, and the options of ``train``."""

    cases: int
    side: int
    classes: int
    train: tuple[str, ...]
    fingerprint: tuple[str, ...] | None
    """Options of ``fingerprint``, whose recipe is then followed; ``None``: there is none."""

    def steps(self, folder: Path) -> Iterator[Step]:
        """Write the set, let a recipe be proposed, and train."""
        data, out, file = folder / "data", folder / "model", folder / "recipe.json"
        random_studies.write_training_set(data, cases=self.cases, side=self.side, classes=self.classes)
        if self.fingerprint is not None:
            yield Step((MODULE, "fingerprint", str(data), "-o", str(file), *self.fingerprint))
        recipe = ("--recipe", str(file)) if file.is_file() else ()
        yield Step((MODULE, "train", str(data), "-o", str(out), *recipe, *self.train), out)


@dataclass(frozen=True)
class CompressSession:
    """A volume, and the options of ``compress`` for the shipped model, which is then used."""

    volume: Volume
    compress: tuple[str, ...]
    on_images: tuple[str, ...]
    """Options that need images; empty if none are read."""

    def steps(self, folder: Path) -> Iterator[Step]:
        """Write the volume, make the model smaller, and segment."""
        studies, out = folder / "studies", folder / "smaller"
        studies.mkdir()
        self.volume.write(studies, "case")
        images = (*self.on_images, "--calibration", str(studies)) if self.on_images else ()
        yield Step((MODULE, "compress", "hippocampus", "-o", str(out), *self.compress, *images), out)
        if (out / "model.json").is_file():
            yield Step((MODULE, "infer", str(studies), "-m", str(out), "-o", str(folder / "out")), folder / "out")


@st.composite
def volumes(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Volume:
    """Draw a volume's description."""
    side, spacing = st.integers(10, 90), st.sampled_from((1.0, 0.7, 1.3, 2.0))
    return Volume(
        shape=(draw(side), draw(side), draw(side)),
        spacing=(draw(spacing), draw(spacing), draw(st.sampled_from((1.0, 0.8, 2.5)))),
        dtype=draw(st.sampled_from(random_studies.DTYPES)),
        orientation=draw(st.sampled_from(random_studies.ORIENTATIONS)),
        tilt=draw(st.sampled_from((0.0, 0.2))),
        form=draw(st.sampled_from(("nii.gz", "nii", "dicom"))),
        scaled=draw(st.booleans()),
        seed=draw(st.integers(0, 9)),
    )


@st.composite
def models(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Model:
    """Draw an installed model, or an nnU-Net folder."""
    if draw(st.booleans()):
        return Model("nnunet", draw(st.integers(2, 12)), draw(st.sampled_from(((1.0, 1.0, 1.0), (2.5, 0.8, 0.8)))))
    return Model()


@st.composite
def segmentations(draw: Callable[[st.SearchStrategy[Any]], Any]) -> InferSession:
    """Draw studies, a model and the options of ``infer``."""
    studies = tuple(draw(st.lists(volumes(), min_size=1, max_size=3)))
    edge = st.integers(2, 8).map(lambda count: 8 * count)
    dicom = all(volume.form == "dicom" for volume in studies)
    types = ("nifti", "dicom-seg", "nifti,dicom-seg", "dicom-rtstruct") if dicom else ("nifti",)
    values = SHARED_VALUES | {
        "output_type": one_word(st.sampled_from(types)),
        "repair": one_word(st.sampled_from(("tilt", "spacing", "tilt,spacing", "header"))),
        "overlap": one_word(st.sampled_from((0.25, 0.0, 0.5, 0.75))),
        "tile": one_word(st.tuples(edge, edge, edge).map(lambda sides: ",".join(map(str, sides)))),
        "batch": one_word(st.integers(1, 4)),
        "remove_small": one_word(st.sampled_from((0.01, 1.0))),
        "crop_margin": one_word(st.sampled_from((0, 5.0, 40))),
        "part": one_word(st.sampled_from(("1/1", "1/2", "3/3"))),
        "allow_quality_loss": one_word(st.sampled_from(("0.5%", "2"))),
    }
    left_out = (
        "model",
        "labels",
        "task",
        "folds",
        "checkpoint",
        "series",
        "channel",
        "volume",
        "roi_subset",
        "stow",
        "crop_model",
        "variants",
        "format",
    )
    words = random_commands.options(random_commands.command_parser(parser(), "infer"), draw, values, left_out)
    return InferSession(studies, draw(models()), tuple(words), draw(st.booleans()))


@st.composite
def trainings(draw: Callable[[st.SearchStrategy[Any]], Any]) -> TrainSession:
    """Draw a training set and the options of ``train``."""
    values = SHARED_VALUES | {
        "patch": one_word(st.sampled_from((16, 24, 32))),
        "micro_batch": one_word(st.integers(1, 2)),
        "accumulate": one_word(st.integers(1, 2)),
        "fold": st.just(["0/3"]),
        "init": st.just(["hippocampus"]),
        "set": st.sampled_from(("batch=1", "batch=3", "mirror=", "clip=0", "optimizer=sgd")).map(lambda pair: [pair]),
    }
    left_out: tuple[str, ...] = (
        "steps",
        "epochs",
        "time",
        "resume",
        "no_fold",
        "run",
        "skip_bad",
        "distill",
        "world_size",
        "synthesize",
        "layers",
        "spacing",
        "recipe",
    )
    fingerprint = None
    if draw(st.booleans()):
        asked = random_commands.command_parser(parser(), "fingerprint")
        fingerprint = tuple(random_commands.options(asked, draw, SHARED_VALUES, ("skip_bad",)))
        left_out += ("network", "patch", "init", "set", "accumulate")  # the recipe has them
    words = random_commands.options(random_commands.command_parser(parser(), "train"), draw, values, left_out)
    cases, side, classes = draw(st.integers(3, 6)), draw(st.integers(16, 40)), draw(st.integers(2, 5))
    return TrainSession(cases, side, classes, ("--steps", str(draw(st.integers(2, 6))), *words), fingerprint)


@st.composite
def compressions(draw: Callable[[st.SearchStrategy[Any]], Any]) -> CompressSession:
    """Draw a volume and the options of ``compress``."""
    values = SHARED_VALUES | {
        "drop_blocks": one_word(st.integers(1, 6)),
        "prune": one_word(st.sampled_from((0.1, 0.5, 0.8, 0.97, 0.999))),
        "low_rank": one_word(st.sampled_from((0.3, 0.7, 0.99, "400KB", "1KB"))),
        "tiles": one_word(st.integers(1, 4)),
    }
    # Those of a fine-tuning are options of a training, which has its own sessions.
    left_out = (
        "int8",
        "int8_weights",
        "calibration",
        "importance",
        "decomposition",
        "finetune",
        "measure",
        "time",
        "steps",
        "fold",
        "no_fold",
        "set",
    )
    words = random_commands.options(random_commands.command_parser(parser(), "compress"), draw, values, left_out)
    on_images = draw(st.sampled_from(((), ("--int8",), ("--prune", "0.4", "--importance", "taylor"))))
    alone = on_images == ("--int8",)  # with others it is a stage after them, and stages keep no record together
    return CompressSession(draw(volumes()), () if alone else tuple(words), on_images)


def sessions() -> st.SearchStrategy[InferSession | TrainSession | CompressSession]:
    """Return the strategy of all sessions, of which a few train or make the model smaller."""
    return st.integers(1, SLOW).flatmap(_session)


def _session(number: int) -> st.SearchStrategy[InferSession | TrainSession | CompressSession]:
    if number == SLOW:
        return trainings()
    return compressions() if number == SLOW - 1 else segmentations()


if __name__ == "__main__":
    sys.exit(random_commands.main("imaging", sessions()))
