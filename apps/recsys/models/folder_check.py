"""Check that the files of a model folder are what its manifest says, by their first bytes and sizes alone.

No library is loaded, so a broken or hostile folder is refused before anything is measured. What a file holds is checked
when it is read: ``History``, ``IdTable``, ``weights``.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apps.recsys.data.attributes import stored
from apps.recsys.models import weights
from apps.recsys.models.coded.stored import is_coded, required
from apps.recsys.models.linear.ease import FILE as EASE
from apps.recsys.models.manifest import spectrum_bits
from apps.recsys.models.scan import stored as scan_files
from common.errors import BadInput

TABLES = ("items.parquet", "users.parquet")
HISTORY = {"indptr": "<i8", "items": "<i4", "values": "<f4"}
"""Parts of the history, and their types in NumPy's notation."""
HELD_OUT = {"users": "<i4", "indptr": "<i8", "items": "<i4"}
_NPY, _PARQUET = b"\x93NUMPY\x01\x00", b"PAR1"
_LONGEST_HEADER = 1 << 10
"""Bytes of a ``.npy`` file that its header is looked for in; NumPy writes 128."""


def check_files(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Check all files that answering and evaluating read.

    Parameters
    ----------
    directory
        The model folder.
    manifest
        Its ``model.json``, which is of its description.

    Raises
    ------
    BadInput
        A file is missing or not listed, is of another format, or has other sizes than the manifest says.
    """
    files, users, items = manifest["files"], manifest["users"], manifest["items"]
    needed = (weights.WEIGHTS, *TABLES, *(f"history.{part}.npy" for part in HISTORY))
    linear = manifest["kind"] == "linear"
    if absent := [name for name in needed if name not in files]:
        raise BadInput(f"{directory}: the manifest lists no {', '.join(absent)}", public="model incomplete")
    for name in TABLES:
        _check_parquet(directory / name)
    sizes = {part: _length(directory / f"history.{part}.npy", kind) for part, kind in HISTORY.items()}
    expected = {"indptr": users + 1, "items": manifest["interactions"], "values": manifest["interactions"]}
    if sizes != expected:
        raise BadInput(
            f"{directory}: the history has {sizes['indptr'] - 1:,} users, {sizes['items']:,} items and"
            f" {sizes['values']:,} values; the manifest says {users:,} users and {expected['items']:,} interactions",
            public="model file corrupt",
        )
    if "heldout.users.npy" in files:
        for part, kind in HELD_OUT.items():
            _length(directory / f"heldout.{part}.npy", kind)
    for name, (count, numbers) in {"trained": (users, "items"), "readers": (items, "users")}.items():
        if f"{name}.indptr.npy" in files:
            _check_rows(directory, name, count, numbers)
    for number, attribute in enumerate(manifest.get("attributes", ())):
        for name, (kind, length) in stored.arrays(number, attribute, items).items():
            if name not in files:
                raise BadInput(f"{directory}: the manifest lists no {name}", public="model incomplete")
            if (there := _length(directory / name, kind)) != length:
                raise BadInput(
                    f"{directory / name}: {there:,} numbers, the manifest says {length:,}", public="model file corrupt"
                )
    _check_scan(directory, manifest)
    factors = None if manifest["kind"] == "popularity" else manifest["factors"]
    is_ease, bits = _has_ease(directory, manifest), spectrum_bits(manifest)
    coded = required(manifest) if is_coded(manifest) else {}
    shape = {"items": items, "factors": factors, "bits": bits}
    weights.check(directory / weights.WEIGHTS, **shape, linear=linear, is_ease=is_ease, coded=coded)


def _check_rows(directory: Path, name: str, rows: int, numbers: str) -> None:
    """Check a matrix of as many rows, whose numbers are in ``NAME.NUMBERS.npy``."""
    if _length(directory / f"{name}.indptr.npy", "<i8") != rows + 1:
        raise BadInput(f"{directory}: {name}.indptr.npy has not {rows:,} rows", public="model file corrupt")
    _length(directory / f"{name}.{numbers}.npy", "<i4")


def _check_scan(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Check the codes of a large catalogue, where there are some."""
    if not scan_files.is_there(manifest):
        return
    for name, length in scan_files.sizes(manifest["items"], manifest["factors"]).items():
        if name not in manifest["files"] or _length(directory / name, scan_files.TYPES[name]) != length:
            raise BadInput(f"{directory}: {name} has not {length:,} numbers", public="model file corrupt")


def _has_ease(directory: Path, manifest: Mapping[str, Any]) -> bool:
    """True for EASE, whose weights then are of the right size."""
    if manifest["kind"] != "linear" or manifest["hyper"]["form"] != "ease":
        return False
    items = manifest["items"]
    if _length(directory / EASE, "<f4") != items * items:
        raise BadInput(f"{directory / EASE}: has not {items:,} x {items:,} weights", public="model file corrupt")
    return True


def _check_parquet(path: Path) -> None:
    with path.open("rb") as stream:
        start = stream.read(4)
        stream.seek(max(0, path.stat().st_size - 4))
        end = stream.read(4)
    if (start, end) != (_PARQUET, _PARQUET):
        raise BadInput(f"{path}: not a file in Parquet's format", public="model file corrupt")


def _length(path: Path, kind: str) -> int:
    """Length of a one-dimensional array of a type, which the file holds to its last byte."""
    wrong = BadInput(f"{path}: not a NumPy file of one dimension and type {kind}", public="model file corrupt")
    if not path.is_file():
        raise BadInput(f"{path}: missing", public="model incomplete")
    with path.open("rb") as stream:
        head = stream.read(_LONGEST_HEADER)
    end = 10 + int.from_bytes(head[8:10], "little")
    try:
        header = ast.literal_eval(head[10:end].decode("latin-1").strip()) if head.startswith(_NPY) else None
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise wrong from None
    if not isinstance(header, dict) or end > len(head) or header.get("descr") != kind:
        raise wrong
    shape = header.get("shape")
    if not isinstance(shape, tuple) or len(shape) != 1 or type(shape[0]) is not int or shape[0] < 0:
        raise wrong
    if path.stat().st_size != end + shape[0] * int(kind[-1]):
        raise BadInput(f"{path}: another size than its header says", public="model file corrupt")
    return shape[0]
