"""``imaging compress --int8``: a folder that both precisions run from, close labels, and clear refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.imaging.compression.calibration import choose_tiles
from apps.imaging.compression.options import CompressOptions
from apps.imaging.compression.quantization import CompressRequest
from apps.imaging.inference.network_grid import NetworkGrid
from apps.imaging.models.model_folder import read_model
from apps.imaging.volumes.nifti import open_nifti
from common import model_folder
from common.errors import UsageError
from common.model_folder import shipped_models
from tests.apps.imaging.helpers import output_file, random_model, read_labels, write_nifti
from tests.messages import refused, says
from tests.promise import kept

pytest.importorskip("nncf")


def test_int8_labels_are_close_and_cached_apart(run, quick, dataset: Callable[[str], Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import nibabel as nib

    whole = nib.load(dataset("ct-sample") / "example_ct.nii.gz")  # type: ignore[attr-defined]
    values = np.asarray(whole.dataobj)[20:70, 20:60, 20:60].astype(np.int16)
    (tmp_path / "volumes").mkdir()
    image = write_nifti(tmp_path / "volumes" / "a.nii.gz", values, whole.affine)
    write_nifti(tmp_path / "volumes" / "b.nii.gz", values[::-1].copy(), whole.affine)
    random_model(tmp_path / "model", spacing=(3.0, 3.0, 3.0))
    small = ("--int8", "--calibration", tmp_path / "volumes", "--tiles", "4", "--memory", "600MiB")
    done = run("apps.imaging", "compress", tmp_path / "model", "-o", tmp_path / "int8", *small, "--json")
    assert done.code == 0, done.err
    assert done.record["within_budget"] and done.record["results"]["tiles"] == 4
    model = read_model(tmp_path / "int8")
    assert model.int8 and model.weights_sha256 == read_model(tmp_path / "model").weights_sha256
    export = ("export", tmp_path / "int8", "--as", "onnx", "-o", tmp_path / "a.onnx", "--memory", "300MiB", "--json")
    for _ in range(2):  # the first measures
        done = run("apps.imaging", *export)
        assert done.code == 0, done.err
    kept(done.record)
    assert b"DequantizeLinear" in (tmp_path / "a.onnx").read_bytes()
    says(quick("apps.imaging", "export", tmp_path / "model", *export[2:], "--precision", "int8").err, "not quantised")
    labels = {}
    for precision in ("int8", "float32"):
        options = ("-o", tmp_path / "out", "--memory", "2GiB", "--json")
        chosen = () if precision == "int8" else ("--precision", precision)  # int8 is what this folder is for
        done = quick("apps.imaging", "infer", image, "-m", tmp_path / "int8", *options, *chosen)
        assert done.code == 0, done.err
        assert done.record["plan"]["knobs"]["precision"] == precision
        assert done.record["results"]["studies"][0]["status"] == "done"  # not taken for the other precision's
        labels[precision] = read_labels(output_file(tmp_path / "out"))
    agreement = (labels["int8"] == labels["float32"]).mean()
    assert 0.9 < agreement < 1.0, agreement
    refused = quick("apps.imaging", "infer", image, "-m", tmp_path / "model", *options, "--precision", "int8")
    assert refused.code == 2 and "imaging compress --int8" in refused.err


def test_another_applications_model_is_not_replaced(tmp_path: Path) -> None:
    random_model(tmp_path / "model")
    output = tmp_path / "other"
    output.mkdir()
    model_folder.seal(output, application="recsys", kind="ials", files=[], fields={})
    options = CompressOptions(
        model=tmp_path / "model", output=output, int8=True, calibration=tmp_path / "none", tiles=4, threads=1
    )
    with refused(UsageError, output, "another application"):
        CompressRequest.of(options, tmp_path / "model")


@pytest.mark.parametrize(
    ("words", "code", "facts"),
    [
        (("--fp16", "--steps", "5"), 2, ("--steps", "--finetune")),
        (("--fp16", "--set", "batch=1"), 2, ("--set", "--finetune")),
        (("--prune", "0.5", "--no-fold"), 2, ("--no-fold", "--measure")),
        (("--prune", "0.5", "--int8-weights", "--time", "1min"), 2, ("--time", "--finetune")),
        (("--prune", "0.5", "--finetune", "nothing"), 4, ("nothing", "imagesTr")),
        (("--prune", "0.5", "--measure", "nothing"), 4, ("nothing", "imagesTr")),
    ],
)
def test_options_without_their_stage_are_refused_before_anything_is_made(
    run: Callable[..., Any], tmp_path: Path, words: tuple[str, ...], code: int, facts: tuple[str, ...]
) -> None:
    refusal = run("apps.imaging", "compress", "hippocampus", "-o", tmp_path / "out", *words)
    assert (refusal.code, refusal.err.count("\n"), (tmp_path / "out").exists()) == (code, 1, False), refusal.err
    says(refusal.err, *facts)


def test_tiles_are_spread_over_all_volumes(tmp_path: Path) -> None:
    random_model(tmp_path / "model")
    model = read_model(tmp_path / "model")
    shapes = ((64, 48, 32), (16, 24, 16))
    volumes = [open_nifti(write_nifti(tmp_path / f"{n}.nii", np.ones(s, np.int16))) for n, s in enumerate(shapes)]
    grids = tuple(NetworkGrid.of(volume, model, tile=model.patch, overlap=0.0) for volume in volumes)
    assert [len(grid.tiles) for grid in grids] == [16, 1]
    assert choose_tiles(grids, 8) == [[0, 5, 10, 15], [0]]


def test_what_a_smaller_model_loses_is_measured_and_written(  # type: ignore[no-untyped-def]
    run, quick, dataset: Callable[[str], Path], tmp_path: Path
) -> None:
    data, folder = tmp_path / "data", tmp_path / "variants"
    for image in sorted((dataset("msd-hippocampus") / "imagesTr").glob("*.nii.gz"))[:4]:
        for name in ("imagesTr", "labelsTr"):
            (data / name).mkdir(parents=True, exist_ok=True)
            (data / name / image.name).symlink_to(image.parent.parent / name / image.name)
    make = ("compress", "hippocampus", "-o", folder / "half", "--prune", "0.5")
    made = run("apps.imaging", *make, "--measure", data, "--fold", "0/2", "--memory", "1GiB")
    assert made.code == 0, made.err
    says(made.err, "2 cases", "mean Dice")
    written = json.loads((folder / "half" / "model.json").read_text())
    found = written["measured"]
    assert found["cases"] == 2 and found["dice"] < found["dice_before"] > 0.8
    assert found["weights"] == read_model(shipped_models()["hippocampus"]).weights_sha256
    assert not (folder / "half" / ".stages").exists()
    again = quick("apps.imaging", "compress", "hippocampus", "-o", folder / "half", "--measure", tmp_path, "--json")
    assert again.code == 2 and "--json" in again.err  # a stage's option
    says(quick("apps.imaging", "inspect", folder / "half").out, "mean Dice", f"{found['dice']:.4f}", 2)
