"""Real DICOM archives, unpacked once."""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def archives(dataset: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """``archives("mr-t1", "SAG-anon")`` is a folder of a real archive, which is unpacked once."""
    unpacked: dict[str, Path] = {}

    def folder(archive: str, name: str) -> Path:
        if archive not in unpacked:
            (found,) = dataset("dicom").glob(f"{archive}*.tar.xz")
            unpacked[archive] = tmp_path_factory.mktemp("dicom")
            with tarfile.open(found) as tar:
                tar.extractall(unpacked[archive], filter="data")
        return unpacked[archive] / name

    return folder
