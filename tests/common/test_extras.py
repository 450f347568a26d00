"""A missing extra is named before work begins, by every command that needs one."""

from pathlib import Path

import pytest

from apps.imaging.inference.options import InferOptions
from apps.recsys import cli
from apps.recsys.planning.service.request import ServeRequest
from common import extras
from common.errors import UsageError


def test_installed_modules_pass_and_missing_ones_are_named() -> None:
    extras.require("serve", "json", "argparse", purpose="recsys serve")
    with pytest.raises(UsageError) as error:
        extras.require("serve", "json", "no_such_module", purpose="recsys serve")
    for fact in ("recsys serve", "'serve'", "no_such_module", "peakline[serve]"):
        assert fact in str(error.value)
    assert "json" not in str(error.value)


def test_commands_name_the_extra_that_they_lack(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("common.extras.find_spec", lambda name: None)
    args = cli.parser().parse_args(["serve", str(tmp_path)])
    with pytest.raises(UsageError, match=r"peakline\[serve\]"):
        ServeRequest.of(args)
    basic = {"inputs": (tmp_path / "a.nii.gz",), "model": tmp_path / "model", "output": tmp_path / "out"}
    InferOptions(**basic)
    for engine in ("openvino", "onnxruntime"):
        with pytest.raises(UsageError, match=r"peakline\[engines\]"):
            InferOptions(**basic, engine=engine)
    with pytest.raises(UsageError, match=r"peakline\[dicom\]"):
        InferOptions(**basic, output_types=("nifti", "dicom-seg"))
