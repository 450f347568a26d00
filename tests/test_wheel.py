"""The built distribution: what is in it, and that the installed wheel works outside the checkout."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from apps.imaging.training.data.synthetic import write_sample
from apps.recsys.data import synthetic
from common import __version__
from tests import house
from tests.machine import patience
from tests.messages import says
from tests.schemas import checked_record, read_record

PROJECT = tomllib.loads((house.ROOT / "pyproject.toml").read_text("utf-8"))


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel in it, and an empty directory to work in."""

    environment: Path
    packages: Path
    work: Path

    def run(self, command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """A console script, from the empty directory."""
        return self._run(self.environment / "bin" / command, *arguments)

    def python(self, code: str) -> str:
        """Run code in the environment's interpreter and return what it prints."""
        done = self._run(self.environment / "bin" / "python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _run(self, *words: object) -> subprocess.CompletedProcess[str]:
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PEAKLINE"))}
        return subprocess.run(
            list(map(str, words)), cwd=self.work, env=variables, capture_output=True, text=True, timeout=patience(120)
        )


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source distribution, made from a copy of the tree, and the wheel that is made from it."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in house.tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(house.ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=patience(300))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel alone in an environment of its own, which borrows the libraries of this one."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place / "venv", with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(place / "venv" / "bin" / "python")]
    command = [*pip, "install", "--quiet", "--no-deps", "--no-index", str(distributions[1])]
    subprocess.run(command, check=True, capture_output=True)
    (packages,) = (place / "venv" / "lib").glob("python*/site-packages")
    # The directory is only added to sys.path: its own .pth files, an editable install's among them, are not read.
    libraries = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "libraries.pth").write_text("\n".join(libraries) + "\n")
    (place / "work").mkdir()
    return Installed(place / "venv", packages, place / "work")


def test_every_package_is_listed() -> None:
    made = {str(Path(name).parent).replace("/", ".") for name in house.suite_modules()}
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed == {name for name in made if ".bench" not in name} | {"common.data"}


def test_the_wheel_has_the_data_and_no_benchmarks(distributions: tuple[Path, Path]) -> None:
    source, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    wanted = {
        name for name in house.tracked() if name.startswith(("apps/", "common/", "data/")) and "/bench/" not in name
    }
    moved = {name.replace("data/", "common/data/", 1) if name.startswith("data/") else name for name in wanted}
    assert {name for name in inside if ".dist-info/" not in name} == moved
    listing = subprocess.run(["tar", "tzf", source], capture_output=True, text=True, check=True).stdout.splitlines()
    kept = {name.partition("/")[2] for name in listing}
    assert {"Makefile", "constraints.txt", "CITATION.cff", "tests/house.py", "common/bench/harness.py"} <= kept


def test_the_wheel_is_what_runs(installed: Installed) -> None:
    code = "import common, apps.recsys.cli, apps.imaging.cli; print(common.__file__, apps.recsys.cli.__file__)"
    for place in installed.python(code).split():
        assert Path(place).is_relative_to(installed.packages)
    assert installed.python("from common.resources import data_folder; print(data_folder())") == str(
        installed.packages / "common" / "data"
    )


@pytest.mark.parametrize("command", ["recsys", "imaging"])
def test_help_and_fetch(command: str, installed: Installed) -> None:
    shown = installed.run(command, "--help")
    assert shown.returncode == 0 and all(word in shown.stdout for word in ("train", "fetch", "bench"))
    listed = installed.run(command, "fetch")
    known = {"recsys": "ml-1m", "imaging": "msd-hippocampus"}[command]
    assert listed.returncode == 0 and f"{known}: " in listed.stdout


def test_a_recommender_from_the_wheel(installed: Installed) -> None:
    rows, _ = synthetic.write(installed.work, users=100, items=60)
    done = installed.run("recsys", "train", rows.name, "-o", "model", "--factors", 8, "--memory", "300MiB", "--json")
    assert done.returncode == 0, done.stderr
    record = checked_record(json.loads(done.stdout))
    assert record["peakline"] == __version__ and record["within_budget"]
    asked = installed.run("recsys", "similar", "model", "--item", 3, "-k", 4, "--memory", "300MiB")
    assert asked.returncode == 0 and asked.stdout.count("\n") == 5


def test_a_segmentation_by_the_shipped_models_name(installed: Installed) -> None:
    write_sample(installed.work / "sample", cases=1)
    image = "sample/imagesTr/sample_001.nii.gz"
    done = installed.run("imaging", "infer", image, "-m", "hippocampus", "-o", "out", "--memory", "400MiB")
    assert done.returncode == 0, done.stderr
    says(done.stderr, "hippocampus", str(installed.packages / "common/data/models/hippocampus"))
    (study,) = read_record(installed.work / "out" / "run.json")["results"]["studies"]
    assert study["status"] == "done" and len(list((installed.work / "out").rglob("*.nii.gz"))) == 1


def test_the_quick_bench_travels_and_the_suites_do_not(installed: Installed) -> None:
    synthetic.write(installed.work, users=100, items=60)
    done = installed.run(
        "recsys", "bench", "--quick", "interactions.csv", "--model", "popularity", "--memory", "300MiB"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["train", "evaluate", "recommend"]
    for command in ("recsys", "imaging"):
        refused = installed.run(command, "bench", "--full")
        assert refused.returncode == 2 and refused.stderr.count("\n") == 1
        says(refused.stderr, "--full", "checkout", "--quick")


def test_extras_and_groups() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    named = {"serve", "dicom", "engines", "int8", "nnunet", "bundle", "zst", "compressed", "tensorboard"}
    named |= {"jpeg", "all"}
    assert extras.keys() == named
    (everything,) = extras["all"]
    assert set(everything.removeprefix("peakline[").removesuffix("]").split(",")) == extras.keys() - {"all", "jpeg"}
    assert {"test", "lint", "bench", "peers"} <= PROJECT["dependency-groups"].keys()


def test_the_version_is_said_alike_everywhere() -> None:
    citation: dict[str, Any] = yaml.safe_load((house.ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__ and citation["license"] == PROJECT["project"]["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert f"## [{__version__}]" in (house.ROOT / "CHANGELOG.md").read_text("utf-8")
