"""The seed's workload: both ways of training are one training, and the bytes are those that were promised."""

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch.nn import functional

from common.bench.cifar import dataset as cifar
from common.bench.cifar import figure, networks
from common.bench.cifar.train import HEAP_SLACK, RECIPES, SHIFT, CifarWorkload, augmented, make_step
from common.memory.process.budget import MIB

BATCH, STEPS = 48, 4


@pytest.fixture(scope="module", autouse=True)
def _at_hand(dataset: Callable[[str], Path]) -> None:
    dataset(cifar.NAME)


@pytest.fixture(scope="module")
def images() -> cifar.Images:
    return cifar.Images("train", decode=True, limit=STEPS * BATCH)


def _plain(images: cifar.Images) -> list[float]:
    """The loop of ``cifar_plain``: everything as float32, the mean loss of the whole batch."""
    torch.manual_seed(0)
    network = networks.small()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    pixels = cifar.normalise(torch.from_numpy(images[range(len(images))]))
    labels = torch.from_numpy(images.labels).long()
    losses = []
    for batch in torch.from_numpy(cifar.order(len(images), seed=0, epoch=0)).split(BATCH):
        loss = functional.cross_entropy(network(pixels[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def _controlled(images: cifar.Images, micro_batch: int) -> list[float]:
    torch.manual_seed(0)
    _, step = make_step("small", micro_batch=micro_batch)
    order = cifar.order(len(images), seed=0, epoch=0)
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    return [float(step([torch.from_numpy(images[b]), torch.from_numpy(images.labels[b])])) for b in batches]


def test_the_curve_is_the_plain_one(images: cifar.Images) -> None:
    plain = _plain(images)
    assert plain[0] == pytest.approx(np.log(10), rel=0.05)
    assert len(set(plain)) == STEPS
    np.testing.assert_allclose(_controlled(images, BATCH), plain, rtol=1e-6)


@pytest.mark.parametrize("micro_batch", [20, 7])
def test_micro_batches_do_not_change_the_curve(images: cifar.Images, micro_batch: int) -> None:
    np.testing.assert_allclose(_controlled(images, micro_batch), _plain(images), rtol=1e-5)


def test_jpeg_and_pixels_are_the_same_images(images: cifar.Images) -> None:
    files = cifar.Images("train", decode=False, limit=STEPS * BATCH)
    some = np.array([0, 100, 5])
    assert np.array_equal(files[some], images[some])
    assert np.array_equal(files.labels, images.labels)
    assert images[some].shape == (3, *cifar.SHAPE)
    assert sorted(np.bincount(images.labels)) == [STEPS * BATCH // 10] * 8 + [STEPS * BATCH // 10 + 1] * 2


def test_normalised_images_have_the_set_s_moments() -> None:
    part = cifar.Images("test", decode=True, limit=2000)
    values = cifar.normalise(torch.from_numpy(part[range(2000)]))
    assert values.mean((0, 2, 3)).abs().max() < 0.05
    assert (values.std((0, 2, 3)) - 1).abs().max() < 0.05


def test_augmented_images_are_windows_of_the_padded_ones(images: cifar.Images) -> None:
    pixels = images[range(6)]
    moved = augmented(pixels, np.random.default_rng(3))
    padded = np.pad(pixels, ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)), "reflect")
    for before, after in zip(padded, moved, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(before, (32, 32), axis=(1, 2))
        flat = windows.transpose(1, 2, 0, 3, 4).reshape(-1, *cifar.SHAPE)
        assert any(np.array_equal(after, w) or np.array_equal(after, w[..., ::-1]) for w in flat)
    assert np.array_equal(moved, augmented(pixels, np.random.default_rng(3)))


def test_the_large_network_starts_white(images: cifar.Images) -> None:
    network = networks.build("large")
    networks.whiten(network, images[range(len(images))])
    with torch.no_grad():
        network[1].bias.zero_()
        first = network[1](network[0](torch.from_numpy(images[range(len(images))])))[:, :12]
    covariance = torch.cov(first.transpose(0, 1).reshape(12, -1))
    # Directions of hardly any variance stay below one, on purpose; the strong ones are white.
    assert torch.diagonal(covariance).max() == pytest.approx(1, abs=0.1)
    assert (covariance - torch.diag(torch.diagonal(covariance))).abs().max() < 0.05
    assert not network[1].weight.requires_grad
    assert network(torch.zeros(1, *cifar.SHAPE, dtype=torch.uint8)).shape == (1, cifar.CLASSES)


def test_batch_normalisation_is_never_split() -> None:
    files = {"train": (50_000, 1), "test": (10_000, 1)}
    assert {setting["micro_batch"] for setting in CifarWorkload("large", 256, files, 1).settings()} == {256}
    assert {setting["micro_batch"] for setting in CifarWorkload("small", 100, files, 1).settings()} == {100, 50, 25, 13}
    assert RECIPES["large"].rate(1.0) == 0 and RECIPES["large"].rate(0.2) == 1 and RECIPES["small"].rate(0.7) == 1


def test_a_run_is_predicted_and_a_low_ceiling_refused(run: Callable) -> None:
    short = ("--limit", 512, "--epochs", 1, "--threads", 1, "--json")
    done = run("common.bench.cifar.train", "--memory", "1GiB", *short)
    assert done.code == 0, done.err
    measured, plan = done.record["measured"], done.record["plan"]
    assert plan["knobs"] == {"micro_batch": 256, "accumulate": 1, "images": "pixels", "allocator": "heap"}
    phases = {phase["name"]: phase["peak_bytes"] for phase in measured["phases"]}
    terms = {term["name"]: term["bytes"] for term in plan["terms"]}
    assert terms["pixels"] == 2 * 512 * 3072
    predicted = sum(t["bytes"] for t in plan["terms"] if "train" in t["phases"] or "*" in t["phases"])
    assert phases["train"] <= predicted <= phases["train"] + 24 * MIB + HEAP_SLACK
    assert len(done.record["results"]["losses"]) == 1
    refused = run("common.bench.cifar.train", "--memory", "200MiB", *short)
    assert refused.code == 3
    smallest = refused.record["smallest_feasible_bytes"]
    assert smallest > 200 * MIB and f"--memory {smallest // MIB}MiB" in refused.err


def test_the_plain_script_says_what_it_holds(run: Callable) -> None:
    done = run("common.bench.cifar.plain", "--limit", 600, "--epochs", 1)
    assert done.code == 0, done.err
    result = json.loads(done.out)
    # 1,200 images as float32, and a batch's activations; nothing near the whole set's 705 MiB.
    assert 1200 * 3072 * 4 < result["above_floor_bytes"] < 200 * MIB
    assert result["accuracy"] == result["accuracies"][-1]


def test_without_the_set_one_line_says_so(run: Callable, tmp_path: Path) -> None:
    nowhere = {"PEAKLINE_DATA": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = run("common.bench.cifar.train", "--memory", "1GiB", env=nowhere)
    assert done.code == 4
    assert done.err.count("\n") == 1 and "cifar10" in done.err
    (tmp_path / "cifar10").mkdir()
    for part in ("train", "test"):
        (tmp_path / "cifar10" / f"{part}.npz").write_bytes(b"not an archive")
    done = run("common.bench.cifar.train", "--memory", "1GiB", env=nowhere)
    assert done.code == 4
    assert "train.npz" in done.err and done.err.count("\n") == 1


def test_the_figure_has_a_curve_and_a_bar_for_each_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = {"accuracies": [0.4, 0.6], "accuracy": 0.6, "above_floor_bytes": 800 * MIB}
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    (tmp_path / "run.json").write_text(json.dumps({"results": plain | {"above_floor_bytes": 200 * MIB}}, indent=1))
    assert figure.main([f"plain={tmp_path / 'plain.json'}", f"controlled={tmp_path / 'run.json'}"]) == 0
    drawn = capsys.readouterr().out
    tree = ElementTree.fromstring(drawn)
    widths = [float(box.attrib["width"]) for box in tree.iter("{http://www.w3.org/2000/svg}rect")][1:]
    assert widths == [220, 55]
    assert drawn.count("<polyline") == 2 and "800 MiB" in drawn and "200 MiB" in drawn
