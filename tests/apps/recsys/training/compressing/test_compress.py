"""``recsys compress``: models of every kind with vectors become codes that every command reads."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.models import weights
from apps.recsys.models.als import als_matrices
from apps.recsys.models.coded import implicit_file, stored
from apps.recsys.models.recommender import Recommender, load_manifest
from apps.recsys.planning.compressing.request import CompressRequest
from apps.recsys.serving.service import RecommenderService
from apps.recsys.training.compressing import discrete
from apps.recsys.training.compressing.least_squares import STATE, Checkpoint
from common.compression.row_grid import Grid
from common.compression.row_levels import levels
from common.errors import BadInput, UsageError
from common.files import sha256
from tests.apps.recsys.conftest import Trained
from tests.apps.recsys.in_process import InProcess, done
from tests.messages import says
from tests.promise import kept

Run = Callable[..., Any]
KINDS: dict[str, tuple[object, ...]] = {
    "ials": ("--set", "iterations=4", "--set", "frequency_scaling=1"),
    "bpr": ("--set", "iterations=10", "--set", "learning_rate=0.05"),
    "linear spectral": ("--set", "form=spectral", "--set", "degree_power=0.5", "--set", "saturation=1"),
    "linear filter": ("--set", "form=filter", "--set", "degree_power=0.5", "--set", "saturation=1"),
    "embedding": ("--epochs", 2, "--set", "tables=2", "--table", "int8"),
    "embedding with a prior": ("--epochs", 2, "--set", "user_vectors=learned", "--set", "popularity=0.5"),
}
FACTORS, TARGET = 32, 25


_TRAINED: dict[tuple[object, ...], Path] = {}
"""Models of this session by their options."""


def trained_on(data: Path, model: Path, kind: str, *more: object) -> Path:
    """A copy of a model of Last.fm, which is trained once, in this process."""
    options = ("--model", kind.split()[0], "--factors", FACTORS, *KINDS[kind], *more)
    if options not in _TRAINED:
        done("train", data / "plays.csv", "-o", model, *options)
        _TRAINED[options] = Path(shutil.copytree(model, model.with_name("trained")))
    else:
        shutil.copytree(_TRAINED[options], model)
    return model


def digests(folder: Path) -> dict[str, str]:
    """Every file of a folder."""
    return {path.name: sha256(path) for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(dataset: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    """An item takes its bytes; metrics stay; what is asked is answered from the codes; new items get codes too."""
    data, model, out = dataset("lastfm"), tmp_path / "model", tmp_path / "out"
    trained_on(data, model, kind, "--split", "user-holdout")
    before = digests(model)
    tables = 2 if kind == "embedding" else 1
    target = TARGET * tables + 4 * ("prior" in kind)
    results, said = done("compress", model, "--target-bytes", target, "-o", out)
    assert digests(model) == before
    manifest = load_manifest(out)
    assert sum(manifest["codes"].values()) == TARGET * tables and results["item_bytes"] == target
    header, _ = weights._header(out / weights.WEIGHTS)
    rows = sum(header[name]["data_offsets"][1] - header[name]["data_offsets"][0] for name in manifest["codes"])
    most = (TARGET - 1) * tables * manifest["items"]
    assert 0.96 * most < rows <= most
    classes = len(results["bits"][next(iter(manifest["codes"]))])
    assert (classes > 1) == (kind in ("ials", "bpr"))
    was, now = results["before"]["ndcg@20"], results["metrics"]["ndcg@20"]
    assert now > 0.9 * was > 0, said
    assert any(f"{was:.4f} -> {now:.4f}" in line for line in said)
    if kind == "ials":
        again, _ = done("evaluate", out)
        assert again["metrics"]["ndcg@20"] == pytest.approx(now)
    service, old = RecommenderService(out, manifest), RecommenderService(model, load_manifest(model))
    items, values = service.recommender.history.items(3), service.recommender.history.values(3)
    scorer = service.recommender.scorer
    scores = scorer.scores([(items, values)], scorer.workspace(1))[0].copy()
    theirs = old.recommender.scorer.scores([(items, values)], old.recommender.scorer.workspace(1))[0]
    assert np.corrcoef(scores, theirs)[0, 1] > 0.9
    assert service.recommender.similar(7, 3) and len(service.recommender.recommend(items, values, 5)) == 5
    vectors = service.recommender.item_vectors
    if vectors is not None:
        codes = stored.read(out / weights.WEIGHTS, next(iter(manifest["codes"])))
        assert codes.width == manifest["factors"]
        assert vectors.shape == (manifest["items"], manifest["factors"] + ("prior" in kind))

    new = tmp_path / "new.csv"
    new.write_text("userID,artistID,weight\n" + "".join(f"{user},999999,9\n" for user in (2, 4, 5, 6, 8)))
    updated = tmp_path / "updated"
    done("update", out, new, "-o", updated, "--user-col", "userID", "--item-col", "artistID", "--value-col", "weight")
    grown = load_manifest(updated)
    assert grown["items"] == manifest["items"] + 1 and grown["codes"] == manifest["codes"]
    extended = Recommender(updated, grown)
    assert len(extended.recommend(items, values, 5)) == 5
    if not kind.startswith("linear"):
        name = next(iter(manifest["codes"]))
        first, second = (stored.read(folder / weights.WEIGHTS, name) for folder in (out, updated))
        every = np.arange(len(first))
        assert (first.decode(every) == second.decode(every)).all() and (first.scales == second.scales[:-1]).all()
        assert second.decode(np.array([len(first)])).any()


def test_codes_stand_for_the_vectors(dataset: Callable[[str], Path], tmp_path: Path) -> None:
    """With 8 bits the scores are those of the model, to what rounding changes; with 2 bits they are not as near."""
    model = trained_on(dataset("lastfm"), tmp_path / "model", "ials")
    whole = Recommender(model, load_manifest(model))
    users = range(0, 1800, 60)
    histories = [(whole.history.items(user), whole.history.values(user)) for user in users]
    exact = whole.scorer.scores(histories, whole.scorer.workspace(len(histories))).copy()
    errors = []
    for bits in (8, 2):
        out = tmp_path / str(bits)
        results, _ = done("compress", model, "--bits", bits, "-o", out, "--rounds", 0)
        assert results["item_bytes"] == FACTORS * bits // 8 + 1 and "in_common" in results
        found = Recommender(out, load_manifest(out))
        scores = found.scorer.scores(histories, found.scorer.workspace(len(histories)))
        errors.append(float(np.linalg.norm(scores - exact) / np.linalg.norm(exact)))
    assert errors == sorted(errors) and errors[0] < 0.02 and 0.05 < errors[1] < 0.5


def losses_of(confidences: Any, values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Loss of each row of iALS with a regularisation of 3, from its definition, in float64."""
    values, dense = values.astype(np.float64), confidences.toarray().astype(np.float64)
    wrong = np.where(dense > 0, dense, 1) * ((dense > 0) - values @ users.T.astype(np.float64)) ** 2
    return np.asarray(wrong.sum(1) + 3 * (values**2).sum(1))


