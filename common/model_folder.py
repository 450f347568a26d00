"""The model folder both applications share: ``model.json`` lists every file with size and digest, and is written last.

A folder is complete when ``model.json`` exists and every listed size agrees. Digests are checked by ``verify``
(on import and by ``inspect``), not on each load, because hashing weights costs more than reading them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar

from common import __version__, typed_json
from common.errors import BadInput
from common.files import sha256, write_json
from common.resources import data_folder

FORMAT = 1
MANIFEST = "model.json"

FileName = Annotated[str, ("pattern", r"^(?!\.\.?$)[^/\\\u0000]+$"), ("title", "a plain file name")]
Sha256 = Annotated[str, ("pattern", "^[0-9a-f]{64}$"), ("title", "a SHA-256 in hex")]


class FileEntry(TypedDict):
    """What is known of one file of the model."""

    bytes: Annotated[int, ("minimum", 0)]
    """Its size."""
    sha256: Sha256
    """Of its content."""


class _Head(TypedDict):
    """What is read first, of whatever version the folder is."""

    format: int
    """Of the folder; this version reads and writes 1."""
    application: str
    """``imaging`` or ``recsys``."""


class Manifest(_Head):
    """What every ``model.json`` says; an application's own has more fields."""

    kind: str
    """The network or the algorithm."""
    made_by: str
    """The version that wrote it."""
    files: Mapping[FileName, FileEntry]
    """Every file of the model; more may lie beside them."""


M = TypeVar("M", bound=Manifest)


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


def shipped_models() -> dict[str, Path]:
    """The models that are installed with the program, by name."""
    return {path.parent.name: path.parent for path in sorted((data_folder() / "models").glob(f"*/{MANIFEST}"))}


def model_path(text: str) -> Path:
    """An argparse type: a path, or the name of a model that is installed with the program.

    A path that exists wins: a folder ``hippocampus`` in the working directory is taken, and not the installed model of
    that name.
    """
    path = Path(text)
    return path if path.exists() or path.name != text else shipped_models().get(text, path)


def shipped_note(path: Path) -> str:
    """The line that says that ``model_path`` took an installed model; empty where it did not."""
    if path.parent != data_folder() / "models":
        return ""
    return f"model: {path.name}, which is installed with peakline ({path})"


def unseal(directory: Path) -> None:
    """Take ``model.json`` away before files are rewritten: a half-rewritten folder must not look complete."""
    (directory / MANIFEST).unlink(missing_ok=True)


def load(directory: Path, *, application: str, description: type[M]) -> M:
    """Read and check ``model.json``.

    Parameters
    ----------
    description
        The application's own: ``Manifest`` and more fields.

    Raises
    ------
    BadInput
        No such folder, no manifest, a damaged one or one that does not match its description (a listed name that would
        leave the folder, a negative size), another application's model, a newer format, or a file that is missing or
        of another size.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        known = ", ".join(name for name, place in shipped_models().items() if _application(place) == application)
        hint = f"; installed with peakline: {known}" if known and directory.name == str(directory) else ""
        raise BadInput(f"{directory}: no such model folder{hint}", public="no such model folder")
    if not path.is_file():
        raise BadInput(f"{directory}: not a complete model folder ({MANIFEST} is missing)", public="model incomplete")
    manifest = typed_json.read(path, _Head, what="model manifest")
    found, version = manifest["application"], manifest["format"]
    if found != application:
        raise BadInput(
            f"{directory}: a model of {found!r}, not of {application!r}", public="model of another application"
        )
    if version != FORMAT:
        raise BadInput(f"{directory}: model format {version}, this version reads {FORMAT}", public="model format")
    described = typed_json.require(manifest, description, path=path, what="model manifest")
    for name, size in ((name, entry["bytes"]) for name, entry in described["files"].items()):
        actual = (directory / name).stat().st_size if (directory / name).is_file() else None
        if actual != size:
            have = "missing" if actual is None else f"{actual} bytes"
            raise BadInput(f"{directory}: {name} is {have}, the manifest says {size} bytes", public="model incomplete")
    return described


def _application(directory: Path) -> str:
    return typed_json.read(directory / MANIFEST, _Head, what="model manifest")["application"]


def verify(directory: Path, manifest: Manifest) -> None:
    """Check every listed digest.

    Raises
    ------
    BadInput
        Naming the first file whose content is not what the manifest says.
    """
    for name, entry in manifest["files"].items():
        if sha256(directory / name) != entry["sha256"]:
            raise BadInput(f"{directory / name}: content does not match its sha256", public="model file corrupt")
