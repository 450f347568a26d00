"""A recommender on disk and in memory. Item vectors are stored; user vectors are computed from histories.

MODEL_DIR (see ``common.model_folder``)::

    model.json           written last: factors, table, items, users, interactions, hyper, split, seed
    weights.safetensors  item_factors (items, factors); see apps.recsys.models.weights
    items.parquet        row, id, title          users.parquet   row, id
    history.*.npy        items of each user (apps.recsys.data.csr_store)
    heldout.*.npy        items that evaluation scores (apps.recsys.data.splits), if there was a split
    card.md, run.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.csr_store import History, NpyReader
from apps.recsys.models import weights
from apps.recsys.models.embedding import user_encoders
from apps.recsys.models.folder_check import check_files
from apps.recsys.models.manifest import RecommenderManifest, check_hyper
from apps.recsys.models.old_names import renamed_hyper
from common import model_folder
from common.errors import BadInput, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Recommender:
    """A loaded model.

    Parameters
    ----------
    directory
        A model folder.
    manifest
        Its ``model.json``, checked by ``common.model_folder.load``.
    """

    def __init__(self, directory: Path, manifest: Mapping[str, Any]) -> None:
        self.directory, self.manifest = directory, manifest
        self._prior = has_prior(manifest)
        self.item_factors = weights.read_items(directory / weights.WEIGHTS, prior=self._prior)
        self.history = History(directory, columns=len(self.item_factors))
        self.user_vector = _encoder(directory, manifest, self.item_factors)
        """Computes a vector of shape (factors,) from the items and values of a history."""

    def recommend(
        self,
        items: NDArray[Any],
        values: NDArray[np.float32],
        k: int,
        *,
        allowed: NDArray[np.bool_] | None = None,
        keep_seen: bool = False,
    ) -> list[tuple[int, float]]:
        """The ``k`` best items for a history, without its own items.

        Parameters
        ----------
        items, values
            The history: rows of items, and values, shape (n,) each.
        k
            Number of items.
        allowed
            Mask of items that may be recommended, shape (items,); ``None``: all.
        keep_seen
            True to rank the history's own items too.

        Returns
        -------
        list
            Row and score of each item, the best first.
        """
        import numpy as np

        scores = self.item_factors @ self.user_vector(items, values)
        if not keep_seen:
            scores[items] = -np.inf
        if allowed is not None:
            scores[~allowed] = -np.inf
        return _best(scores, k)

    def explain(self, items: NDArray[Any], values: NDArray[np.float32], rows: NDArray[Any]) -> NDArray[np.float64]:
        """Split the scores of some items into contributions of the items of a history.

        Parameters
        ----------
        items, values
            The history, shape (n,) each.
        rows
            Items whose scores are explained, shape (m,).

        Returns
        -------
        NDArray
            Shape (m, n); the sum over a row is the item's score.

        Raises
        ------
        UsageError
            A score of this kind of model is not a sum over the history.
        """
        if self.user_vector.contributions is None:
            kind = self.manifest["kind"] + (
                " with user_vectors=learned" if self.manifest["kind"] == "embedding" else ""
            )
            raise UsageError(
                f"{kind}: a score is not a sum over the history, so nothing can be explained; ials and embedding can"
            )
        added: NDArray[np.float64] = self.item_factors[rows] @ self.user_vector.contributions(items, values).T
        return added

    def similar(self, row: int, k: int) -> list[tuple[int, float]]:
        """The ``k`` items nearest to the item ``row``, without itself: row and cosine of each, the nearest first."""
        import numpy as np

        vectors = self.item_factors[:, :-1] if self._prior else self.item_factors
        norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        scores = vectors @ vectors[row]
        scores /= np.maximum(norms * norms[row], np.float32(1e-12))
        scores[row] = -np.inf
        return _best(scores, k)


def has_prior(manifest: Mapping[str, Any]) -> bool:
    """True if each item has a prior, which is added to its score for every user: one more column of the factors."""
    return bool(manifest["hyper"].get("prior"))


def _encoder(directory: Path, manifest: Mapping[str, Any], item_factors: NDArray[np.float32]) -> user_encoders.Encoder:
    kind, hyper = manifest["kind"], manifest["hyper"]
    path = directory / weights.WEIGHTS
    if kind != "embedding":
        negatives = weights.read_compared(path) if kind == "bpr" else None
        return user_encoders.of_kind(kind, item_factors, hyper, negatives=negatives)
    return user_encoders.embedding(item_factors, weights.read_user_side(path) if hyper["tables"] == 2 else None, hyper)


def _best(scores: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    from apps.recsys.models.top_k import top_k

    return [(int(row), float(scores[row])) for row in top_k(scores, k)]


def heldout_count(directory: Path, manifest: Mapping[str, Any]) -> int:
    """Number of users with held-out items. Only a file's header is read.

    Raises
    ------
    BadInput
        The model was trained without a split.
    """
    if manifest["split"] == "none" or "heldout.users.npy" not in manifest["files"]:
        raise BadInput(
            f"{directory}: trained without --split, so nothing was held out to evaluate on; train with"
            " --split user-holdout or leave-last",
            public="model without held-out data",
        )
    return NpyReader(directory / "heldout.users.npy").length


def load_manifest(directory: Path) -> RecommenderManifest:
    """Read ``model.json`` of a recommender's folder, with the present names of hyper-parameters.

    Raises
    ------
    BadInput
        As ``common.model_folder.load``, ``check_hyper`` and ``check_files``.
    """
    manifest = model_folder.load(directory, application="recsys", description=RecommenderManifest)
    renamed = renamed_hyper(manifest["kind"], manifest["hyper"])
    checked = check_hyper(directory, {**manifest, "hyper": renamed})
    check_files(directory, checked)
    return checked


def seal(directory: Path, *, kind: str, fields: Mapping[str, Any]) -> None:
    """Write ``model.json`` for the files in the folder, which completes the model.

    Parameters
    ----------
    directory
        The model folder.
    kind
        Kind of model.
    fields
        Further fields of ``model.json``.
    """
    names = (path.name for path in directory.iterdir() if path.is_file() and not path.name.startswith("."))
    files = sorted(name for name in names if name not in (model_folder.MANIFEST, "run.json", "evaluation.json"))
    model_folder.seal(directory, application="recsys", kind=kind, files=files, fields=fields)


def write_card(directory: Path, kind: str, fields: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
    """Write ``card.md``: the model, its data, its metrics and its use."""
    hyper = ", ".join(f"{name}={value}" for name, value in fields["hyper"].items())
    lines = [
        f"# Recommender ({kind})",
        "",
        f"- Data: {fields['users']:,} users, {fields['items']:,} items, {fields['interactions']:,} interactions",
        f"- Factors: {fields['factors']}, table {fields['table']}; {hyper}; seed {fields['seed']}",
        "- Users are not stored as vectors: each is computed from its history (`history.*.npy`) when asked for",
        "",
    ]
    if metrics:
        lines += [f"Full ranking, split `{fields['split']}`:", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
        lines.append("")
    lines += ["Use: `recsys recommend MODEL_DIR --user ID`, `recsys similar MODEL_DIR --item ID`", ""]
    (directory / "card.md").write_text("\n".join(lines), encoding="utf-8")
