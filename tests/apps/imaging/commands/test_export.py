"""``imaging export``: labels of the exported model are those of the model, and bad output is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from apps.imaging.exporters.options import ExportRequest
from common.errors import UsageError
from common.memory.process.budget import MIB
from tests.apps.imaging import bundle_folder, in_process
from tests.apps.imaging.helpers import output_file, read_labels
from tests.messages import refused, says
from tests.promise import kept


def test_a_bundle_gives_the_labels_of_its_model(run, quick, dataset: Callable[[str], Path], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """In MONAI itself, and read back by ``infer``."""
    image = min((dataset("msd-hippocampus") / "imagesTr").glob("*.nii.gz"))
    (tmp_path / "real").mkdir()
    (tmp_path / "bundle").symlink_to("real")
    bundle = tmp_path / "bundle"
    command = ("export", "hippocampus", "--as", "bundle", "-o", bundle, "--json", "--memory", "1GiB")
    assert quick("apps.imaging", *command, "--dry-run").code == 0  # measures what it takes
    done = run("apps.imaging", *command)
    assert done.code == 0, done.err
    kept(done.record)
    assert not (bundle / "run.json").exists()
    labels = {}
    for model, engine in ((bundle, "torch"), ("hippocampus", "openvino")):
        in_process.done("infer", image, "-m", model, "-o", tmp_path / engine, "--engine", engine)
        labels[engine] = read_labels(output_file(tmp_path / engine))
    bundle_folder.with_monai(image, bundle)
    expected = np.load(bundle / "expected.npy")[0]
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(labels["torch"], expected)
    assert (labels["openvino"] != expected).mean() < 1e-4  # of the model itself


def test_an_onnx_file_is_written_beside_the_libraries_of_onnx_alone(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for _ in range(2):
        command = ("export", "hippocampus", "--as", "onnx", "-o", tmp_path / "a.onnx", "--json", "--memory", "200MiB")
        done = run("apps.imaging", *command)
        assert done.code == 0, done.err
    kept(done.record)
    assert done.record["measured"]["peak_bytes"] < 100 * MIB  # without torch
    says(run("apps.imaging", *command[:-1], "16MiB").err, "16.0 MiB", "--memory")


def test_nothing_is_written_into_the_model_or_where_it_cannot_be(quick, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for form, name in (("onnx", "model/network.onnx"), ("bundle", "model/new")):
        with refused(UsageError, tmp_path / name, "model's folder"):
            ExportRequest(model=tmp_path / "model", output=tmp_path / name, form=form, threads=1)
    (tmp_path / "file").touch()
    done = quick("apps.imaging", "export", "hippocampus", "--as", "onnx", "-o", tmp_path / "file" / "a.onnx")
    assert (done.code, done.err.count("\n")) == (2, 1)
    says(done.err, "-o", tmp_path / "file" / "a.onnx")


@pytest.mark.parametrize(
    ("form", "name", "fact"),
    [
        ("onnx", "folder", "NAME.onnx"),
        ("onnx", "a.txt", "NAME.onnx"),
        ("bundle", "a.txt", "folder"),
        ("bundle", "folder", "empty"),
        ("nnunet", "new", "--as bundle"),
    ],
)
def test_output_of_another_kind_is_refused(form: str, name: str, fact: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "b").touch()
    (tmp_path / "a.txt").touch()
    with refused(UsageError, fact):
        ExportRequest(model=tmp_path, output=tmp_path / name, form=form, threads=1)
