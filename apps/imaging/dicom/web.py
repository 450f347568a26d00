"""Studies from a DICOMweb server, and results sent to it: QIDO-RS, WADO-RS and STOW-RS over the standard library.

Everything is streamed: parts of an answer go to disk as they arrive, objects are sent from disk, and what is read into
memory is bounded. Redirects are not followed. Credentials come from the environment only (``PEAKLINE_DICOMWEB_TOKEN``,
or ``PEAKLINE_DICOMWEB_USER`` and ``PEAKLINE_DICOMWEB_PASSWORD``), and never go over plain HTTP but to this machine.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import uuid
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from common.errors import BadInput, UsageError
from common.files import Workspace

NETWORK_BYTES = 6 << 20
"""The standard library's HTTP and TLS, and the buffers below (measured 3.3 MiB while 200 MiB came over plain HTTP)."""
BLOCK = 1 << 18
ANSWER_LIMIT = 16 << 20
"""Bytes of a JSON answer."""
HEADER_LIMIT = 1 << 14
"""Bytes of a part's own header."""
MOST_PARTS = 100_000
ROOM = 1 << 30
"""Bytes of the disk that a download leaves free."""
TIMEOUT = 60
"""Seconds of silence."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NOT_IMAGES = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "DOC", "REG"}
_MODALITY, _STUDY, _SERIES, _INSTANCE, _FAILED = "00080060", "0020000D", "0020000E", "00080018", "00081198"
_PART_ONLY = "299"
"""With this warning a server gives only some of what a search finds (PS3.18 8.3.4.4)."""
_DICOM = 'multipart/related; type="application/dicom"'


def is_address(text: str) -> bool:
    """Whether an input is on a server."""
    return text.startswith(("http://", "https://"))


def check_address(text: str) -> str:
    """The address, if it has no credentials in it. Raises ``UsageError``."""
    parts = urlsplit(text)
    if parts.username or parts.password:
        raise UsageError("credentials do not belong in an address: set PEAKLINE_DICOMWEB_USER and _PASSWORD, or _TOKEN")
    if not parts.hostname:
        raise UsageError(f"{text}: no host in this address")
    return text.rstrip("/")


@contextmanager
def _answer(method: str, address: str, *, accept: str, body: Any = None, **headers: str) -> Iterator[Any]:
    """An open response with status 200; anything else is an ``BadInput`` without the server's words."""
    parts = urlsplit(address)
    host = parts.hostname or ""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(host, parts.port, timeout=TIMEOUT, blocksize=BLOCK)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        allowed = _credentials(parts.scheme == "https" or host in LOOPBACK)
        connection.request(method, target, body, {"Accept": accept, **allowed, **headers})
        response = connection.getresponse()
        if response.status != http.client.OK:
            line = f"{address}: the server answered {response.status} {http.client.responses.get(response.status, '')}"
            raise BadInput(line.strip(), public=f"DICOMweb status {response.status}")
        yield response
    except (OSError, http.client.HTTPException) as error:
        raise BadInput(f"{address}: {error or type(error).__name__}", public="DICOMweb connection") from None
    finally:
        connection.close()


def _credentials(private: bool) -> dict[str, str]:
    token, user = os.environ.get("PEAKLINE_DICOMWEB_TOKEN"), os.environ.get("PEAKLINE_DICOMWEB_USER")
    if not token and not user:
        return {}
    if not private:
        raise BadInput("credentials are not sent over plain HTTP to another machine", public="DICOMweb without TLS")
    if token:
        return {"Authorization": f"Bearer {token}"}
    pair = f"{user}:{os.environ.get('PEAKLINE_DICOMWEB_PASSWORD', '')}"
    return {"Authorization": "Basic " + b64encode(pair.encode()).decode()}


