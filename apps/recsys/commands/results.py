"""The ``results`` in the record of each ``recsys`` command that ended well, field by field."""

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypedDict

from apps.recsys.models.manifest import ColumnNames, ModelFields
from common.memory.report.run_json import RanksJson

Count = Annotated[int, ("minimum", 0)]
Metrics = Mapping[str, float]
"""By name and depth: ``ndcg@10``."""


class ModelResults(ModelFields):
    """The model's kind and the fields of its ``model.json`` other than the files."""

    kind: str


class DataResults(TypedDict):
    """Sizes of the interactions."""

    rows: Count
    """Rows read."""
    users: Count
    items: Count
    interactions: Count
    """Distinct pairs of user and item."""
    dropped: Mapping[str, Count]
    """Reason -> rows left out."""
    scored_users: Count
    """Users with held-out items."""
    titled: Count
    """Items with a title."""
    left_out: list[tuple[str, str]]
    """Columns of the items' table that are no attributes, each with the reason."""
    new_users: Count
    """Users with held-out items of whom training saw nothing."""
    repeated: NotRequired[Count]
    """Rows beyond the first of each pair."""
    forgotten: NotRequired[Count]
    """Interactions of users who were forgotten."""
    columns: list[ColumnNames]
    """Columns that were taken, each reading once."""


class TrainResults(TypedDict):
    """Results of ``recsys train``."""

    metrics: Metrics
    """On the held-out items; empty without ``--split``."""
    intervals: NotRequired[Mapping[str, tuple[float, float]]]
    """95 % intervals of the means, by the bootstrap over users."""
    steps: Count
    """Passes over the data."""
    model: ModelResults
    data: DataResults
    tuning: NotRequired[Mapping[str, Any]]
    """The trials of ``--tune``."""
    ranks: NotRequired[RanksJson]


class AddedResults(TypedDict):
    """Differences of a model's sizes; negative where more was forgotten than added."""

    users: int
    items: int
    interactions: int
    """Distinct pairs of user and item."""


class UpdateResults(TrainResults):
    """Results of ``recsys update``; ``steps`` is 0."""

    added: AddedResults


class TestResults(TypedDict):
    """Counts of test files."""

    users: Count
    pairs: Count
    unknown_users: Count
    """Rows whose user is not in the model."""
    unknown_items: Count
    """Rows whose item is not in the model."""
    rows: Count
    """Rows read."""
    dropped: Mapping[str, Count]
    """Reason -> rows that were not scored."""
    trained: NotRequired[Count]
    """Pairs that the model was trained on: such an item is never shown to its user."""
    columns: NotRequired[list[ColumnNames]]
    """Columns that were taken, each reading once."""


class AgainstResults(TypedDict):
    """The model that was compared, on the same users."""

    metrics: Metrics
    intervals: Mapping[str, tuple[float, float]]
    differences: Metrics
    """Metrics of the first model minus those of this one."""
    difference_intervals: Mapping[str, tuple[float, float]]
    """95 % intervals of the differences, by the bootstrap over users, each with its two values."""


class EvaluateResults(TypedDict):
    """Results of ``recsys evaluate``."""

    users: Count
    """Users who were scored."""
    metrics: Metrics
    intervals: NotRequired[Mapping[str, tuple[float, float]]]
    """95 % intervals of the means, by the bootstrap over users."""
    new_users: NotRequired[Count]
    """Users of whom training saw nothing; they were shown popular items."""
    test: NotRequired[TestResults]
    """Counts of the test files."""
    against: NotRequired[AgainstResults]


class ScoredItem(TypedDict):
    """An item and its score."""

    id: int | str
    title: NotRequired[str]
    """Title of the item, where the model has one."""
    score: float


class Recommendation(ScoredItem):
    """An item in a list, with what explains its score where that was asked for."""

    because: NotRequired[list[ScoredItem]]
    """Items of the history, and what each adds to the score."""
    others: NotRequired[float]
    """Score that the rest of the history adds."""


