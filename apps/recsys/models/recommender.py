"""A recommender on disk and in memory. Users are not stored as vectors; each is computed from its history.

MODEL_DIR (see ``common.model_folder``)::

    model.json           written last: factors, table, items, users, interactions, hyper, split, seed
    weights.safetensors  item_factors (items, factors) or a linear model's numbers; see apps.recsys.models.weights
    attribute.*.npy      attributes of the items (apps.recsys.data.attributes.stored), if there are any
    items.parquet        row, id, title          users.parquet   row, id
    history.*.npy        items of each user (apps.recsys.data.csr_store)
    heldout.*.npy        items that evaluation scores (apps.recsys.data.splits), if there was a split
    scan.*.npy           codes of the items' vectors, of a large catalogue (apps.recsys.models.scan.stored)
    ease.npy             weights of items by items of a linear model of the form ease
    trained.*.npy        with it in a linear model, the history without them (apps.recsys.models.linear.log)
    readers.*.npy        users of each item of a large linear model (apps.recsys.models.linear.readers)
    card.md, run.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.data.attributes.stored import listed
from apps.recsys.data.csr_store import History, NpyReader
from apps.recsys.models import weights
from apps.recsys.models.coded import stored as coded
from apps.recsys.models.coded.rows import CodedRows
from apps.recsys.models.coded.stored import is_coded
from apps.recsys.models.embedding import user_encoders
from apps.recsys.models.folder_check import check_files
from apps.recsys.models.likeness.diversity import diverse, shortlist
from apps.recsys.models.linear.coded import CodedScorer, read_codes
from apps.recsys.models.linear.ease import EaseScorer, RowsOnDisk
from apps.recsys.models.linear.filter import linear_scorer, user_power
from apps.recsys.models.linear.log import Log
from apps.recsys.models.linear.readers import Readers
from apps.recsys.models.linear.spectral import Spectrum, spectral_rows
from apps.recsys.models.linear.spectral import encoder as spectral_encoder
from apps.recsys.models.manifest import RecommenderManifest, check_hyper, spectrum_bits
from apps.recsys.models.old_names import renamed_hyper
from apps.recsys.models.popularity import ALL, window_of
from apps.recsys.models.scan import stored as scan_files
from apps.recsys.models.scan.choice import Choice
from apps.recsys.models.scan.rows import ItemRows, Rows
from apps.recsys.models.scan.scanner import Scanner
from apps.recsys.models.scan.scorer import RowScorer, ScanScorer
from apps.recsys.models.scorers import FactorScorer, Scorer
from common import model_folder
from common.compression.codes import Codes
from common.compression.row_codes import RowCodes
from common.errors import BadInput, UsageError
from common.memory.process import glibc

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
    mapped
        True to map the items' vectors where they are float32, so that processes share them.
    scanned
        True to leave the items' vectors on disk where the folder has their codes, to answer about few histories.
    """

    def __init__(
        self, directory: Path, manifest: Mapping[str, Any], *, mapped: bool = False, scanned: bool = False
    ) -> None:
        self.directory, self.manifest = directory, manifest
        scans = scanned and scan_files.is_there(manifest)
        self.scorer: Scorer = _scanning(directory, manifest) if scans else _scorer(directory, manifest, mapped=mapped)
        """Scores all items for histories."""
        self.history = History(directory, columns=self.scorer.items)

    @property
    def scans(self) -> bool:
        """True if the items' vectors stay on disk."""
        return isinstance(self.scorer, ScanScorer)

    @property
    def factors(self) -> FactorScorer | None:
        """The scorer, where it has item vectors in float32; a filter has none."""
        return self.scorer if isinstance(self.scorer, FactorScorer) else None

    @property
    def item_vectors(self) -> NDArray[np.float32] | None:
        """Vectors of all items whose product with a user's vector is the score; a filter has none."""
        if isinstance(self.scorer, CodedScorer):
            return self.scorer.item_vectors()
        if isinstance(self.scorer, RowScorer) and not self.scans:
            return self.scorer.matrix()
        return self.scorer.item_factors if isinstance(self.scorer, FactorScorer) else None

    @property
    def recent_shares(self) -> NDArray[np.float32] | None:
        """Shares of the users that had each item in the window of a ``popularity`` model, shape (items,)."""
        windowed = window_of(self.manifest["kind"], self.manifest["hyper"]) != ALL
        return self.factors.item_factors[:, 0] if windowed and self.factors is not None else None

    def recommend(
        self,
        items: NDArray[Any],
        values: NDArray[np.float32],
        k: int,
        *,
        allowed: NDArray[np.bool_] | Choice | None = None,
        keep_seen: bool = False,
        diversity: float = 0.0,
    ) -> Sequence[tuple[int, float]]:
        """The ``k`` best items for a history, without its own items.

        Parameters
        ----------
        items, values
            The history: rows of items, and values, shape (n,) each.
        k
            Number of items.
        allowed
            Mask of items that may be recommended, shape (items,), or a filter that is asked for again; ``None``: all.
        keep_seen
            True to rank the history's own items too.
        diversity
            How far items should differ from each other, from 0 to 1 (``diversity``).

        Returns
        -------
        Sequence
            Row and score of each item, the best first.
        """
        import numpy as np

        if isinstance(self.scorer, ScanScorer):
            found = self.scorer.best(items, values, shortlist(k, diversity), allowed, keep_seen=keep_seen)
            return diverse(found, self.scorer, k, diversity)
        allowed = allowed.mask() if isinstance(allowed, Choice) else allowed
        scores = self.scorer.scores([(items, values)], self.scorer.workspace(1))[0]
        if not keep_seen:
            scores[items] = -np.inf
        if allowed is not None:
            scores[~allowed] = -np.inf
        return diverse(_best(scores, shortlist(k, diversity)), self.scorer, k, diversity)

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
        added = self.scorer.contributions(items, values, rows)
        if added is None:
            kind = self.manifest["kind"] + (
                " with user_vectors=learned" if self.manifest["kind"] == "embedding" else ""
            )
            raise UsageError(
                f"{kind}: a score is not a sum over the history, so nothing can be explained; ials, linear and"
                " embedding can"
            )
        return added

    def similar(self, row: int, k: int) -> list[tuple[int, float]]:
        """The ``k`` items nearest to the item ``row``, without itself: row and cosine of each, the nearest first."""
        import numpy as np

        if isinstance(self.scorer, ScanScorer):
            return self.scorer.nearest(row, k)
        scores = self.scorer.similarities(row)
        scores[row] = -np.inf
        return _best(scores, k)