def _search(address: str) -> list[dict[str, Any]]:
    """QIDO-RS: a list of objects by tag."""
    with _answer("GET", address, accept="application/dicom+json") as response:
        content, warning = response.read(ANSWER_LIMIT + 1), response.headers.get("Warning", "")
    if warning.startswith(_PART_ONLY):
        line = f"{address}: the server gives only a part of what it finds; narrow the search, or add limit= to it"
        raise BadInput(line, public="DICOMweb answer in part")
    try:
        found = json.loads(content or b"[]") if len(content) <= ANSWER_LIMIT else None
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise BadInput(f"{address}: not an answer to a search", public="DICOMweb answer")
    return found


def _value(found: dict[str, Any], tag: str) -> str:
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0])


def find_studies(address: str) -> list[str]:
    """Addresses of studies or series: the address itself, or, of ``.../studies?...``, what the search finds.

    Raises
    ------
    BadInput
        If the server does not answer, or finds nothing.
    """
    check_address(address)
    base, slash, rest = address.partition("/studies")
    if not slash:
        raise BadInput(f"{address}: not the address of a study: .../studies/UID[/series/UID], .../studies?...",
                         public="DICOMweb address")  # fmt: skip
    if rest.strip("/") and not rest.startswith("?"):
        return [address]
    found = [uid for one in _search(address) if re.fullmatch(r"[0-9.]+", uid := _value(one, _STUDY))]
    if not found:
        raise BadInput(f"{address}: no studies found", public="no studies found")
    return [f"{base}/studies/{uid}" for uid in found]


def _series(address: str, wanted: str | None) -> str:
    """The address of the one series of images that is meant."""
    if "/series/" in address:
        return address
    listed = [one for one in _search(f"{address}/series") if _value(one, _MODALITY) not in _NOT_IMAGES]
    uids = [_value(one, _SERIES) for one in listed]
    if wanted in uids:
        chosen = uids.index(wanted)
    elif wanted is not None and wanted.isdigit() and 1 <= int(wanted) <= len(uids):
        chosen = int(wanted) - 1
    elif len(uids) == 1 and wanted is None:
        chosen = 0
    else:
        kinds = "; ".join(f"{number}: {_value(one, _MODALITY)}" for number, one in enumerate(listed, 1))
        raise BadInput(f"{address}: {len(uids)} series ({kinds}); --series N|UID picks one", public="several series")
    return f"{address}/series/{uids[chosen]}"


def listing(address: str, wanted: str | None = None) -> str:
    """Digest of the instances that the server lists for a series: another one must be fetched anew.

    Raises
    ------
    BadInput
        If it does not list them.
    """
    source = _series(address, wanted)
    found = sorted(_value(one, _INSTANCE) for one in _search(f"{source}/instances"))
    return hashlib.sha256("\n".join([source, *found]).encode()).hexdigest()


def download(address: str, folder: Path, wanted: str | None = None) -> None:
    """WADO-RS: the series' instances as files in ``folder``, in the syntax in which they are stored."""
    source = _series(address, wanted)
    with _answer("GET", source, accept=f"{_DICOM}; transfer-syntax=*") as response:
        kind = response.headers.get_content_type()
        boundary = response.headers.get_param("boundary")
        if kind != "multipart/related" or not boundary:
            raise BadInput(f"{source}: the answer is {kind}, not multipart/related", public="DICOMweb answer")
        parts = _Parts(source, response, str(boundary).encode("ascii", "replace"))
        for number in range(MOST_PARTS + 1):
            if number == MOST_PARTS:
                raise BadInput(f"{source}: more than {MOST_PARTS} instances", public="DICOMweb answer")
            with (folder / f"{number:06d}.dcm").open("wb") as file:
                if not parts.copy_next(file):
                    break
    (folder / f"{number:06d}.dcm").unlink()


