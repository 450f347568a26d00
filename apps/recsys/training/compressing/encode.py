"""Item vectors of a model as codes (``recsys compress``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import History
from apps.recsys.data.splits import Kept
from apps.recsys.models import weights
from apps.recsys.models.als import als_matrices
from apps.recsys.models.coded import stored
from apps.recsys.models.embedding import user_encoders
from apps.recsys.models.linear import filter as linear_filter
from apps.recsys.models.linear.spectral import powers
from apps.recsys.planning.compressing.workload import SAMPLED_USERS
from apps.recsys.training.compressing import vectors
from apps.recsys.training.compressing.least_squares import Checkpoint, LeastSquares
from apps.recsys.training.compressing.vectors import Budget
from apps.recsys.training.session import TrainingSession
from common.compression import row_codes, row_grid
from common.compression.book_codes import BookCodes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Sample = tuple[NDArray[Any], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The weights of a model with codes.

    Attributes
    ----------
    tensors
        Arrays by name, as ``weights.write`` takes them.
    codes
        Bytes of an item in each matrix of codes.
    factors
        Dimensions that are left.
    bits
        What ``described`` says of each matrix.
    """

    tensors: Mapping[str, NDArray[Any]]
    codes: Mapping[str, int]
    factors: int
    bits: Mapping[str, list[dict[str, Any]]]


