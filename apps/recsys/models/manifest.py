"""Fields of ``model.json`` of a recommender."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from apps.recsys.data.attributes import stored
from apps.recsys.data.attributes.stored import Attribute
from common import model_folder, typed_json
from common.errors import BadInput

Count = Annotated[int, ("minimum", 0)]
Table = Literal["full", "int8", "int4", "hash", "qr", "tt", "lowrank", "pq", "frequency"]
Hyper = Mapping[str, bool | int | float | str]
_LARGEST = 1e12
_NotNegative = Annotated[float, ("minimum", 0), ("maximum", _LARGEST)]
_Positive = Annotated[float, ("exclusiveMinimum", 0), ("maximum", _LARGEST)]


class ColumnNames(TypedDict):
    """Names of the columns that were read; null: none."""

    user: str | None
    item: str | None
    value: str | None
    time: str | None


class FoldedLog(TypedDict):
    """The beginning of a server's log of feedback that was added to a model."""

    bytes: Count
    """Its size."""
    sha256: model_folder.Sha256
    """Its digest."""


class ModelFields(TypedDict):
    """Fields of a recommender's manifest other than its kind and its files."""

    factors: Count
    """Numbers of an item's vector, without the prior; eigenvectors of a linear model's spectrum, 0 without one."""
    table: Table
    """Table of the vectors in training."""
    codes: NotRequired[Mapping[str, Count]]
    """Bytes of an item in each matrix of item vectors that ``recsys compress`` made codes; absent: none is codes."""
    code_form: NotRequired[Literal["product", "residual"]]
    """How code books make them; absent: levels of each dimension."""
    cosine: NotRequired[bool]
    """True if vectors are brought to unit length before they are compared."""
    items: Annotated[int, ("minimum", 1)]
    users: Annotated[int, ("minimum", 1)]
    interactions: Count
    """Pairs that it was trained on or that were held out."""
    longest_history: Count
    """Items of the user with most of them, among those that evaluation scores."""
    longest: NotRequired[Count]
    """Items of the user with most of them."""
    hyper: Hyper
    """Hyper-parameters by name."""
    split: Literal["none", "user-holdout", "leave-last", "temporal", "random"]
    """Interactions that were held out."""
    seed: int
    """Seed of everything random."""
    columns: NotRequired[ColumnNames]
    """Columns of the first file that it was trained on."""
    min_value: NotRequired[float]
    """Rows with a smaller value were left out."""
    duplicates: NotRequired[Literal["sum", "last", "once"]]
    """What repeated rows of a pair count: the sum of their values (where it is absent), the last of them, or 1."""
    feedback: NotRequired[FoldedLog]
    """Log of feedback that is part of the interactions; the server does not count its events again."""
    attributes: NotRequired[list[Attribute]]
    """Attributes of the items, for ``--where``."""


class RecommenderManifest(ModelFields, model_folder.Manifest):
    """``model.json`` of a recommender."""


class _IalsHyper(TypedDict):
    """Hyper-parameters of a user's vector; further ones matter to training alone."""

    alpha: _Positive
    regularization: _Positive
    weight: Literal["log", "value", "binary"]
    frequency_scaling: NotRequired[_NotNegative]


class _BprHyper(TypedDict):
    user_regularization: _Positive


class _EmbeddingHyper(TypedDict):
    loss: Literal["softmax", "ccl", "bpr"]
    tables: Literal[1, 2]
    temperature: _Positive
    margin: _NotNegative
    negative_weight: _NotNegative
    user_vectors: NotRequired[Literal["learned", "history"]]
    prior: NotRequired[_NotNegative]


class _LinearHyper(TypedDict):
    form: Literal["filter", "spectral", "ease"]
    degree_power: Annotated[float, ("minimum", 0), ("maximum", 1)]
    user_power: NotRequired[Annotated[float, ("minimum", 0), ("maximum", 1)]]
    item_power: NotRequired[Annotated[float, ("minimum", 0), ("maximum", 1)]]
    saturation: _Positive
    ridge: NotRequired[_Positive]
    bits: NotRequired[Literal[32, 8, 4, 2, 1]]


class _PopularityHyper(TypedDict):
    window: NotRequired[str]


HYPER: Mapping[str, Any] = {
    "ials": _IalsHyper,
    "bpr": _BprHyper,
    "embedding": _EmbeddingHyper,
    "linear": _LinearHyper,
    "popularity": _PopularityHyper,
}
"""Kind of model -> the hyper-parameters that answering reads, by their present names."""


CODED: Mapping[str, tuple[str, ...]] = {
    "ials": ("item_factors",),
    "bpr": ("item_factors",),
    "embedding": ("item_factors", "user_side_factors"),
    "linear": ("spectrum",),
}
"""Kind of model -> its matrices that may be codes (``apps.recsys.models.coded``)."""


def spectrum_bits(manifest: Mapping[str, Any]) -> int:
    """Bits of a number of a linear model's spectrum; 32 for models of other kinds and of earlier versions."""
    return int(manifest["hyper"].get("bits", 32)) if manifest["kind"] == "linear" else 32


def check_hyper(directory: Path, manifest: RecommenderManifest) -> RecommenderManifest:
    """The manifest, where its kind is known and has the hyper-parameters that answering needs.

    Raises
    ------
    BadInput
        Another kind; a hyper-parameter is missing, of another type or out of range.
    """
    path, kind = directory / model_folder.MANIFEST, manifest["kind"]
    if kind not in HYPER:
        raise BadInput(
            f"{path}: a model of kind {kind!r}; this version reads {', '.join(HYPER)}", public="model of another kind"
        )
    typed_json.require(manifest["hyper"], HYPER[kind], path=path, what="model manifest", location="hyper")
    names = [attribute["name"] for attribute in manifest.get("attributes", [])]
    if len(names) > stored.MOST or len(set(names)) < len(names):
        raise BadInput(
            f"{path}: two attributes of one name, or more than {stored.MOST}", public="model manifest invalid"
        )
    codes = manifest.get("codes", {})
    if not set(codes) <= set(CODED.get(kind, ())) or min(codes.values(), default=2) < 2:
        raise BadInput(f"{path}: codes that a model of its kind cannot have", public="model manifest invalid")
    if "code_form" in manifest and (not codes or kind == "linear"):
        raise BadInput(f"{path}: code books that a model of its kind cannot have", public="model manifest invalid")
    if not manifest["factors"] and (kind != "linear" or manifest["hyper"]["form"] == "spectral"):
        raise BadInput(f"{path}: factors must be at least 1", public="model manifest invalid")
    return manifest
