"""Input paths as a user names them: files, patterns of files, and folders of Parquet files with Hive partitions."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from common.errors import BadInput

PARQUET = (".parquet", ".pq")
"""Suffixes of Parquet files."""


def expanded(paths: Sequence[Path]) -> list[tuple[Path, tuple[tuple[str, str], ...]]]:
    """The files that paths mean, in order, each with its partitions: names and values of further columns.

    A folder means all Parquet files in and below it, apart from names that begin with ``.`` or ``_``. A path that does
    not exist and has ``*``, ``?`` or ``[`` is a pattern.

    Raises
    ------
    BadInput
        A folder has no Parquet files; no file matches a pattern.
    """
    files: list[tuple[Path, tuple[tuple[str, str], ...]]] = []
    for path in paths:
        if path.is_dir():
            files += _folder(path)
        elif not path.exists() and glob.has_magic(str(path)):
            found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
            if not found:
                raise BadInput(f"{path}: no file matches this pattern", public="no such file")
            for one in found:
                files += _folder(one) if one.is_dir() else [(one, ())]
        else:
            files.append((path, ()))
    return files


def _folder(path: Path) -> list[tuple[Path, tuple[tuple[str, str], ...]]]:
    found = []
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if (
            file.suffix.lower() in PARQUET
            and file.is_file()
            and not any(p.startswith((".", "_")) for p in inside.parts)
        ):
            pairs = (part.partition("=") for part in inside.parts[:-1] if "=" in part)
            found.append((file, tuple((name, _value(value)) for name, _, value in pairs)))
    if not found:
        raise BadInput(f"{path}: a folder without Parquet files; name the files in it", public="no such file")
    return found


def _value(text: str) -> str:
    """A partition's value as Hive writes it in a folder's name; empty for null."""
    return "" if text == "__HIVE_DEFAULT_PARTITION__" else unquote(text)
