"""Batches cover the data, a training that stopped continues as if it had not, and what was trained is served."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apps.recsys.data.csr_store import History, NpyWriter
from apps.recsys.data.splits import HeldOut, Kept, hide_for_validation, write
from apps.recsys.models import weights
from apps.recsys.models.embedding import losses, user_encoders
from apps.recsys.models.embedding.embedding_config import ABSENT, EmbeddingConfig
from apps.recsys.models.embedding.model import EmbeddingBatch, make_step
from apps.recsys.training import batches, fit_embedding
from apps.recsys.training.batches import Batches
from apps.recsys.training.fit_embedding import Trainer, TrainingConfig
from common.compression.layouts import KINDS
from common.errors import BadInput, UsageError
from common.training import checkpoint
from common.training.distributed.group import ALONE, Group
from tests.messages import continued, refused, says

USERS, ITEMS = 60, 40


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Users of two tastes, with 1 to 20 items each, as a history on disk."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        liked = np.arange(user % 2, ITEMS, 2) if user % 5 else np.arange(ITEMS)
        rows.append(np.sort(random.choice(liked, random.integers(1, 21), replace=False)))
    with NpyWriter(tmp_path / "history.indptr.npy", "<i8") as out:
        out.append(np.concatenate([[0], np.cumsum([len(row) for row in rows])]))
    with NpyWriter(tmp_path / "history.items.npy", "<i4") as out:
        out.append(np.concatenate(rows))
    with NpyWriter(tmp_path / "history.values.npy", "<f4") as out:
        out.append(np.ones(sum(len(row) for row in rows)))
    return tmp_path


def pairs(epoch: Iterator[EmbeddingBatch]) -> list[tuple[tuple[int, ...], int]]:
    """(all of a window's items, one of its targets), sorted."""
    found = []
    for batch in epoch:
        for row in batch.windows.tolist():
            known = [int(batch.rows[place]) for place in row[2:] if place != ABSENT]
            assert len(set(known)) == len(known)
            found += [(tuple(sorted(known)), target) for target in known[: row[0]]]
    return sorted(found)


def test_an_epoch_has_every_pair_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "POOL", 150)
    history = History(directory)
    made = Batches(
        history, Kept(history, None, whole_users=False), EmbeddingConfig(ITEMS, 4, batch=16, negatives=8), seed=3
    )
    rows = [tuple(history.items(user).tolist()) for user in range(USERS)]
    expected = sorted((row, item) for row in rows if len(row) > 1 for item in row)
    first, second = list(made.epoch(0)), list(made.epoch(1))
    assert pairs(iter(first)) == pairs(iter(second)) == expected
    assert sum(len(batch.windows) for batch in first) == made.windows
    assert [b.windows.tolist() for b in first] != [b.windows.tolist() for b in second]
    assert all(set(batch.rows.tolist()) >= set(batch.rows[batch.negatives].tolist()) for batch in first)


def test_an_epoch_goes_on_after_any_batch(directory: Path) -> None:
    history = History(directory)
    made = Batches(
        history, Kept(history, None, whole_users=False), EmbeddingConfig(ITEMS, 4, batch=16, negatives=8), seed=3
    )
    whole, rest = list(made.epoch(2)), list(made.epoch(2, after=3))
    assert len(rest) == len(whole) - 3
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.windows, other.windows) and torch.equal(
            one.rows[one.negatives], other.rows[other.negatives]
        )


def test_users_of_their_own_have_every_pair_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "POOL", 150)
    history = History(directory)
    config = EmbeddingConfig(ITEMS, 4, USERS, batch=16, negatives=8)
    made = Batches(history, Kept(history, None, whole_users=False), config, seed=3)
    rows = [history.items(user).tolist() for user in range(USERS)]
    expected = sorted((user, item) for user, row in enumerate(rows) if len(row) > 1 for item in row)
    found = []
    for batch in made.epoch(0):
        for count, place, *places in batch.windows.tolist():
            assert len(places) == config.width
            found += [(int(batch.users[place]), int(batch.rows[item])) for item in places[:count]]
    assert sorted(found) == expected


def test_long_histories_are_seen_through_windows(directory: Path) -> None:
    history = History(directory)
    config = EmbeddingConfig(ITEMS, 4, batch=16, negatives=8, window=6)
    made = Batches(history, Kept(history, None, whole_users=False), config, seed=3)
    found = pairs(made.epoch(0))
    rows = [set(history.items(user).tolist()) for user in range(USERS)]
    assert len(found) == sum(len(row) for row in rows if len(row) > 1)
    assert all(any(set(known) <= row and target in row for row in rows) for known, target in found)
    assert max(len(known) for known, _ in found) == 6


