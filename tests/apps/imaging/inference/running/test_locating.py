"""A coarse pass first: the labels of the whole image in fewer tiles, or the whole image where it is unsure."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from apps.imaging.inference.focus import Unsure
from apps.imaging.inference.running import several
from common.errors import UsageError
from tests.apps.imaging import bundle_folder
from tests.apps.imaging.helpers import output_file, random_model, read_labels, write_nifti
from tests.apps.imaging.in_process import done
from tests.messages import refused, says
from tests.promise import kept

MODULE = "apps.imaging"


@pytest.fixture(scope="module")
def hippocampus(dataset: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """A real image on a larger grid of its own noise, the options of all commands, and the labels of the whole."""
    import nibabel as nib

    folder = tmp_path_factory.mktemp("located")
    whole = nib.load(dataset("msd-hippocampus") / "imagesTr" / "hippocampus_001.nii.gz")
    values = np.asarray(whole.dataobj)
    around = np.pad(values, ((12, 12), (4, 4), (12, 12)), "reflect")
    image = write_nifti(folder / "image.nii.gz", np.ascontiguousarray(around), whole.affine)
    options = ["infer", image, "-m", "hippocampus", "--tile", "16,16,16", "--engine", "openvino", "--overlap", "0.25"]
    done(*options, "-o", folder / "whole")
    labels = read_labels(output_file(folder / "whole"))
    assert len(np.unique(labels)) == 3
    return options, labels


def test_labels_are_those_of_the_whole_image(run: Any, hippocampus: Any, tmp_path: Path) -> None:
    """The same model finds the box, so that everything is inside it."""
    options, _ = hippocampus
    words = ["--crop-model", "hippocampus", "--crop-margin", "4", "--remove-small", "0.05", "--preview", "--statistics"]
    done(*options, *words[4:], "-o", tmp_path / "whole")
    given = run(MODULE, *options, *words, "-o", tmp_path / "out", "--memory", "1GiB", "--json")
    assert given.code == 0, given.err
    kept(given.record)
    assert "unsure" not in given.err
    expected = read_labels(output_file(tmp_path / "whole"))
    np.testing.assert_array_equal(read_labels(output_file(tmp_path / "out")), expected)
    tables = [json.loads(output_file(tmp_path / name, ending=".json").read_text()) for name in ("out", "whole")]
    assert tables[0] == tables[1]
    for margin, status in (("4", "skipped"), ("5", "done")):
        results, _ = done(*options, *words, "--crop-margin", margin, "-o", tmp_path / "out")
        assert results["studies"][0]["status"] == status


def test_several_models_look_in_the_box_of_one_coarse_pass(run: Any, hippocampus: Any, tmp_path: Path) -> None:
    options, labels = hippocampus
    entries = [{"value": value, "name": f"part {value}", "from": {"model": value, "label": value}} for value in (1, 2)]
    (tmp_path / "map.json").write_text(json.dumps({"classes": entries, "overlap": "later"}))
    words = ["-m", "hippocampus", "--labels", tmp_path / "map.json"]
    words += ["--crop-model", "hippocampus", "--crop-margin", "4"]
    given = run(MODULE, *options, *words, "-o", tmp_path / "out", "--memory", "1GiB", "--json")
    assert given.code == 0, given.err
    kept(given.record)
    assert "unsure" not in given.err and given.err.count("coarse") <= 1
    np.testing.assert_array_equal(read_labels(output_file(tmp_path / "out")), labels)


def test_a_box_that_cuts_what_is_found_is_not_used(hippocampus: Any, tmp_path: Path) -> None:
    options, labels = hippocampus
    words = ["--crop-model", "hippocampus", "--crop-margin", "0"]
    _, lines = done(*options, *words, "-o", tmp_path / "out")
    says("\n".join(lines), "unsure", "cuts through", "the whole image is segmented")
    np.testing.assert_array_equal(read_labels(output_file(tmp_path / "out")), labels)


def test_a_coarse_pass_that_finds_nothing_is_unsure(hippocampus: Any, tmp_path: Path) -> None:
    options, _ = hippocampus
    image = write_nifti(tmp_path / "flat.nii.gz", np.zeros((40, 40, 40), np.int16))
    words = [options[0], image, *options[2:]]
    _, lines = done(*words, "--crop-first", "-o", tmp_path / "out")
    done(*words, "-o", tmp_path / "whole")
    expected = read_labels(output_file(tmp_path / "whole"))
    assert "unsure" in "\n".join(lines) or expected.any()
    np.testing.assert_array_equal(read_labels(output_file(tmp_path / "out")), expected)


def test_an_unsure_pass_runs_once_and_keeps_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    networks: list[Any] = []

    def locate(*args: object) -> None:
        network = {1}
        networks.append(weakref.ref(network))
        raise Unsure("it found nothing")

    monkeypatch.setattr(several, "locate", locate)
    request: Any = SimpleNamespace(
        digest=str, own=dict, options=SimpleNamespace(crop_margin=1), inputs=SimpleNamespace(grids={"a": None})
    )
    session: Any = SimpleNamespace(plan=SimpleNamespace(knobs={}))
    study: Any = SimpleNamespace(study="a")
    boxes: dict[str, Any] = {}
    for _ in range(2):
        try:
            several._box(request, session, study, "coarse", boxes)
        except Unsure as why:
            assert str(why) == "it found nothing"
    assert len(networks) == 1 and networks[0]() is None


@pytest.mark.parametrize("case", ["probabilities", "bits", "spacing"])
def test_what_it_is_not_for_is_refused(tmp_path: Path, case: str) -> None:
    image, model = write_nifti(tmp_path / "image.nii.gz", np.ones((24, 24, 24), np.int16)), tmp_path / "model"
    options: list[object] = ["--crop-first"]
    if case == "bits":
        after = (bundle_folder.SIGMOID, bundle_folder.INVERT, bundle_folder.THRESHOLD)
        bundle_folder.write(model, after=after, channel_names=["core", "whole", "enhancing"])
    elif case == "spacing":
        bundle_folder.write(model, before=(bundle_folder.RANGE,))
    else:
        random_model(model)
    options += ["--probabilities"] if case == "probabilities" else []
    with refused(UsageError, "--crop-first"):
        done("infer", image, "-m", model, "-o", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