class _Parts:
    """The parts of a multipart answer (RFC 2046), one after the other, through a buffer of a block."""

    def __init__(self, source: str, response: BinaryIO, boundary: bytes) -> None:
        self._source, self._response = source, response
        self._mark = b"\r\n--" + boundary
        self._buffer = b"\r\n"  # so that the first boundary looks like the others
        self._copied_to_mark(None)

    def _read(self) -> None:
        block = self._response.read(BLOCK)
        if not block:
            raise BadInput(f"{self._source}: the answer ends early", public="DICOMweb answer")
        self._buffer += block

    def _copied_to_mark(self, file: BinaryIO | None) -> None:
        """Copy up to the next boundary, and stand behind it."""
        while (at := self._buffer.find(self._mark)) < 0:
            ready = len(self._buffer) - len(self._mark)
            if ready > 0:
                self._write(file, self._buffer[:ready])
                self._buffer = self._buffer[ready:]
            self._read()
        self._write(file, self._buffer[:at])
        self._buffer = self._buffer[at + len(self._mark) :]

    def _write(self, file: BinaryIO | None, content: bytes) -> None:
        if file is None:
            return
        if shutil.disk_usage(Path(file.name).parent).free < ROOM + len(content):
            raise BadInput(f"{self._source}: too large for the disk here", public="disk full")
        file.write(content)

    def copy_next(self, file: BinaryIO) -> bool:
        """Copy the next part's content; ``False`` after the last."""
        while len(self._buffer) < 2:
            self._read()
        if self._buffer.startswith(b"--"):
            return False
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > HEADER_LIMIT:
                raise BadInput(f"{self._source}: a part without an end to its header", public="DICOMweb answer")
            self._read()
        self._buffer = self._buffer[end + 4 :]
        self._copied_to_mark(file)
        return True


class Downloads:
    """Inputs as paths: what is on a server is brought to a private folder, which goes with the process.

    Parameters
    ----------
    parent
        An existing directory on the disk that holds the folder.
    series
        Which series of a study, as ``--series`` has it.
    """

    def __init__(self, parent: Path, series: str | None) -> None:
        self._parent, self._series = parent, series
        self._folder: Workspace | None = None

    def listed(self, source: str) -> str:
        """What a server lists for an input (``listing``); empty for files, and where it does not say."""
        if not is_address(source):
            return ""
        try:
            return listing(source, self._series)
        except BadInput:
            return ""  # fetching it will say what is wrong

    def path(self, source: str) -> tuple[Path, str | None]:
        """Where an input lies, and which of its series is still to be chosen. Raises ``BadInput``."""
        if not is_address(source):
            return Path(source), self._series
        if self._folder is None:
            self._folder = Workspace(self._parent, "dicomweb")  # those of killed processes hold patients' images
        folder = self._folder.path / uuid.uuid4().hex
        folder.mkdir()
        download(source, folder, self._series)
        return folder, None


def store(address: str, files: Sequence[Path]) -> None:
    """STOW-RS: send objects, each in a request of its own, from disk.

    Raises
    ------
    BadInput
        If the server does not take one.
    """
    for path in files:
        boundary = uuid.uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        length = str(len(head) + path.stat().st_size + len(tail))
        kind = f"{_DICOM}; boundary={boundary}"
        with (
            path.open("rb") as file,
            _answer("POST", f"{address.rstrip('/')}/studies", accept="application/dicom+json",
                    body=_pieces(head, file, tail), **{"Content-Type": kind, "Content-Length": length}) as response,
        ):  # fmt: skip
            content = response.read(ANSWER_LIMIT)
        if _refused(content):
            raise BadInput(f"{address}: the server did not store {path.name}", public="STOW refused")


def _refused(content: bytes) -> bool:
    """Whether an answer names instances that failed; one that cannot be read came with status 200 all the same."""
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        return False
    return isinstance(found, dict) and bool(found.get(_FAILED, {}).get("Value"))


def _pieces(head: bytes, file: BinaryIO, tail: bytes) -> Iterator[bytes]:
    yield head
    while block := file.read(BLOCK):
        yield block
    yield tail