def described(codes: stored.Coded) -> list[dict[str, Any]]:
    """Classes of rows: how many there are, bytes of each with its scale, and its dimensions by their number of bits.

    Rows of code books are one class, with the numbers of their entries.
    """
    import numpy as np

    if isinstance(codes, BookCodes):
        size, bits = codes.books.packed_bytes + row_codes.SCALE_BYTES, {str(codes.books.bits): codes.books.count}
        return [{"rows": len(codes), "bytes": size, "bits": bits}]

    counts = np.bincount(codes.grid.classes(codes.scales), minlength=len(codes.grid.bits))
    return [
        {
            "rows": int(count),
            "bytes": int(size) + row_codes.SCALE_BYTES,
            "bits": {str(each): int(number) for each, number in enumerate(np.bincount(own)) if number},
        }
        for count, size, own in zip(counts, codes.grid.packed_bytes, codes.grid.bits, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """A model whose item vectors become codes.

    Attributes
    ----------
    model
        The model folder.
    manifest
        Its ``model.json``.
    scratch
        Folder for interactions in the order of items.
    row_bytes
        Bytes of a row of each matrix, without its scale.
    dimensions
        Most dimensions; ``None``: any number.
    layers
        Entries of code books that are added; 0: levels.
    rounds
        Times that users and items of ``ials`` are solved again.
    checkpoint
        Keeps what is done of a model of ``ials``.
    session
        Plan (knob ``fit_block``), threads and progress.
    """

    model: Path
    manifest: Mapping[str, Any]
    scratch: Path
    row_bytes: Mapping[str, int]
    dimensions: int | None
    layers: int
    rounds: int
    checkpoint: Checkpoint
    session: TrainingSession

    @property
    def _path(self) -> Path:
        return self.model / weights.WEIGHTS

    def run(self) -> Encoded:
        """Encode the vectors.

        Raises
        ------
        BadInput
            The model's files are damaged.
        KeyboardInterrupt
            The session is stopping.
        """
        from threadpoolctl import threadpool_limits

        history = History(self.model, columns=self.manifest["items"])
        kept = Kept.of(history, self.model, self.manifest["split"])
        # The solvers start their own threads, and the other products are small.
        with threadpool_limits(1, "blas"):
            if self.manifest["kind"] == "ials":
                return self._least_squares(history, kept)
            if self.manifest["kind"] == "linear":
                return self._spectrum(history, kept)
            return self._vectors(history, kept)

    def _budget(self, name: str) -> Budget:
        return Budget(self.row_bytes[name], self.dimensions, self.layers)

    def _encoded(self, made: Mapping[str, stored.Coded], others: Mapping[str, NDArray[Any]] = {}) -> Encoded:

        tensors = {**others}
        for name, codes in made.items():
            tensors |= stored.tensors(name, codes)
        bits = {name: described(codes) for name, codes in made.items()}
        sizes = {name: stored.row_size(codes) for name, codes in made.items()}
        return Encoded(tensors, sizes, next(iter(made.values())).width, bits)

    def _least_squares(self, history: History, kept: Kept) -> Encoded:
        """Rows of ``ials``: codes of the vectors, then users and items solved in turn, the items over their levels."""
        manifest, hyper, session = self.manifest, self.manifest["hyper"], self.session
        block = int(session.plan["fit_block"])
        sizes = {"items": manifest["items"], "hyper": hyper}
        if block >= manifest["interactions"]:
            sides = als_matrices.in_memory(history, kept, **sizes)
        else:
            sides = als_matrices.on_disk(self.scratch, history, kept, **sizes, block=block)
        made = LeastSquares(
            sides=sides,
            hyper=hyper,
            budget=self._budget(weights.ITEMS),
            rounds=self.rounds,
            checkpoint=self.checkpoint,
            session=session,
        ).run(weights.read(self._path))
        als_matrices.remove(self.scratch)
        return self._encoded({weights.ITEMS: made})

    def _vectors(self, history: History, kept: Kept) -> Encoded:
        """Rows of ``bpr`` and ``embedding``: rotated onto the users' Gramian, then the nearest codes."""
        import numpy as np

        kind, hyper = self.manifest["kind"], self.manifest["hyper"]
        others = {name: weights.tensor(self._path, name) for name in self._other_names()}
        matrices = {name: weights.read(self._path, self._stored_name(name)) for name in self.row_bytes}
        items = matrices[weights.ITEMS]
        free = items.shape[1] - (kind == "bpr")
        users = self._sampled(history, kept, self._encoder(matrices, others))[:, : items.shape[1]]
        values, axes = vectors.rotation(users[:, :free].T @ users[:, :free])
        for rows in matrices.values():
            vectors.rotate(rows, axes)
        if kind == "bpr":
            values = np.append(values, float(len(users)))  # every user's number for the bias is 1
        cosine = kind == "embedding" and hyper["loss"] != "bpr"
        importance = {name: values for name in matrices}
        if weights.USER_SIDE in matrices:
            # A user is a sum of these rows, so their errors cost what the items' Gramian says.
            gram = np.einsum("ij,ij->j", items, items, dtype=np.float64)
            importance[weights.USER_SIDE] = gram
        made = vectors.encoded_alike(
            matrices,
            importance,
            self._budget(weights.ITEMS),
            by_length=() if cosine else (weights.ITEMS,),
            cosine=cosine,
            last=kind == "bpr",
            after_each=self._check,
        )
        return self._encoded(made, others)

    def _other_names(self) -> list[str]:
        """Tensors that stay as they are."""
        names = [weights.COMPARED] if self.manifest["kind"] == "bpr" else []
        return names + ([weights.PRIOR] if self.manifest["hyper"].get("prior") else [])

    def _stored_name(self, name: str) -> str:
        return weights.user_side_name(self._path) if name == weights.USER_SIDE else name

    def _encoder(
        self, matrices: Mapping[str, NDArray[np.float32]], others: Mapping[str, NDArray[Any]]
    ) -> user_encoders.Encoder:
        """From histories to users' vectors; it may change its vectors, which are a copy."""
        hyper, items = self.manifest["hyper"], matrices[weights.ITEMS]
        if self.manifest["kind"] == "bpr":
            return user_encoders.of_kind("bpr", items, hyper, negatives=others[weights.COMPARED])
        return user_encoders.embedding(items.copy(), matrices.get(weights.USER_SIDE), hyper, others.get(weights.PRIOR))

    def _sampled(self, history: History, kept: Kept, encoder: user_encoders.Encoder) -> NDArray[np.float32]:
        """Vectors of users at even distances, without those who have no item."""
        import numpy as np

        step = max(1, -(-history.rows // SAMPLED_USERS))
        made = []
        rows = range(0, history.rows, step)
        with self.session.progress(total=len(rows), unit="user", label="encode") as bar:
            for user in rows:
                trained = kept.mask(user, user + 1)
                items, values = history.items(user)[trained], history.values(user)[trained]
                if len(items):
                    made.append(encoder(items, values))
                bar.update()
                self._check()
        return np.stack(made) if made else np.zeros((1, self.manifest["factors"] + 1), np.float32)

    def _spectrum(self, history: History, kept: Kept) -> Encoded:
        """Rows of a linear model: eigenvectors times the roots of what is added or taken away, unrotated."""
        import numpy as np

        hyper = self.manifest["hyper"]
        counts = weights.read_counts(self._path)
        rows, eigenvalues = weights.read_spectrum(self._path)
        rows *= linear_filter.code_weights(eigenvalues, hyper["form"], float(hyper["saturation"]))
        shares = powers(counts, -float(hyper["degree_power"]))
        encoder = user_encoders.Encoder(lambda items, values: shares[items] @ rows[items])
        users = self._sampled(history, kept, encoder)
        importance = np.einsum("ij,ij->j", users, users, dtype=np.float64)
        deviations = row_grid.column_deviations(rows)
        bits = self._budget(weights.SPECTRUM).shared(deviations.astype(np.float64) ** 2 * importance)
        columns = np.flatnonzero(bits)
        kept_rows = rows.take(columns, axis=1)
        vectors.rotate(kept_rows, vectors.mixing(bits[columns], importance := importance[columns]))
        codes = vectors.encoded(kept_rows, importance, bits[columns], cosine=False)
        others = {weights.COUNTS: counts, weights.EIGENVALUES: np.ascontiguousarray(eigenvalues[columns])}
        return self._encoded({weights.SPECTRUM: codes}, others)

    def _check(self) -> None:
        if self.session.stopping:
            raise KeyboardInterrupt