def test_hidden_items_are_not_trained_on(directory: Path) -> None:
    history = History(directory)
    write(directory, "heldout", [(3, history.items(3)[:1]), (7, history.items(7))])
    kept = Kept(history, HeldOut(directory), whole_users=False)
    assert hide_for_validation(directory, kept, history, seed=0) >= 3
    validation = HeldOut(directory, "validation")
    kept = Kept(history, HeldOut(directory), whole_users=False, validation=validation)
    for user in range(USERS):
        hidden: set[int] = {3: {int(history.items(3)[0])}, 7: set(history.items(7).tolist())}.get(user, set())
        if user in validation.users:
            hidden |= set(validation.items(int(np.searchsorted(validation.users, user))).tolist())
        mine = history.items(user)
        assert set(mine[~kept.mask(user, user + 1)].tolist()) == hidden
    whole = Kept(history, HeldOut(directory), whole_users=True).mask(0, USERS)
    owner = np.repeat(np.arange(USERS), np.diff(history.indptr))
    assert set(owner[~whole].tolist()) == {3, 7}


@dataclass
class Session:
    """The parts of ``common.cli.session.Session`` that a training needs; asks to stop after so many batches."""

    stop_after: int = 10**9
    threads: int = 1
    group: Group = ALONE
    said: list[str] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=lambda: {"micro_batch": 8, "amp": "off", "user_block": 16})
    asked: int = 0

    @property
    def stopping(self) -> bool:
        """Asked after every batch."""
        self.asked += 1
        return self.asked >= self.stop_after

    def say(self, message: str) -> None:
        """Keep it."""
        self.said.append(message)

    def phase(self, name: str) -> Any:
        """Nothing is measured here."""
        return nullcontext()

    @contextmanager
    def progress(self, **_: object) -> Iterator[Any]:
        """A bar that nobody sees."""

        class Bar:
            def update(self, count: int = 1) -> None:
                """Nothing to draw."""

        yield Bar()


def training(directory: Path, **changes: Any) -> TrainingConfig:
    """Three epochs on the fixture's data."""
    sizes = {"users": changes.pop("users", 0), "table": changes.pop("table", "full")}
    network = EmbeddingConfig(ITEMS, 8, batch=16, negatives=16, **sizes)
    usual = {"epochs": 3, "patience": 5, "validates": True, "split": "none", "seed": 1} | changes
    settings = {"seed": usual["seed"], **sizes}
    return TrainingConfig(
        network=network, directory=directory, checkpoints=directory / "work", settings=settings, **usual
    )


@pytest.mark.parametrize(
    ("table", "users"), [("full", 0), ("int8", USERS), ("hash", 0), ("pq", USERS), ("frequency", 0)]
)
def test_a_stopped_training_goes_on_as_if_it_had_not(directory: Path, table: str, users: int) -> None:
    whole = Trainer(training(directory, table=table, users=users), Session()).run()
    for path in (directory / "work").iterdir():
        path.unlink()
    with pytest.raises(KeyboardInterrupt):
        Trainer(training(directory, table=table, users=users), Session(stop_after=9)).run()
    session = Session()
    again = Trainer(training(directory, table=table, users=users, resume=True), session).run()
    continued(session.said[0], "epoch")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_checkpoint_of_another_training_is_not_continued(directory: Path) -> None:
    with refused(BadInput, "resume"):
        Trainer(training(directory, resume=True), Session()).run()
    Trainer(training(directory), Session()).run()
    with refused(UsageError, "seed"):
        Trainer(training(directory, seed=2, resume=True), Session()).run()
    session = Session()
    Trainer(training(directory, seed=2), session).run()
    says(session.said[0], "checkpoint", "seed")


def test_training_ends_when_it_no_longer_helps_and_keeps_the_best(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.1, 0.3, 0.2, 0.1, 0.9])
    monkeypatch.setattr(fit_embedding, "validate", lambda trainer: {fit_embedding.METRIC: next(values)})
    trainer = Trainer(training(directory, epochs=5, patience=2), Session())
    network = trainer.run()
    assert (trainer.at.epoch, trainer.at.best_epoch, trainer.at.best) == (4, 2, 0.3)
    best = checkpoint.read_state(directory / "work" / fit_embedding.BEST)["progress"]
    assert best["epoch"] == 2
    kept, _, _ = make_step(trainer.config.network, micro_batch=8)
    checkpoint.restore(directory / "work" / fit_embedding.BEST, network=kept, optimizer=trainer.optimizer)
    assert torch.equal(kept.items.form.codes, network.items.form.codes)


