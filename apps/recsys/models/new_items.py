"""Vectors of items that a trained model does not have yet, solved against the vectors that it has, which stay.

Users are folded in from the items that the model knows. The vector of a new item then minimises the loss of its kind of
model over these users:

ials        its row of the normal equations (Hu et al. 2008), as in a sweep of the training
bpr         the loss of pairs: its users rank it above the model's negatives, and users of other interactions rank
            theirs above it, which it meets as often, since a training draws negatives in proportion to their counts;
            its gradient is followed as far as a training would (the minimum itself ranks rare items first)
embedding   the softmax or contrastive loss by steps on the sphere, with the median length of the items' vectors

An item that only users without any item of the model had gets zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import Kept
from apps.recsys.models import popularity, weights
from apps.recsys.models.als import als_matrices, ials_exact
from apps.recsys.models.coded import stored as coded
from apps.recsys.models.embedding import user_encoders
from apps.recsys.models.new_item_losses import CosineLoss, PairLoss

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FoldIn = Callable[[NDArray[Any], NDArray[np.float32]], NDArray[np.float32]]

MOST_USERS = 128
"""Users of a new item that decide its vector in ``bpr``; of more, as many are taken at even distances."""
SAMPLED = 512
"""Other interactions that stand for those in which a training of ``bpr`` would draw a new item as the negative."""
TOGETHER = 64
"""Users or items that the threads are given at a time."""
CODES = {"int8": 127, "uint8": 7}
"""Largest code by the type that holds the codes: one, or two of four bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """A model of vectors that gets more items.

    Attributes
    ----------
    kind, hyper
        Kind and hyper-parameters of the model.
    base
        The model folder.
    rows
        Its items that stay, by their rows: the first items of the new model, shape (n,).
    directory
        Folder of the new model's history.
    items
        Number of items of the new model.
    split
        Way in which evaluation items are held out of it (``splits.KINDS``).
    fit_block
        Interactions that ``ials`` reads at a time (``als_matrices.on_disk``); all: they stay in memory.
    threads
        Threads that compute.
    """

    kind: str
    hyper: Mapping[str, Any]
    base: Path
    rows: NDArray[np.int32]
    directory: Path
    items: int
    split: str
    fit_block: int
    threads: int

    @property
    def old(self) -> int:
        """Number of items that the model has already."""
        return len(self.rows)

    @property
    def new(self) -> int:
        """Number of items to solve."""
        return self.items - self.old

    def tensors(self, after_item: Callable[[int], None] = lambda items: None) -> dict[str, NDArray[Any]]:
        """Compute the new model's weights by name (``weights``); vectors of old items are the same to the bit.

        Parameters
        ----------
        after_item
            Called with the number of items that were computed; an exception that it raises ends the computation.
        """
        import numpy as np

        stored = weights.read_all(self.base / weights.WEIGHTS)
        names = coded.names_in(stored)
        extended = {
            name: self._kept(name, tensor) for name, tensor in stored.items() if name.partition(".")[0] not in names
        }
        for name in names:
            extended |= coded.kept(stored, name, self.rows)
        del stored
        history = History(self.directory)
        kept = Kept.of(history, self.directory, self.split)
        if weights.PRIOR in extended:
            counts = popularity.trained_counts(history, kept, items=self.items)
            extended[weights.PRIOR] = (self.hyper["prior"] * np.log(counts + 1)).astype(np.float32)
            extended[weights.PRIOR] *= self.hyper["temperature"]
        if not self.new:
            return extended
        vectors = [weights.ITEMS, *([weights.USER_SIDE] if weights.USER_SIDE in extended else [])]
        if self.kind == "ials":
            new = [self._solved(coded.decoded(extended, weights.ITEMS), history, kept)]
            after_item(self.new)
        else:
            new = self._folded(extended, history, kept, after_item)
        for name, rows in zip(vectors, new, strict=True):
            if name in names:
                extended |= coded.appended(extended, name, rows)
                continue
            scales = extended.get(f"{name}.scales")
            codes, new_scales = (rows, None) if scales is None else encoded(rows, extended[name].dtype)
            extended[name] = np.concatenate([extended[name], codes])
            if scales is not None and new_scales is not None:
                extended[f"{name}.scales"] = np.concatenate([scales, new_scales])
        return extended

    def _kept(self, name: str, tensor: NDArray[Any]) -> NDArray[Any]:
        """The rows of items that stay; of ``bpr``'s negatives those that are still there, by their new rows."""
        import numpy as np

        if name == weights.COMPARED:
            found = np.searchsorted(self.rows, tensor)
            here = self.rows[np.minimum(found, self.old - 1)] == tensor
            left = found[here].astype(np.int32)
            return left if len(left) else np.arange(self.old, dtype=np.int32)
        return tensor if len(tensor) == self.old else tensor[self.rows]

    def _solved(self, factors: NDArray[np.float32], history: History, kept: Kept) -> NDArray[np.float32]:
        """Rows of new items of ``ials``: users against the old items, then the new items against the users."""
        import numpy as np

        everything = self.fit_block >= history.size
        if everything:
            sides = als_matrices.in_memory(history, kept, items=self.items, hyper=self.hyper)
        else:
            sides = als_matrices.on_disk(
                self.directory, history, kept, items=self.items, hyper=self.hyper, block=self.fit_block
            )
        given = {
            "regularization": float(self.hyper["regularization"]),
            "exponent": float(self.hyper.get("frequency_scaling", 0.0)),
        }
        items = np.zeros((self.items, factors.shape[1]), np.float32)
        items[: self.old] = factors
        users = np.zeros((sides.users.rows, factors.shape[1]), np.float32)
        for start, stop, block in sides.users.blocks():
            ials_exact.solve(block, users[start:stop], items, threads=self.threads, **given)
        for start, stop, block in sides.items.blocks(self.old):
            ials_exact.solve(block, items[start:stop], users, threads=self.threads, **given)
        als_matrices.remove(self.directory)
        return items[self.old :]

    def _folded(
        self,
        tensors: Mapping[str, NDArray[Any]],
        history: History,
        kept: Kept,
        after_item: Callable[[int], None],
    ) -> list[NDArray[np.float32]]:
        """Vectors of new items of ``bpr`` and ``embedding``, and their vectors as parts of users if there are such."""
        import numpy as np

        factors = coded.decoded(tensors, weights.ITEMS)
        pairs = _pairs(history, kept, self.old)
        users = np.unique(pairs[0])
        own = _own_items(history, kept, users, self.old)
        if self.kind == "bpr":
            encoder = user_encoders.of_kind("bpr", factors, self.hyper, negatives=tensors[weights.COMPARED])
            histories, had = _sampled(history, kept, self.old)
            others = _encoded_users(encoder, histories, factors.shape[1], self.threads)
            others[:, -1] = 1
            above = np.einsum("ij,ij->i", others, factors[had])
            pairs_loss = PairLoss(factors[tensors[weights.COMPARED]], others, above, self.hyper)
            vectors = _encoded_users(encoder, own, factors.shape[1], self.threads)
            vectors[:, -1] = 1
            return [
                self._each(
                    pairs, users, lambda some, item, count: pairs_loss.solve(vectors[some], count), factors, after_item
                )
            ]
        prior = tensors.get(weights.PRIOR)
        joined = factors if prior is None else np.column_stack([factors, prior[: self.old]])
        side = coded.decoded(tensors, weights.USER_SIDE) if weights.USER_SIDE in tensors else None
        encoder = user_encoders.embedding(joined.copy(), side, self.hyper)
        vectors = _encoded_users(encoder, own, joined.shape[1], self.threads)[:, : factors.shape[1]]
        histories, _ = _sampled(history, kept, self.old)
        others = _encoded_users(encoder, histories, joined.shape[1], self.threads)
        loss = CosineLoss(joined, prior, self.hyper, others, history.size)
        new = [
            self._each(
                pairs, users, lambda some, item, count: loss.solve(vectors[some], item, count), factors, after_item
            )
        ]
        if side is not None:
            parts = np.stack([side[items].mean(0) if len(items) else side[0] * 0 for items, _ in own])
            new.append(
                self._each(pairs, users, lambda some, item, count: parts[some].mean(0), side, lambda items: None)
            )
        return new

    def _each(
        self,
        pairs: tuple[NDArray[np.int32], NDArray[np.int32]],
        users: NDArray[np.int32],
        solve: Callable[[NDArray[Any], int, int], NDArray[np.float32]],
        like: NDArray[np.float32],
        after_item: Callable[[int], None],
    ) -> NDArray[np.float32]:
        """Solve each new item from the positions of its users among ``users``; zeros for one without users."""
        import numpy as np

        solved = np.zeros((self.new, like.shape[1]), np.float32)
        order = np.argsort(pairs[1], kind="stable")
        owners, items = np.searchsorted(users, pairs[0][order]), pairs[1][order]
        starts = np.searchsorted(items, np.arange(self.old, self.items + 1))

        def work(number: int) -> None:
            start, stop = starts[number], starts[number + 1]
            if stop > start:
                step = -(-(stop - start) // MOST_USERS)
                solved[number] = solve(owners[start:stop:step], self.old + number, int(stop - start))

        with ThreadPoolExecutor(self.threads) as pool:
            for first in range(0, self.new, TOGETHER):
                for _ in pool.map(work, range(first, min(first + TOGETHER, self.new))):
                    after_item(1)
        return solved


def encoded(rows: NDArray[np.float32], kind: np.dtype[Any]) -> tuple[NDArray[Any], NDArray[np.float16]]:
    """Codes and scales of rows, as ``weights.read`` decodes them: rounded to the nearest code.

    Examples
    --------
    >>> encoded(np.array([[1, -0.5]], np.float32), np.dtype(np.uint8))
    (array([[71]], dtype=uint8), array([0.1428], dtype=float16))
    """
    import numpy as np

    levels = CODES[str(kind)]
    scales = np.maximum(np.abs(rows).max(1) / levels, 1e-7).astype(np.float16)
    codes = np.clip(np.rint(rows / scales.astype(np.float32)[:, None]), -levels, levels).astype(np.int8)
    if kind == np.uint8:
        pairs = (codes + 8).astype(np.uint8)
        return pairs[:, 0::2] | (pairs[:, 1::2] << 4), scales
    return codes, scales


def _pairs(history: History, kept: Kept, old: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Users and items of the trained interactions of new items."""
    import numpy as np

    users, items = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for start, stop in history.blocks():
        some = history.items(start, stop)
        new = (some >= old) & kept.mask(start, stop)
        owners = np.repeat(np.arange(start, stop, dtype=np.int32), np.diff(history.indptr[start : stop + 1]))
        users.append(owners[new])
        items.append(some[new])
    return np.concatenate(users), np.concatenate(items)


def _own_items(
    history: History, kept: Kept, users: NDArray[Any], old: int
) -> list[tuple[NDArray[Any], NDArray[np.float32]]]:
    """Items and values of users, of the items that the model knows."""
    own = []
    for user in users:
        items = history.items(int(user))
        known = (items < old) & kept.mask(int(user), int(user) + 1)
        own.append((items[known], history.values(int(user))[known]))
    return own


def _encoded_users(
    encoder: FoldIn, own: list[tuple[NDArray[Any], NDArray[np.float32]]], width: int, threads: int
) -> NDArray[np.float32]:
    """Vectors of users, zeros for those without an item."""
    import numpy as np

    vectors = np.zeros((len(own), width), np.float32)

    def work(row: int) -> None:
        items, values = own[row]
        if len(items):
            vectors[row] = encoder(items, values)

    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(own), TOGETHER):
            list(pool.map(work, range(first, min(first + TOGETHER, len(own)))))
    return vectors


def _sampled(
    history: History, kept: Kept, old: int
) -> tuple[list[tuple[NDArray[Any], NDArray[Any]]], NDArray[np.int32]]:
    """Draw interactions with old items: the histories of their users, and their items."""
    import numpy as np

    random = np.random.default_rng(0)
    places = np.sort(random.integers(0, max(1, history.size), SAMPLED))
    users = np.searchsorted(history.indptr, places, side="right") - 1
    own = _own_items(history, kept, users, old)
    left = [(one, random.integers(len(one[0]))) for one in own if len(one[0])]
    return [one for one, _ in left], np.array([one[0][place] for one, place in left], np.int32)
