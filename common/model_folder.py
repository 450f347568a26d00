"""The model folder both applications share: ``model.json`` lists every file with size and digest, and is written last.

A folder is complete when ``model.json`` exists and every listed size agrees. Digests are checked by ``verify``
(on import and by ``inspect``), not on each load, because hashing weights costs more than reading them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import __version__
from common.errors import BadInput
from common.files import sha256, write_json

FORMAT = 1
MANIFEST = "model.json"


def seal(directory: Path, *, application: str, kind: str, files: list[str], fields: Mapping[str, Any]) -> None:
    """Write ``model.json`` over the files already in ``directory``; from here on the model counts as complete.

    Parameters
    ----------
    directory
        The model folder; every name in ``files`` is in it.
    application
        ``"imaging"`` or ``"recsys"``.
    kind
        The network or algorithm, ``"segresnet"`` or ``"ials"`` for example.
    fields
        What the application adds (DESIGN 4): labels, network, factors and so on.
    """
    listed = {name: {"bytes": (directory / name).stat().st_size, "sha256": sha256(directory / name)} for name in files}
    write_json(
        directory / MANIFEST,
        {
            "format": FORMAT,
            "application": application,
            "kind": kind,
            "made_by": __version__,
            "files": listed,
            **fields,
        },
    )


def unseal(directory: Path) -> None:
    """Take ``model.json`` away before files are rewritten: a half-rewritten folder must not look complete."""
    (directory / MANIFEST).unlink(missing_ok=True)


def load(directory: Path, *, application: str) -> dict[str, Any]:
    """Read and check ``model.json``.

    Raises
    ------
    BadInput
        No such folder, no manifest, another application's model, a newer format, a file missing or of another size,
        or a listed name that would leave the folder.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        raise BadInput(f"{directory}: no such model folder", public="no such model folder")
    if not path.is_file():
        raise BadInput(f"{directory}: not a complete model folder ({MANIFEST} is missing)", public="model incomplete")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, version = manifest["application"], manifest["format"]
        files: dict[str, Any] = manifest["files"]
        sizes = {str(name): int(entry["bytes"]) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: not a peakline manifest ({error!r})", public="model manifest unreadable") from None
    if found != application:
        raise BadInput(
            f"{directory}: a model of {found!r}, not of {application!r}", public="model of another application"
        )
    if version != FORMAT:
        raise BadInput(f"{directory}: model format {version}, this version reads {FORMAT}", public="model format")
    for name, size in sizes.items():
        if Path(name).name != name:
            raise BadInput(f"{path}: {name!r} is not a plain file name", public="model manifest unreadable")
        actual = (directory / name).stat().st_size if (directory / name).is_file() else None
        if actual != size:
            have = "missing" if actual is None else f"{actual} bytes"
            raise BadInput(f"{directory}: {name} is {have}, the manifest says {size} bytes", public="model incomplete")
    return manifest


def verify(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Check every listed digest.

    Raises
    ------
    BadInput
        Naming the first file whose content is not what the manifest says.
    """
    for name, entry in manifest["files"].items():
        if sha256(directory / name) != entry["sha256"]:
            raise BadInput(f"{directory / name}: content does not match its sha256", public="model file corrupt")