@pytest.mark.parametrize("table", KINDS)
def test_what_is_written_is_what_was_trained(directory: Path, table: str) -> None:
    config = EmbeddingConfig(ITEMS, 8, tables=2, table=table)
    network, _, _ = make_step(config, micro_batch=8)
    path = directory / weights.WEIGHTS
    prior = np.linspace(0, 1, ITEMS, dtype=np.float32)
    weights.write(path, fit_embedding.tensors(network, prior))
    every = torch.arange(ITEMS)
    for name, part in ((weights.ITEMS, network.items), (weights.USER_SIDE, network.user_side)):
        assert part is not None
        np.testing.assert_allclose(weights.read(path, name), part.read(every).numpy(), rtol=1e-6)
    found = weights.read_items(path, prior=True)
    np.testing.assert_array_equal(found[:, :-1], weights.read(path))
    np.testing.assert_array_equal(found[:, -1], prior)


@pytest.mark.parametrize(("loss", "tables"), [("softmax", 1), ("ccl", 2), ("bpr", 1)])
def test_a_served_score_is_a_trained_score(loss: str, tables: int) -> None:
    """The score of a target in training, up to the temperature, is that of the served model for the other items."""
    config = EmbeddingConfig(ITEMS, 8, 0, loss, tables, batch=1, negatives=3, temperature=0.5)
    torch.manual_seed(0)
    network, _, _ = make_step(config, micro_batch=1)
    row = torch.full((1, 2 + config.window), ABSENT)
    row[0, :7] = torch.tensor([1, 0, 9, 4, 7, 8, 2])  # target 9 from items 4, 7, 8, 2
    network.load(
        EmbeddingBatch(
            torch.arange(ITEMS), torch.arange(0), row, torch.tensor([0, 1, 2]), torch.zeros(3), torch.zeros(ITEMS)
        )
    )
    own, _ = network(row)
    score = own[0, 0].item() * (config.temperature if loss == "softmax" else 1)
    items = network.items.read(torch.arange(ITEMS)).numpy()
    taste = None if network.user_side is None else network.user_side.read(torch.arange(ITEMS)).numpy()
    fold = user_encoders.embedding(items, taste, {"user_vectors": "history", "loss": loss})
    vector = fold(np.array([2, 4, 7, 8]), np.ones(4, np.float32))
    assert float(items[9] @ vector) == pytest.approx(score, rel=1e-4)


@pytest.mark.parametrize(("loss", "prior"), [("softmax", 0.0), ("softmax", 0.3), ("ccl", 0.0)])
def test_a_user_is_found_where_its_loss_is_least(loss: str, prior: float) -> None:
    """Folded in, a user has a smaller loss over the whole catalogue than the mean of its items, and near the least."""
    torch.manual_seed(0)
    items = torch.nn.functional.normalize(torch.randn(200, 8))
    had = torch.arange(10)
    items[had] = torch.nn.functional.normalize(items[had] + 0.5)
    hyper = {
        "user_vectors": "learned",
        "loss": loss,
        "temperature": 0.2,
        "margin": 0.2,
        "negative_weight": 5.0,
        "prior": prior,
    }
    before = prior * torch.linspace(0, 5, 200)
    each = losses.softmax if loss == "softmax" else losses.contrastive(hyper["margin"], hyper["negative_weight"])
    sharp = 1 / hyper["temperature"] if loss == "softmax" else 1.0

    def loss_of(vector: torch.Tensor) -> torch.Tensor:
        scores = sharp * torch.nn.functional.normalize(vector, dim=0) @ items.T + before
        return each(scores[None, had], scores[None, None]).mean()

    stored = items.numpy().copy()
    if prior:
        stored = np.column_stack([stored, hyper["temperature"] * before.numpy()])
    folded = torch.from_numpy(user_encoders.embedding(stored, None, hyper)(had.numpy(), np.ones(10)))
    if prior:
        assert folded[-1] == 1
        folded = folded[:-1]
    mean = items[had].mean(0)
    least = mean.clone().requires_grad_()
    optimizer = torch.optim.Adam([least], 0.02)
    for _ in range(500):
        optimizer.zero_grad()
        loss_of(least).backward()
        optimizer.step()
    assert float(folded.norm()) == pytest.approx(1, rel=1e-5)
    gained = float(loss_of(mean) - loss_of(folded)), float(loss_of(mean) - loss_of(least.detach()))
    assert gained[0] > 0.8 * gained[1] > 0


def test_items_that_are_compared_stand_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_encoders, "COMPARED", 400)
    counts = np.sort(np.random.default_rng(1).pareto(1.0, 5000))[::-1] + 1
    for logarithms in (np.zeros(5000), 0.5 * np.log(counts)):
        chosen, stands_for = user_encoders._sampled(logarithms)
        assert len(chosen) == 400 and (np.diff(chosen) > 0).all() and stands_for.min() >= 0
        assert np.exp(stands_for.astype(float)).sum() == pytest.approx(5000, rel=0.15)
        total = (np.exp(stands_for.astype(float)) * counts[chosen]).sum() / counts.sum()
        assert abs(total - 1) < (0.8 if logarithms.max() == 0 else 0.1)
    assert chosen[0] == 0 and stands_for[chosen < 10].max() < stands_for.mean()  # the popular ones stand for few