def small_problem() -> tuple[Any, np.ndarray]:
    """Confidences of 60 items by 40 users, and vectors of the users of 9 numbers."""
    import scipy.sparse

    confidences = scipy.sparse.random(60, 40, 0.2, "csr", np.float32, 1)
    confidences.data[:] = 5
    return confidences, np.random.default_rng(0).standard_normal((40, 9)).astype(np.float32)


def test_descent_lowers_the_loss_of_every_row(dataset: Callable[[str], Path], tmp_path: Path) -> None:
    """The normal equations of items, made independently in float64."""
    confidences, users = small_problem()
    random = np.random.default_rng(1)
    bits = random.integers(0, 4, (2, 9)).astype(np.uint8)
    grid = Grid(bits, np.ones(9, np.float32), np.array([0, 128], np.uint8), np.array([0.3, 1], np.float32))
    found = np.zeros((60, 9), np.uint8)
    kinds = (np.arange(60) % 2).astype(np.uint8)
    scales = np.where(kinds, 0.3, 0.2).astype(np.float32)
    hyper = {"regularization": 3.0, "frequency_scaling": 0.0}

    def losses() -> np.ndarray:
        return losses_of(confidences, grid.decoded(found, scales, kinds), users)

    before = losses()
    discrete.descend(confidences, found, scales, kinds, users, grid, hyper, threads=1)
    after = losses()
    empty = np.diff(confidences.indptr) == 0
    assert (after[~empty] < before[~empty]).all() and not scales[empty].any()
    for number in range(2):
        own = found[kinds == number].max(0)
        assert all(own[column] < len(levels(int(count))) for column, count in enumerate(bits[number]))
        some = scales[(kinds == number) & ~empty] / (0.2, 0.3)[number]
        assert some.min() >= 0.499 and some.max() <= 2.001
    settled = after.copy()
    discrete.descend(confidences, found, scales, kinds, users, grid, hyper, threads=2)
    assert (losses() <= settled * (1 + 1e-5)).all()


