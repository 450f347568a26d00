"""A file that is no ONNX network is told from one before anything is measured."""

from pathlib import Path

import numpy as np
import pytest

from apps.imaging.inference.options import InferOptions
from apps.imaging.inference.request import ModelChoice
from apps.imaging.models.onnx_file import check_network
from common.errors import BadInput
from common.model_folder import shipped_models
from tests.messages import refused

NETWORK = shipped_models()["hippocampus"] / "network.onnx"


def test_a_network_is_accepted() -> None:
    check_network(NETWORK)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_network_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    content = NETWORK.read_bytes()
    (tmp_path / "network.onnx").write_bytes(content[: int(share * len(content))])
    with refused(BadInput, tmp_path / "network.onnx", "ONNX"):
        check_network(tmp_path / "network.onnx")


def test_noise_is_refused(tmp_path: Path) -> None:
    for seed in range(50):
        (tmp_path / "network.onnx").write_bytes(np.random.default_rng(seed).bytes(20_000))
        with refused(BadInput, "network.onnx"):
            check_network(tmp_path / "network.onnx")


def test_a_network_that_no_engine_reads_is_bad_input(quick, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Its outermost level is right, so the engine finds the damage; while measuring, inside the walls."""
    import hashlib
    import json
    import shutil

    from tests.apps.imaging.helpers import write_nifti

    model = tmp_path / "model"
    shutil.copytree(NETWORK.parent, model)
    content = bytearray(NETWORK.read_bytes())
    at = content.index(b"Conv")
    content[at : at + 4] = b"Ghst"
    (model / "network.onnx").write_bytes(content)
    manifest = json.loads((model / "model.json").read_text())
    manifest["files"]["network.onnx"]["sha256"] = hashlib.sha256(content).hexdigest()
    (model / "model.json").write_text(json.dumps(manifest))
    ModelChoice.of(InferOptions(inputs=(tmp_path,), model=model, output=tmp_path / "out"), model)
    image = write_nifti(tmp_path / "a.nii", np.random.default_rng(0).integers(0, 99, (16, 16, 16)).astype(np.int16))
    done = quick("apps.imaging", "infer", image, "-m", model, "-o", tmp_path / "out")
    assert done.code == 4, done.err
    assert str(model) in done.err and "damaged" in done.err and len(done.err.splitlines()) == 1
