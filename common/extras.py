"""Check that an optional dependency is installed before work begins that needs it."""

from importlib.util import find_spec

from common.errors import UsageError


def require(extra: str, *modules: str, purpose: str) -> None:
    """Check that the modules of an extra can be found, without importing them.

    Parameters
    ----------
    extra
        Its name in ``pyproject.toml``.
    modules
        Top-level modules that it installs.
    purpose
        The option or command that needs them, for the message.

    Raises
    ------
    UsageError
        Naming the extra and how to install it.

    Examples
    --------
    >>> require("serve", "json", purpose="recsys serve")
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        names = ", ".join(missing)
        raise UsageError(f"{purpose} needs the extra {extra!r} ({names}): pip install 'peakline[{extra}]'")
