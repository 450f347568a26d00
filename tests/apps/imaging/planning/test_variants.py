"""Variants in place of a model: only where that does not fit, as far as the user allows, and the best that fits."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.compression.measuring import write
from apps.imaging.inference.options import InferOptions
from apps.imaging.inference.request import InferRequest
from apps.imaging.models.model_folder import read_model
from apps.imaging.planning.variants import ReplaceableWorkload
from common.cli.main import _choose
from common.errors import DoesNotFit, UsageError
from common.memory.costs.probes import Costs, Probe
from common.memory.costs.store import CostStore
from common.memory.plan.plan import Plan
from common.memory.plan.planner import Workload
from common.memory.process.budget import MIB, MemoryBudget
from tests.apps.imaging.helpers import random_model, write_nifti
from tests.apps.imaging.models.test_variants import measured
from tests.messages import refused, says


class Known(CostStore):
    """Costs of engines by the name of the model's folder: 40 MiB, but 120 of the model and 10 of ``least``."""

    def collect(self, probes: Any, *, ceiling: int | None) -> Costs:
        return {probe: self._of(probe) for probe in probes}

    def _of(self, probe: Probe) -> dict[str, float]:
        arguments = json.loads(probe.arguments)
        if "model_dir" not in arguments:
            return {"bytes": 100 * MIB, "files": 0}
        engine = {"model": 120, "least": 10}.get(Path(arguments["model_dir"]).name, 40) * MIB
        return {"open_bytes": engine, "run_bytes": engine, "seconds": 1.0}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    pytest.importorskip("openvino")
    random_model(tmp_path / "model")
    original = read_model(tmp_path / "model")
    losses = {"little": 0.88, "more": 0.87, "least": 0.5, "slow": 0.8828}
    for seed, (name, dice) in enumerate(losses.items(), 1):
        folder = tmp_path / "model" / "variants" / name
        random_model(folder, seed=seed)
        changes = {"seconds": 9.0} if name == "slow" else {}
        write(folder, measured(original, dice=dice, **changes))
    return tmp_path


def chosen(folder: Path, ceiling: int, loss: float = 0.0, **options: Any) -> tuple[Plan, Workload]:
    image = write_nifti(folder / "image.nii", np.zeros((20, 24, 16), np.int16))
    asked = InferOptions(
        inputs=(image,), model=folder / "model", output=folder / "out", quality_loss=loss, batch=1, **options
    )
    work = ReplaceableWorkload(InferRequest.of(asked, folder / "model"), folder=asked.variants)
    args: Any = type("Args", (), {"plan": None, "dry_run": True})
    return _choose(args, work, MemoryBudget(ceiling * MIB), Known(folder / "costs"))


def test_the_model_is_taken_where_it_fits_and_else_the_smallest_loss_that_is_allowed(models: Path) -> None:
    plan, work = chosen(models, 300, 0.99)
    assert isinstance(work, ReplaceableWorkload) and "variant" not in dict(plan.knobs) and not plan.note
    plan, work = chosen(models, 190, 0.99)
    assert plan["variant"] == "little" and work.request.model.model.directory.name == "little"  # type: ignore[attr-defined]
    says(plan.note, "little", "0.8800", "0.8828", 42, "0.32%", "3.0", "4.0")
    assert chosen(models, 140, 0.99)[0]["variant"] == "least"
    assert work.request.digest("image") != ReplaceableWorkload(work.request).request.with_tile((16, 16, 16)).digest("a")  # type: ignore[attr-defined]


def test_a_refusal_names_the_variant_that_would_fit_and_its_loss(models: Path) -> None:
    for ceiling, allowed, named in ((190, 0.0, ("0.32%", "little")), (140, 0.02, ("43.37%", "least"))):
        with pytest.raises(DoesNotFit) as refusal:
            chosen(models, ceiling, allowed)
        says(refusal.value, f"--allow-quality-loss {named[0]}", named[1])
        assert "slow" not in str(refusal.value.remedies)
        assert chosen(models, ceiling, float(named[0].rstrip("%")) / 100)[0]["variant"] == named[1]


def test_that_there_is_none_is_said(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A broken folder, a file, and a link to itself are no variants, and no reason to fail."""
    folder = models / "elsewhere"
    (folder / "broken").mkdir(parents=True)
    (folder / "broken" / "model.json").write_text("{")
    (folder / "broken" / "loop").symlink_to("loop")
    (folder / "file").write_text("no model")
    with caplog.at_level(logging.WARNING, "peakline"), pytest.raises(DoesNotFit):
        chosen(models, 190, 0.5, variants=folder)
    says(caplog.text, "--allow-quality-loss", folder, "--measure")
    with refused(UsageError, "--variants", "no such folder"):
        chosen(models, 190, 0.5, variants=models / "nowhere")


def test_only_the_users_folder_is_read_and_only_variants_that_run_as_they_were_measured(models: Path) -> None:
    (models / "elsewhere").mkdir()
    with pytest.raises(DoesNotFit):
        chosen(models, 190, 0.99, variants=models / "elsewhere")
    (models / "model" / "variants" / "more").rename(models / "elsewhere" / "more")
    assert chosen(models, 190, 0.99, variants=models / "elsewhere")[0]["variant"] == "more"
    write(models / "elsewhere" / "more", measured(read_model(models / "model"), precision="int8"))
    with pytest.raises(DoesNotFit):  # its int8 network is not there
        chosen(models, 190, 0.99, variants=models / "elsewhere")


def test_losses_are_those_of_one_network_at_its_own_resolution(tmp_path: Path) -> None:
    common: Any = {"inputs": (tmp_path,), "model": tmp_path / "m", "output": tmp_path / "out", "quality_loss": 0.1}
    for options in ({"fast": True}, {"task": "total"}, {"crop_first": True}):
        with refused(UsageError, "--allow-quality-loss"):
            InferOptions(**common, **options)