def has_prior(manifest: Mapping[str, Any]) -> bool:
    """True if each item has a prior, which is added to its score for every user: one more column of the factors."""
    return bool(manifest["hyper"].get("prior"))


def _scorer(directory: Path, manifest: Mapping[str, Any], *, mapped: bool) -> Scorer:
    kind, hyper, path = manifest["kind"], manifest["hyper"], directory / weights.WEIGHTS
    if kind == "linear":
        return _linear(directory, manifest)
    if is_coded(manifest):
        return _coded(directory, manifest)
    prior = has_prior(manifest)
    factors = weights.read_items(path, prior=prior, mapped=mapped)
    if kind == "embedding":
        user_side = weights.read_user_side(path) if hyper["tables"] == 2 else None
        encoder = user_encoders.embedding(factors, user_side, hyper)
    else:
        encoder = user_encoders.of_kind(
            kind, factors, hyper, negatives=weights.read_compared(path, len(factors)) if kind == "bpr" else None
        )
    return FactorScorer(factors, encoder, encoder.contributions, prior=prior)


def _scanning(directory: Path, manifest: Mapping[str, Any]) -> Scorer:
    """A scorer with the item vectors on disk, or as codes of a few bits."""
    kind, hyper, path = manifest["kind"], manifest["hyper"], directory / weights.WEIGHTS
    if kind == "linear":
        counts = weights.read_counts(path)
        spectrum = spectral_rows(path, counts, hyper)
        made = spectral_encoder(spectrum, counts, degree_power=float(hyper["degree_power"]))
        return ScanScorer(spectrum, made, Scanner(directory, spectrum))

    def vectors(name: str) -> Rows:
        return CodedRows(coded.read(path, name)) if is_coded(manifest) else ItemRows(path, name)

    rows = vectors(weights.ITEMS)
    if kind == "embedding":
        side = weights.USER_SIDE if is_coded(manifest) else weights.user_side_name(path)
        user_side = vectors(side) if hyper["tables"] == 2 else None
        encoder = user_encoders.sum_of_items(rows, user_side, cosine=hyper["loss"] != "bpr")
    else:
        encoder = user_encoders.of_kind(
            kind, rows, hyper, negatives=weights.read_compared(path, len(rows)) if kind == "bpr" else None
        )
    return ScanScorer(rows, encoder, Scanner(directory, rows))


