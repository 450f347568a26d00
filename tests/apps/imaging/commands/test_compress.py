"""``imaging compress --int8``: a folder that both precisions run from, close labels, and clear refusals."""

import json
import re
from collections.abc import Callable
from pathlib import Path

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

pytest.importorskip("nncf")


def test_int8_labels_are_close_and_cached_apart(run, dataset: Callable[[str], Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
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
    labels = {}
    for precision in ("int8", "float32"):
        options = ("-o", tmp_path / "out", "--memory", "2GiB", "--json")
        chosen = () if precision == "int8" else ("--precision", precision)  # int8 is what this folder is for
        done = run("apps.imaging", "infer", image, "-m", tmp_path / "int8", *options, *chosen)
        assert done.code == 0, done.err
        assert done.record["plan"]["knobs"]["precision"] == precision
        assert done.record["results"]["studies"][0]["status"] == "done"  # not taken for the other precision's
        labels[precision] = read_labels(output_file(tmp_path / "out"))
    agreement = (labels["int8"] == labels["float32"]).mean()
    assert 0.9 < agreement < 1.0, agreement
    refused = run("apps.imaging", "infer", image, "-m", tmp_path / "model", *options, "--precision", "int8")
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


def test_tiles_are_spread_over_all_volumes(tmp_path: Path) -> None:
    random_model(tmp_path / "model")
    model = read_model(tmp_path / "model")
    shapes = ((64, 48, 32), (16, 24, 16))
    volumes = [open_nifti(write_nifti(tmp_path / f"{n}.nii", np.ones(s, np.int16))) for n, s in enumerate(shapes)]
    grids = tuple(NetworkGrid.of(volume, model, tile=model.patch, overlap=0.0) for volume in volumes)
    assert [len(grid.tiles) for grid in grids] == [16, 1]
    assert choose_tiles(grids, 8) == [[0, 5, 10, 15], [0]]


def test_a_measured_variant_takes_the_models_place_where_that_does_not_fit(  # type: ignore[no-untyped-def]
    run, dataset: Callable[[str], Path], tmp_path: Path
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
    found["seconds"] = found["seconds_before"] / 2  # two small volumes are no measurement
    (folder / "half" / "model.json").write_text(json.dumps(written))
    infer = ("infer", image, "-o", tmp_path / "out", "--tile", "64", "--batch", "1", "--variants", folder, "--json")
    needs = []
    for model in ("hippocampus", folder / "half"):
        plan = run("apps.imaging", *infer, "-m", model, "--memory", "2GiB", "--dry-run").record["plan"]
        needs.append(plan["predicted_peak_bytes"] + plan["reserve_bytes"])
    assert needs[1] < needs[0]
    tight = (*infer, "-m", "hippocampus", "--memory", sum(needs) // 2)
    done = run("apps.imaging", *tight)
    assert done.code == 3 and done.record["plan"]["knobs"].get("variant") is None
    says(done.err, "--allow-quality-loss", "half")
    percent = re.search(r"--allow-quality-loss (\S+)%", done.err)
    assert percent and float(percent[1]) / 100 >= 1 - found["dice"] / found["dice_before"]
    assert run("apps.imaging", *tight, "--allow-quality-loss", "0.01%").code == 3
    done = run("apps.imaging", *tight, "--allow-quality-loss", f"{percent[1]}%")
    assert done.code == 0, done.err
    plan = done.record["plan"]
    assert plan["knobs"]["variant"] == "half" and done.record["within_budget"]
    says(plan["note"], "half", f"{found['dice']:.4f}", f"{found['dice_before']:.4f}")
    assert plan["note"] in done.err
    done = run("apps.imaging", *infer, "-m", "hippocampus", "--memory", "2GiB", "--allow-quality-loss", "99%")
    assert "variant" not in done.record["plan"]["knobs"] and done.record["results"]["studies"][0]["status"] == "done"
