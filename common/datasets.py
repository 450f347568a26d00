"""Public data sets by name: found where they lie, or fetched from their publisher and checked.

``find`` looks below ``PEAKLINE_DATA`` and in the per-user cache. ``fetch`` downloads (resumably), checks the digest
before anything is unpacked, and unpacks only the members the catalogue lists, within the size it states.
"""

import csv
import io
import os
import shutil
import socket
import tarfile
import tomllib
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from common.errors import BadInput
from common.files import digest, scratch_directory
from common.memory.costs import store
from common.resources import data_folder

CONNECT_SECONDS = 3.0
"""Time limit of the publisher's first answer."""
READ_SECONDS = 30.0
"""Longest pause of a transfer."""
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Dataset:
    """One entry of the catalogue."""

    name: str
    application: str
    title: str
    url: str
    checksum: str
    """``"algorithm:hex"``."""
    unpacked_bytes: int
    """More than this is not unpacked."""
    licence: str
    citation: str
    files: Mapping[str, str]
    """Our name -> the archive's member; both end in "/" for a folder."""
    table: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Our name -> how to rewrite a text table as CSV."""


def catalog() -> dict[str, Dataset]:
    """Every data set of the catalogue, by name."""
    text = (data_folder() / "catalog.toml").read_text("utf-8")
    return {name: Dataset(name=name, **entry) for name, entry in tomllib.loads(text).items()}


def cache_directory() -> Path:
    """Folder of fetched sets: ``$XDG_CACHE_HOME/peakline/datasets``, next to the measured costs."""
    return store.cache_directory().parent / "datasets"


def find(name: str) -> Path | None:
    """Return the folder of a data set, or ``None`` if it is not on this machine."""
    folders = [Path(os.environ["PEAKLINE_DATA"])] if os.environ.get("PEAKLINE_DATA") else []
    for folder in (*folders, cache_directory()):
        if (folder / name).is_dir():
            return (folder / name).resolve()
    return None


def fetch(dataset: Dataset, directory: Path, *, progress: Callable[[int, int | None], None] | None = None) -> Path:
    """Download, check and unpack; returns the folder, which appears whole or not at all.

    Parameters
    ----------
    directory
        Folder of the data sets; that of one is ``directory / dataset.name``.
    progress
        Called with bytes so far and the total, where the publisher states it.

    Raises
    ------
    BadInput
        The publisher cannot be reached, or what it sent is not what the catalogue says.
    """
    target = directory / dataset.name
    if target.is_dir():
        return target
    directory.mkdir(parents=True, exist_ok=True)
    archive = directory / f".{dataset.name}.download"
    _download(dataset.url, archive, progress or (lambda done, total: None))
    algorithm, _, expected = dataset.checksum.partition(":")
    if (actual := digest(archive, algorithm)) != expected:
        archive.unlink()
        raise BadInput(f"{dataset.url}: {algorithm} is {actual}, the catalogue says {expected}; nothing was kept")
    with scratch_directory(directory, dataset.name) as scratch:
        _unpack(dataset, archive, scratch)
        scratch.rename(target)
    archive.unlink()
    return target


def _download(url: str, archive: Path, progress: Callable[[int, int | None], None]) -> None:
    """Fetch ``url`` into ``archive``, continuing from what an earlier attempt left."""
    address = urllib.parse.urlsplit(url)
    port = address.port or {"http": 80, "https": 443}[address.scheme]
    have = archive.stat().st_size if archive.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        # urllib has one time-out for everything; the wait for an answer is bounded here.
        socket.create_connection((address.hostname or "", port), CONNECT_SECONDS).close()
        with closing(urllib.request.urlopen(request, timeout=READ_SECONDS)) as response:
            resumed = response.status == 206
            length = response.headers.get("Content-Length")
            done = have if resumed else 0
            total = done + int(length) if length else None
            with archive.open("ab" if resumed else "wb") as stream:
                while block := response.read(_BLOCK):
                    stream.write(block)
                    done += len(block)
                    progress(done, total)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to send: the earlier attempt was complete
            return
        raise BadInput(f"{url}: the publisher answers {error.code} {error.reason}") from None
    except OSError as error:
        raise BadInput(f"{url}: cannot be reached ({error}); fetch it again to go on") from None


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Regular files of a zip or tar archive, as (name, stream); links and devices are passed over."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield ((info.filename, zipped.open(info)) for info in zipped.infolist() if not info.is_dir())
        return
    with tarfile.open(archive) as tar:
        yield ((info.name, stream) for info in tar if info.isfile() and (stream := tar.extractfile(info)) is not None)


def _unpack(dataset: Dataset, archive: Path, scratch: Path) -> None:
    """Write the listed members below ``scratch``."""
    left = dataset.unpacked_bytes
    wanted = set(dataset.files)
    try:
        with _members(archive) as members:
            for name, stream in members:
                ours = _our_name(dataset, name)
                if ours is None:
                    continue
                path = scratch / ours
                path.parent.mkdir(parents=True, exist_ok=True)
                limited = _Limited(stream, left)
                with path.open("wb") as out:
                    if ours in dataset.table:
                        _write_csv(limited, out, **dataset.table[ours])
                    else:
                        shutil.copyfileobj(limited, out, _BLOCK)
                left = limited.left
                wanted -= {ours, f"{Path(ours).parent}/"}
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, UnicodeError) as error:
        raise BadInput(f"{dataset.url}: the archive is damaged ({error})") from None
    if wanted:
        raise BadInput(f"{dataset.url}: the archive lacks {', '.join(sorted(wanted))}")


def _our_name(dataset: Dataset, member: str) -> str | None:
    """Our name for an archive's member, or ``None``; a folder's files keep their last part only."""
    last = Path(member).name
    if last.startswith("."):  # macOS puts ._ files next to the real ones
        return None
    for ours, theirs in dataset.files.items():
        if theirs == member:
            return ours
        if theirs.endswith("/") and member == theirs + last:
            return ours + last
    return None


class _Limited(io.RawIOBase):
    """A stream that refuses to yield more than it may: the guard against archives that grow when unpacked."""

    def __init__(self, stream: IO[bytes], left: int) -> None:
        self.stream, self.left = stream, left

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        block = self.stream.read(len(buffer))
        self.left -= len(block)
        if self.left < 0:
            raise BadInput("the archive unpacks to more than the catalogue states; nothing was kept")
        buffer[: len(block)] = block
        return len(block)


def _write_csv(
    stream: io.RawIOBase, out: IO[bytes], *, separator: str, encoding: str, columns: list[str], header: bool
) -> None:
    lines = io.TextIOWrapper(io.BufferedReader(stream), encoding=encoding)
    text = io.TextIOWrapper(out, encoding="utf-8", newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    for number, line in enumerate(lines):
        if number or not header:
            writer.writerow(line.rstrip("\r\n").split(separator, len(columns) - 1))
    text.flush()
    with suppress(ValueError):
        text.detach()
