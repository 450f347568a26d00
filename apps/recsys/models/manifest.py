"""What ``model.json`` of a recommender says, field by field."""

from collections.abc import Mapping
from typing import Annotated, NotRequired, TypedDict

from common import model_folder

Count = Annotated[int, ("minimum", 0)]
Hyper = Mapping[str, bool | int | float | str]


class ModelFields(TypedDict):
    """What a recommender's manifest says beside its kind and its files."""

    factors: Annotated[int, ("minimum", 1)]
    """Numbers of an item's vector, without the prior."""
    table: str
    """What the vectors were while they trained: ``full``, ``int8``, ``hash`` and so on."""
    cosine: NotRequired[bool]
    """Whether vectors are brought to unit length before they are compared."""
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
    split: str
    """What was held out: ``none``, ``user-holdout``, ``leave-last``, ``temporal``, ``random``."""
    seed: int
    """Of everything random."""


class RecommenderManifest(ModelFields, model_folder.Manifest):
    """``model.json`` of a recommender."""
