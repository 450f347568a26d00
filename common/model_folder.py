"""The format of model folders of both applications: ``model.json`` lists every file with size and digest.

``model.json`` is written last. A folder is complete when it exists and every listed size agrees. ``verify`` checks the
digests, on import and in ``inspect``; a load does not, because hashing weights takes longer than reading them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict, TypeVar

from common import __version__, typed_json
from common.errors import BadInput, UsageError
from common.files import sha256, write_json
from common.resources import data_folder

FORMAT = 1
MANIFEST = "model.json"

FileName = Annotated[str, ("pattern", r"^(?!\.\.?$)[^/\\\u0000]+$"), ("title", "a plain file name")]
Sha256 = Annotated[str, ("pattern", "^[0-9a-f]{64}$"), ("title", "a SHA-256 in hex")]


class FileEntry(TypedDict):
    """Size and digest of one file of the model."""

    bytes: Annotated[int, ("minimum", 0)]
    """Size of the file."""
    sha256: Sha256
    """Digest of its content."""


class _Head(TypedDict):
    """The fields that are read first, in a folder of any version."""

    format: int
    """Version of the format; this program reads and writes 1."""
    application: str
    """``imaging`` or ``recsys``."""


class Manifest(_Head):
    """The fields of every ``model.json``; each application adds its own."""

    kind: str
    """The network or the algorithm."""
    made_by: str
    """The version that wrote it."""
    files: Mapping[FileName, FileEntry]
    """Every file of the model; the folder may contain others."""


M = TypeVar("M", bound=Manifest)


def seal(directory: Path, *, application: str, kind: str, files: list[str], fields: Mapping[str, Any]) -> None:
    """Write ``model.json`` for the files in ``directory``, which makes the model complete.

    Parameters
    ----------
    directory
        The model folder.
    application
        ``"imaging"`` or ``"recsys"``.
    kind
        The network or algorithm, for example ``"segresnet"`` or ``"ials"``.
    files
        Names of files in ``directory``.
    fields
        The application's own fields: labels, network, factors and so on (``data/schemas``).
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
    """Return the models that are installed with the program, by name."""
    return {path.parent.name: path.parent for path in sorted((data_folder() / "models").glob(f"*/{MANIFEST}"))}


def model_path(text: str) -> Path:
    """Convert an argument: a path, or the name of a model that is installed with the program.

    An existing path takes precedence: a folder ``hippocampus`` in the working directory is used instead of the
    installed model of that name.
    """
    path = Path(text)
    return path if path.exists() or path.name != text else shipped_models().get(text, path)


def shipped_note(path: Path) -> str:
    """Return a note that the model is one of those installed with the program; empty for any other folder."""
    if path.resolve().parent != (data_folder() / "models").resolve():
        return ""
    return f"model: {path.name}, which is installed with peakline ({path})"


def unseal(directory: Path) -> None:
    """Remove ``model.json`` before files are rewritten: a partly rewritten folder must not look complete."""
    (directory / MANIFEST).unlink(missing_ok=True)


def load(directory: Path, *, application: str, description: type[M]) -> M:
    """Read and check ``model.json``.

    Parameters
    ----------
    description
        The application's manifest type, ``Manifest`` with more fields.

    Raises
    ------
    BadInput
        The folder or its manifest is missing; the manifest is damaged or does not match its description (a name outside
        the folder, a negative size); the model is another application's or of a newer format; a file is missing or has
        another size.
    """
    path = directory / MANIFEST
    if not directory.is_dir():
        names = ", ".join(name for name, folder in shipped_models().items() if application_of(folder) == application)
        hint = f"; installed with peakline: {names}" if names and directory.name == str(directory) else ""
        raise BadInput(f"{directory}: no such model folder{hint}", public="no such model folder")
    if not path.is_file():
        raise BadInput(f"{directory}: not a complete model folder ({MANIFEST} is missing)", public="model incomplete")
    manifest = typed_json.read(path, _Head, what="model manifest")
    owner, version = manifest["application"], manifest["format"]
    if owner != application:
        raise BadInput(
            f"{directory}: a model of {owner!r}, not of {application!r}", public="model of another application"
        )
    if version != FORMAT:
        raise BadInput(f"{directory}: model format {version}, this version reads {FORMAT}", public="model format")
    described = typed_json.require(manifest, description, path=path, what="model manifest")
    for name, size in ((name, entry["bytes"]) for name, entry in described["files"].items()):
        actual = (directory / name).stat().st_size if (directory / name).is_file() else None
        if actual != size:
            present = "missing" if actual is None else f"{actual} bytes"
            raise BadInput(
                f"{directory}: {name} is {present}, the manifest says {size} bytes", public="model incomplete"
            )
    return described


def application_of(directory: Path) -> str | None:
    """The application whose model a folder holds; ``None`` where it holds none that can be read."""
    try:
        return typed_json.read(directory / MANIFEST, _Head, what="model manifest")["application"]
    except BadInput:
        return None


def check_output(directory: Path, application: str) -> None:
    """Check that a model may be written to ``directory``, which need not exist.

    Raises
    ------
    UsageError
        If it is a file, or holds a model of another application.
    """
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"-o {directory}: is a file; a model is a folder")
    if application_of(directory) not in (None, application):
        raise UsageError(f"-o {directory}: holds another application's model; choose another folder")


def verify(directory: Path, manifest: Manifest) -> None:
    """Check every listed digest.

    Raises
    ------
    BadInput
        A file's content does not match its digest; the message names the first such file.
    """
    for name, entry in manifest["files"].items():
        if sha256(directory / name) != entry["sha256"]:
            raise BadInput(f"{directory / name}: content does not match its sha256", public="model file corrupt")