class ItemsResults(TypedDict):
    """Results of ``recsys recommend`` for one user, and of ``recsys similar``."""

    items: list[Recommendation]
    """The best first."""


class ScoredUser(TypedDict):
    """A user who is like another, and how far."""

    id: int | str
    score: float
    """Cosine."""


class UsersResults(TypedDict):
    """Results of ``recsys similar --user``."""

    users: list[ScoredUser]
    """The nearest first."""


class AllUsersResults(TypedDict):
    """Results of ``recsys recommend`` with ``--all-users``, ``--users`` or ``--histories``."""

    users: Count
    """Users or histories for which there is a list."""
    unknown: NotRequired[Count]
    """Ids of the file that are not in the model."""
    popular: NotRequired[Count]
    """Users or histories without an item of the model, who were shown popular items."""
    rows: Count
    """Lines written."""
    k: Annotated[int, ("minimum", 1)]


class ExportResults(TypedDict):
    """Results of ``recsys export``."""

    items: Count
    factors: Count
    """Numbers of each vector; 0 for a model that scores without vectors, as ONNX."""
    opset: NotRequired[int]
    """Version of the operators of an ONNX file."""
    file_bytes: NotRequired[Count]
    """Size of an ONNX file."""


class CompressedRows(TypedDict):
    """Rows of a matrix that have the same bits."""

    rows: Count
    """How many there are."""
    bytes: Annotated[int, ("minimum", 1)]
    """Bytes of each with its scale."""
    bits: Mapping[str, Count]
    """Number of bits -> dimensions, or entries of code books, that have as many."""


class CompressResults(TypedDict):
    """Results of ``recsys compress``."""

    item_bytes: Annotated[int, ("minimum", 1)]
    """Bytes of an item's vectors with their scales, and of its prior."""
    item_bytes_before: Annotated[int, ("minimum", 1)]
    file_bytes: Count
    """Size of the weights, or of the file of factors."""
    file_bytes_before: Count
    dimensions: Annotated[int, ("minimum", 1)]
    """Numbers of each vector that are left."""
    bits: Mapping[str, list[CompressedRows]]
    """Matrix -> classes of its rows, those of fewest bytes first."""
    metrics: Metrics
    """On the held-out items; empty where there are none."""
    intervals: NotRequired[Mapping[str, tuple[float, float]]]
    """95 % intervals of the means, by the bootstrap over users."""
    before: NotRequired[Metrics]
    """Those of the model that was compressed."""
    in_common: NotRequired[float]
    """Share of the best items of some users that both models list, where nothing is held out."""
    model: NotRequired[ModelResults]
    """Of a model folder."""


class AssumedResults(TypedDict):
    """Sizes that ``recsys size`` was asked about."""

    items: Count
    users: Count
    interactions: Count
    longest: Count
    """Items of the user with most of them."""
    kind: str
    factors: Annotated[int, ("minimum", 1)]
    split: str
    threads: Annotated[int, ("minimum", 1)]


class NeedResults(TypedDict):
    """What a command needs."""

    command: str
    predicted_peak_bytes: Count
    """Of the fastest setting."""
    peak_phase: str
    ceiling_bytes: Count
    """Ceiling from which the fastest setting runs."""
    least_ceiling_bytes: Count
    """The smallest ceiling that is enough."""
    knobs: Mapping[str, int | float | str]
    least_knobs: Mapping[str, int | float | str]


class SizeResults(TypedDict):
    """Results of ``recsys size``."""

    assumed: AssumedResults
    commands: list[NeedResults]


RESULTS: Mapping[str, tuple[Any, ...]] = {
    "recsys train": (TrainResults,),
    "recsys update": (UpdateResults,),
    "recsys compress": (CompressResults,),
    "recsys evaluate": (EvaluateResults,),
    "recsys recommend": (ItemsResults, AllUsersResults),
    "recsys similar": (ItemsResults, UsersResults),
    "recsys export": (ExportResults,),
    "recsys size": (SizeResults,),
}
"""Command -> what its results may be."""
