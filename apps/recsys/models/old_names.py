"""Hyper-parameters that were called differently before version 0.2: the old names and values are still read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

log = logging.getLogger("peakline")

_NAMES: Mapping[str, Mapping[str, str]] = {
    "ials": {"frequency": "frequency_scaling"},
    "embedding": {"user": "user_vectors"},
}
"""Kind of model -> old name -> new name."""
_VALUES: Mapping[str, Mapping[str, str]] = {"user_vectors": {"own": "learned", "sum": "history"}}
"""New name -> old value -> new value."""


def renamed_pairs(kind: str, pairs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Bring ``--set`` pairs to the present names.

    Parameters
    ----------
    kind
        Kind of model that the pairs are for.
    pairs
        ``"NAME=VALUE"`` each, as on the command line.

    Returns
    -------
    pairs, notes
        The same pairs with present names and values, and a sentence for each pair that was changed.

    Examples
    --------
    >>> renamed_pairs("ials", ["frequency=1", "alpha=2"])
    (['frequency_scaling=1', 'alpha=2'], ['--set frequency=1 is now written frequency_scaling=1'])
    """
    renamed, notes = [], []
    for pair in pairs:
        name, equals, value = pair.partition("=")
        new_name, new_value = _renamed(kind, name, value)
        renamed.append(f"{new_name}{equals}{new_value}")
        if renamed[-1] != pair:
            notes.append(f"--set {pair} is now written {renamed[-1]}")
    return renamed, notes


def renamed_hyper(kind: str, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Bring the ``hyper`` of a ``model.json`` to the present names; what had to be changed is logged as one warning.

    Parameters
    ----------
    kind
        Kind of the model.
    hyper
        Hyper-parameters as they are stored.
    """
    renamed = dict(_renamed(kind, name, value) for name, value in hyper.items())
    if renamed != dict(hyper):
        changed = [
            f"{name}={value} is now {new}={renamed[new]}"
            for (name, value), new in zip(hyper.items(), renamed, strict=True)
            if (name, value) != (new, renamed[new])
        ]
        log.warning("the model was written by an older version: %s", ", ".join(changed))
    return renamed


def _renamed(kind: str, name: str, value: Any) -> tuple[str, Any]:
    name = _NAMES.get(kind, {}).get(name, name)
    values = _VALUES.get(name, {})
    return name, values.get(value, value) if isinstance(value, str) else value
