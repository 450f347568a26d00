"""3D segmentation: the command line ``imaging``, and ``segment`` for Python (``docs/api.md``)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apps.imaging.api import Segmentation as Segmentation
    from apps.imaging.api import segment as segment

__all__ = ["Segmentation", "segment"]


def __getattr__(name: str) -> Any:
    """Load the API when it is used: every command imports this package too."""
    if name in __all__:
        from apps.imaging import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
