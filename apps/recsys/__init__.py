"""Recommenders: the command line ``recsys``, and ``Recommender`` for Python (``docs/api.md``)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.recsys.api import Recommender as Recommender

__all__ = ["Recommender"]


def __getattr__(name: str) -> Any:
    """Load the API when it is used: every command imports this package too."""
    if name == "Recommender":
        from apps.recsys.api import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
