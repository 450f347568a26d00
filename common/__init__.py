"""The memory-control layer: plan, train and infer inside a stated number of bytes.

For Python: ``common.estimate`` (``docs/api.md``).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.api.estimate import Estimate as Estimate
    from common.api.estimate import estimate as estimate

__version__ = "0.2.0"
__all__ = ["Estimate", "estimate"]


def __getattr__(name: str) -> Any:
    """Load the API when it is used: every module of peakline imports this package too."""
    if name in __all__:
        from common.api import estimate as module

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