def _coded(directory: Path, manifest: Mapping[str, Any]) -> Scorer:
    """A scorer with the item vectors as codes."""
    kind, hyper, path = manifest["kind"], manifest["hyper"], directory / weights.WEIGHTS
    rows = CodedRows(coded.read(path, weights.ITEMS))
    if kind == "embedding":
        user_side = CodedRows(coded.read(path, weights.USER_SIDE)) if hyper["tables"] == 2 else None
        prior = weights.read_prior(path) if has_prior(manifest) else None
        return RowScorer(rows, user_encoders.embedding(rows, user_side, hyper, prior), prior)
    negatives = weights.read_compared(path, len(rows)) if kind == "bpr" else None
    return RowScorer(rows, user_encoders.of_kind(kind, rows, hyper, negatives=negatives))


def _linear(directory: Path, manifest: Mapping[str, Any]) -> Scorer:
    path, hyper = directory / weights.WEIGHTS, manifest["hyper"]
    counts, factors, bits = weights.read_counts(path), manifest["factors"], spectrum_bits(manifest)
    if hyper["form"] == "ease":
        return EaseScorer(RowsOnDisk(directory, len(counts)), counts, weights.read_variances(path))
    spectrum: Spectrum | Codes | RowCodes | None = None
    if is_coded(manifest):
        spectrum = coded.read_levels(path, weights.SPECTRUM)
    elif factors and bits < 32:
        spectrum = read_codes(path, factors=factors, bits=bits)
    elif factors:
        spectrum = Spectrum(*weights.read_spectrum(path))
    log = Log(directory, len(counts), user_power=user_power(hyper))
    readers = Readers.of(directory, log)
    if readers is not None:
        # To map a question's arrays of a few MiB anew takes as long as to fill them: 11.7 ms instead of 6.6.
        glibc.unpin_thresholds()
    return linear_scorer(log, counts, hyper, spectrum, readers)


def _best(scores: NDArray[np.float32], k: int) -> list[tuple[int, float]]:
    from apps.recsys.models.top_k import top_k

    rows = top_k(scores, k)
    return list(zip(rows.tolist(), scores[rows].tolist(), strict=True))


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


def read_manifest(directory: Path) -> RecommenderManifest:
    """Read ``model.json`` as it is; raises as ``common.model_folder.load``."""
    manifest: RecommenderManifest = model_folder.load(directory, application="recsys", description=RecommenderManifest)
    return manifest


def load_manifest(directory: Path) -> RecommenderManifest:
    """Read ``model.json`` of a recommender's folder, with the present names of hyper-parameters.

    Raises
    ------
    BadInput
        As ``common.model_folder.load``, ``check_hyper`` and ``check_files``.
    """
    manifest = read_manifest(directory)
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
        *([f"- Attributes of the items: {listed(found)}"] if (found := fields.get("attributes")) else []),
        "- Users are not stored as vectors: each is computed from its history (`history.*.npy`) when asked for",
        "",
    ]
    if metrics:
        lines += [f"Full ranking, split `{fields['split']}`:", "", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
        lines.append("")
    lines += ["Use: `recsys recommend MODEL_DIR --user ID`, `recsys similar MODEL_DIR --item ID`", ""]
    (directory / "card.md").write_text("\n".join(lines), encoding="utf-8")
