"""The settings by which unfinished work is recognised, made here for every command from declared fields of its request.

Work is continued only by a request with equal settings; where they differ, their names say why it is not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

DECIDES: Mapping[str, Any] = {"decides": True}
"""Metadata of a dataclass field on which the result depends; ``"except"`` names entries of a mapping that do not."""


def resume_settings(request: object, **inputs: str | int) -> dict[str, Any]:
    """All that decides the result of a request, by name, as JSON has it.

    Parameters
    ----------
    request
        A dataclass whose fields are declared with ``DECIDES`` where the result depends on them. The value of
        such a field is flattened if it is a dataclass or a mapping.
    inputs
        Facts about the files that were read, which decide too: digests and sizes.

    Returns
    -------
    dict
        Equal for two requests whose unfinished work is interchangeable.
    """
    settings: dict[str, Any] = {**_declared(request), **inputs}
    as_read: dict[str, Any] = json.loads(json.dumps(settings))
    return as_read


def _declared(request: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for each in fields(request):
        if each.metadata.get("decides"):
            value = getattr(request, each.name)
            if is_dataclass(value):
                settings |= _declared(value)
            elif isinstance(value, Mapping):
                ignored = each.metadata.get("except", ())
                settings |= {name: inner for name, inner in value.items() if name not in ignored}
            else:
                settings[each.name] = value
    return settings