def test_on_disk_and_in_memory_are_the_same(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("compress", trained.model, "--target-bytes", 9, "-o", tmp_path / "memory")
    monkeypatch.setattr("tests.apps.recsys.in_process.next", lambda settings: list(settings)[-1], raising=False)
    done("compress", trained.model, "--target-bytes", 9, "-o", tmp_path / "disk")
    assert sha256(tmp_path / "memory" / weights.WEIGHTS) == sha256(tmp_path / "disk" / weights.WEIGHTS)


def test_it_keeps_its_ceiling(run: Run, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("apps.recsys", "compress", trained.model, "--target-bytes", 9, "-o", out, "--json")
    refusal = run(*command, "--memory", "50MiB")
    assert refusal.code == 3 and not out.exists()
    smallest = refusal.record["smallest_feasible_bytes"]
    made = run(*command, "--memory", smallest)
    assert made.code == 0, made.err
    kept(made.record)
    assert not list(tmp_path.glob(".*"))
    for asked in (("evaluate",), ("recommend", "--user", "u1", "--strict"), ("similar", "--item", "i1")):
        answer = run("apps.recsys", asked[0], out, *asked[1:], "--json")
        if answer.code == 0:
            kept(answer.record)


def test_interrupted_it_leaves_the_model_and_goes_on(
    dataset: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after some items, and in the second round: the same command ends as an undisturbed one."""
    model, out = trained_on(dataset("lastfm"), tmp_path / "model", "ials"), tmp_path / "out"
    command = ("compress", model, "--target-bytes", 9, "--rounds", 2, "-o")
    monkeypatch.setattr(als_matrices.InMemory.__init__, "__defaults__", (20_000,))
    done(*command, tmp_path / "undisturbed")
    before, least = digests(model), [(0, 1), (1, 0)]
    monkeypatch.setattr(Checkpoint, "due", lambda self: True)

    def stopping(session: InProcess) -> bool:
        try:
            with np.load(session.request.output / STATE) as state:
                return tuple(state["progress"].tolist()) >= least[0]
        except FileNotFoundError:
            return False

    monkeypatch.setattr(InProcess, "stopping", property(stopping))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            done(*command, out)
        assert digests(model) == before and [path.name for path in out.iterdir()] == [STATE.parts[0]]
        least.reverse()
    monkeypatch.setattr(InProcess, "stopping", False)
    _, said = done(*command, out)
    assert any("continuing after round" in line for line in said)
    assert sha256(out / weights.WEIGHTS) == sha256(tmp_path / "undisturbed" / weights.WEIGHTS)
    assert not (out / STATE).parent.exists()
    # A state of other settings is not continued, nor one that is damaged.
    for more, text in ((("--dimensions", 20), None), ((), b"PK damaged")):
        other = tmp_path / str(len(more))
        (other / STATE).parent.mkdir(parents=True)
        if text is None:
            monkeypatch.setattr(InProcess, "stopping", property(stopping))
            with pytest.raises(KeyboardInterrupt):
                done(*command, other)
            monkeypatch.setattr(InProcess, "stopping", False)
        else:
            (other / STATE).write_bytes(text)
        _, said = done(*command, other, *more)
        assert not any("continuing" in line for line in said)


@pytest.mark.parametrize("kind", ["ials", "embedding"])
def test_a_large_catalogue_is_scanned(
    dataset: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Lists by the scan are those of all scores, for users with and without a filter, and so are similar items."""
    model, out = trained_on(dataset("lastfm"), tmp_path / "model", kind), tmp_path / "out"
    with pytest.raises(UsageError) as caught:
        done("compress", model, "--bits", 2, "-o", out, "--scan")
    says(str(caught.value), "17,632", "65,536")
    monkeypatch.setattr("apps.recsys.models.scan.stored.LEAST_ITEMS", 1000)
    done("compress", model, "--bits", 2, "-o", out, "--scan")
    manifest = load_manifest(out)
    scanned, whole = RecommenderService(out, manifest).recommender, Recommender(out, manifest)
    assert scanned.scans and not whole.scans
    allowed = np.arange(manifest["items"]) % 7 > 0
    for user in (0, 3, 500):
        history = whole.history.items(user), whole.history.values(user)
        for given in (None, allowed):
            one, other = (each.recommend(*history, 20, allowed=given) for each in (scanned, whole))
            np.testing.assert_allclose([s for _, s in one], [s for _, s in other], rtol=1e-5)
            assert len({item for item, _ in one} & {item for item, _ in other}) >= 19
    assert [item for item, _ in scanned.similar(7, 9)] == [item for item, _ in whole.similar(7, 9)]


def test_what_cannot_be_compressed(run: Run, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refusals: list[tuple[tuple[object, ...], tuple[str, ...]]] = [
        ((trained.model, "--target-bytes", 1), ("--target-bytes 1", "smallest is 2 bytes")),
        ((trained.model, "--bits", 2, "--dimensions", 17), ("--dimensions 17", "has 16")),
    ]
    for words, facts in refusals:
        with pytest.raises(UsageError) as caught:
            done("compress", *words, "-o", out)
        says(str(caught.value), *facts)
    with pytest.raises(UsageError, match="is the model"):
        done("compress", trained.model, "--bits", 2, "-o", trained.model)
    for name, fact in (
        ("inside", "model's folder"),
        ("deep/inside", "model's folder"),
        ("../out.npz", "a folder is made"),
    ):
        with pytest.raises(UsageError, match=fact):
            done("compress", trained.model, "--bits", 2, "-o", trained.model / name)
    every = [CompressRequest(model=trained.model, output=out, target_bytes=size, threads=1) for size in (17, 10**6)]
    sizes = [each.row_bytes(load_manifest(trained.model)) for each in every]
    assert sizes == [{weights.ITEMS: 16}] * 2  # 8 bits of each of 16 numbers are all that there is to take
    done("compress", trained.model, "--bits", 2, "-o", out)
    with pytest.raises(UsageError, match="compressed already"):
        done("compress", out, "--bits", 1, "-o", tmp_path / "again")
    with pytest.raises(BadInput, match="no such model folder"):
        done("compress", tmp_path / "nothing", "--bits", 1, "-o", tmp_path / "again")
    done("train", trained.interactions, "-o", tmp_path / "popular", "--model", "popularity")
    with pytest.raises(UsageError, match="no item vectors"):
        done("compress", tmp_path / "popular", "--bits", 1, "-o", tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", ["bits", "units", "scales", "firsts"])
def test_damaged_codes_are_refused(trained: Trained, tmp_path: Path, name: str) -> None:
    """Sizes and digests agree; only the numbers are wrong, or a tensor is missing."""
    out = tmp_path / "out"
    done("compress", trained.model, "--bits", 2, "-o", out)
    path = out / weights.WEIGHTS
    tensors = weights.read_all(path)
    changed = tensors[f"{weights.ITEMS}.{name}"]
    if name == "scales":
        del tensors[f"{weights.ITEMS}.scales"]
    else:
        changed[0] = np.nan if name == "units" else 9
    weights.write(path, tensors)
    manifest = json.loads((out / "model.json").read_text())
    manifest["files"][weights.WEIGHTS] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    (out / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=r"weights\.safetensors"):
        Recommender(out, load_manifest(out))


def test_a_model_that_gets_larger_is_made_and_said(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.model, tmp_path / "model")
    results, said = done("compress", tmp_path / "model", "--bits", 8, "-o", tmp_path / "out")
    assert results["item_bytes"] == 17 < results["item_bytes_before"] == 64
    assert not any("larger" in line for line in said)
    from apps.recsys.commands.compress import _lines

    assert any("larger" in line for line in _lines({**results, "file_bytes": 10**9}))


def test_it_serves(trained: Trained, tmp_path: Path) -> None:
    from tests.apps.recsys.running import serving

    out = tmp_path / "out"
    done("compress", trained.model, "--bits", 2, "-o", out)
    with serving(out) as (_, address):
        answer = subprocess.run(
            [sys.executable, "-c", "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())",
             f"{address}/health/ready"],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    assert answer.stdout


def saved(dataset: Callable[[str], Path], path: Path, kind: type = np.float32) -> Path:
    """Factors of Last.fm, as ``implicit`` saves them."""
    import scipy.sparse
    from implicit.cpu.als import AlternatingLeastSquares

    plays = np.genfromtxt(dataset("lastfm") / "plays.csv", delimiter=",", skip_header=1, usecols=(0, 1))
    users, items = (np.unique(plays[:, column], return_inverse=True)[1] for column in (0, 1))
    matrix = scipy.sparse.csr_matrix((np.ones(len(users), np.float32), (users, items)))
    model = AlternatingLeastSquares(
        factors=24, regularization=5, iterations=3, random_state=0, num_threads=1, dtype=kind
    )
    model.fit(matrix, show_progress=False)
    model.save(path)
    return path


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_factors_of_implicit(dataset: Callable[[str], Path], run: Run, tmp_path: Path, kind: type) -> None:
    """Products of what is decoded are nearly those of the library; what else it saved stays."""
    source, out = saved(dataset, tmp_path / "als.npz", kind), tmp_path / "small.npz"
    made = run("apps.recsys", "compress", source, "--bits", 8, "-o", out, "--json")
    assert made.code == 0, made.err
    kept(made.record)
    assert made.record["results"]["item_bytes"] == 25 and made.record["results"]["in_common"] > 0.9
    items, users = implicit_file.load(out)
    with np.load(source, allow_pickle=False) as whole, np.load(out, allow_pickle=False) as small:
        exact, found = whole["user_factors"][:300] @ whole["item_factors"].T, users[:300] @ items.T
        assert np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact)
        assert int(small["factors"]) == 24 and small["item_factors"].dtype == np.uint8
    with pytest.raises(BadInput, match="codes already"):
        done("compress", out, "--bits", 1, "-o", tmp_path / "again.npz")
    with pytest.raises(UsageError, match=r"\.npz"):
        done("compress", source, "--bits", 1, "-o", tmp_path / "folder")
    with pytest.raises(UsageError, match="--rounds"):
        done("compress", source, "--bits", 1, "--rounds", 2, "-o", tmp_path / "again.npz")


def test_files_that_are_no_factors(tmp_path: Path) -> None:
    good = np.ones((5, 4), np.float32)
    bad: dict[str, Any] = {
        "one side": {"item_factors": good},
        "other widths": {"item_factors": good, "user_factors": np.ones((3, 2), np.float32)},
        "integers": {"item_factors": good.astype(int), "user_factors": good},
        "one dimension": {"item_factors": good[0], "user_factors": good},
        "objects": {"item_factors": np.array([["a"]], object), "user_factors": good},
        "not finite": {"item_factors": good * np.nan, "user_factors": good},
    }
    source, out = tmp_path / "model.npz", tmp_path / "out.npz"
    for what, arrays in bad.items():
        np.savez(source, **arrays)
        with pytest.raises(BadInput) as caught:
            done("compress", source, "--bits", 1, "-o", out)
        assert str(source) in str(caught.value) and "\n" not in str(caught.value), what
    np.savez(source, item_factors=good, user_factors=good)
    content = source.read_bytes()
    for broken in (b"", b"no archive", content[:-40], content[:60] + b"\0" * 60 + content[120:]):
        source.write_bytes(broken)
        with pytest.raises(BadInput, match=r"model\.npz"):
            done("compress", source, "--bits", 1, "-o", out)
    assert not out.exists()
