"""Fetch studies from a DICOMweb server and send results to it: QIDO-RS, WADO-RS and STOW-RS over http.client.

All data is streamed: parts of an answer go to disk as they arrive, objects are sent from disk, and what is read into
memory is bounded. Redirects are not followed. Credentials come only from the environment (``PEAKLINE_DICOMWEB_TOKEN``,
or ``PEAKLINE_DICOMWEB_USER`` and ``PEAKLINE_DICOMWEB_PASSWORD``) and are sent over plain HTTP only to this machine.
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
"""Bytes of the header of one part."""
MOST_PARTS = 100_000
ROOM = 1 << 30
"""Bytes that a download leaves free on the disk."""
TIMEOUT = 60
"""Seconds of silence."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NOT_IMAGES = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "SR", "PR", "KO", "DOC", "REG"}
_MODALITY, _STUDY, _SERIES, _INSTANCE, _FAILED = "00080060", "0020000D", "0020000E", "00080018", "00081198"
_PART_ONLY = "299"
"""Warning of a server that returns only some of a search's results (PS3.18 8.3.4.4)."""
_DICOM = 'multipart/related; type="application/dicom"'


def is_address(text: str) -> bool:
    """True if an input is an address on a server."""
    return text.startswith(("http://", "https://"))


def check_address(text: str) -> str:
    """Return an address without a slash at its end.

    Raises
    ------
    UsageError
        If it has credentials in it, or no host.
    """
    parts = urlsplit(text)
    if parts.username or parts.password:
        raise UsageError("credentials do not belong in an address: set PEAKLINE_DICOMWEB_USER and _PASSWORD, or _TOKEN")
    if not parts.hostname:
        raise UsageError(f"{text}: no host in this address")
    return text.rstrip("/")


@contextmanager
def _answer(method: str, address: str, *, accept: str, body: Any = None, **headers: str) -> Iterator[Any]:
    """Send a request and yield the open response with status 200.

    Raises
    ------
    BadInput
        Any other status, without the server's words, or a failed connection.
    """
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
            message = (
                f"{address}: the server answered {response.status} {http.client.responses.get(response.status, '')}"
            )
            raise BadInput(message.strip(), public=f"DICOMweb status {response.status}")
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
    """QIDO-RS: results of a search, each a mapping by tag."""
    with _answer("GET", address, accept="application/dicom+json") as response:
        content, warning = response.read(ANSWER_LIMIT + 1), response.headers.get("Warning", "")
    if warning.startswith(_PART_ONLY):
        message = "the server returns only a part of the results; narrow the search, or add limit= to it"
        raise BadInput(f"{address}: {message}", public="DICOMweb answer in part")
    try:
        results = json.loads(content or b"[]") if len(content) <= ANSWER_LIMIT else None
    except ValueError:
        results = None
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise BadInput(f"{address}: not an answer to a search", public="DICOMweb answer")
    return results


def _value(result: dict[str, Any], tag: str) -> str:
    values = result.get(tag, {}).get("Value") or [""]
    return str(values[0])


def find_studies(address: str) -> list[str]:
    """Addresses of studies or series: the address itself, or those that a search ``.../studies?...`` finds.

    Raises
    ------
    BadInput
        If the server does not answer, or there is no such study.
    """
    check_address(address)
    base, slash, rest = address.partition("/studies")
    if not slash:
        raise BadInput(f"{address}: not the address of a study: .../studies/UID[/series/UID], .../studies?...",
                         public="DICOMweb address")  # fmt: skip
    if rest.strip("/") and not rest.startswith("?"):
        return [address]
    uids = [uid for result in _search(address) if re.fullmatch(r"[0-9.]+", uid := _value(result, _STUDY))]
    if not uids:
        raise BadInput(f"{address}: no studies found", public="no studies found")
    return [f"{base}/studies/{uid}" for uid in uids]


def _series(address: str, series: str | None) -> str:
    """Address of the only series of images, or of the one that ``series`` names by number or UID."""
    if "/series/" in address:
        return address
    listed = [one for one in _search(f"{address}/series") if _value(one, _MODALITY) not in _NOT_IMAGES]
    uids = [_value(one, _SERIES) for one in listed]
    if series in uids:
        chosen = uids.index(series)
    elif series is not None and series.isdigit() and 1 <= int(series) <= len(uids):
        chosen = int(series) - 1
    elif len(uids) == 1 and series is None:
        chosen = 0
    else:
        kinds = "; ".join(f"{number}: {_value(one, _MODALITY)}" for number, one in enumerate(listed, 1))
        raise BadInput(f"{address}: {len(uids)} series ({kinds}); --series N|UID picks one", public="several series")
    return f"{address}/series/{uids[chosen]}"


def listing(address: str, series: str | None = None) -> str:
    """SHA-256 of the instances that the server lists for a series: while it is the same, so is the series.

    Raises
    ------
    BadInput
        If the server does not list them.
    """
    source = _series(address, series)
    instances = sorted(_value(result, _INSTANCE) for result in _search(f"{source}/instances"))
    return hashlib.sha256("\n".join([source, *instances]).encode()).hexdigest()


def download(address: str, folder: Path, series: str | None = None) -> None:
    """WADO-RS: store a series' instances as files in ``folder``, in the transfer syntax that the server has.

    Raises
    ------
    BadInput
        An answer that is not multipart, ends early, has too many parts or does not fit on the disk.
    """
    source = _series(address, series)
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
    """Reads the parts of a multipart answer (RFC 2046) in order, through a buffer of about one block."""

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
        """Copy up to the next boundary, and skip that."""
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
        """Copy the next part's content; returns ``False`` after the last part."""
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
    """Inputs as paths: studies on servers are fetched into a private folder, which is removed with the process.

    Parameters
    ----------
    parent
        Existing directory in which the folder is made.
    series
        Number or UID of the series of a study, as ``--series`` has it.
    """

    def __init__(self, parent: Path, series: str | None) -> None:
        self._parent, self._series = parent, series
        self._folder: Workspace | None = None

    def listed(self, source: str) -> str:
        """The ``listing`` of an input on a server; empty for files, and if the server does not list it."""
        if not is_address(source):
            return ""
        try:
            return listing(source, self._series)
        except BadInput:
            return ""  # fetching the study will report the error

    def path(self, source: str) -> tuple[Path, str | None]:
        """Path of an input, and the series that is still to be chosen there.

        Raises
        ------
        BadInput
            If a study cannot be fetched.
        """
        if not is_address(source):
            return Path(source), self._series
        if self._folder is None:
            self._folder = Workspace(self._parent, "dicomweb")  # also removes those of killed processes
        folder = self._folder.path / uuid.uuid4().hex
        folder.mkdir()
        download(source, folder, self._series)
        return folder, None


def store(address: str, files: Sequence[Path]) -> None:
    """STOW-RS: send files, each in a request of its own.

    Raises
    ------
    BadInput
        If the server does not store one of them.
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
    """True if an answer names instances that failed; one that cannot be parsed had status 200 and counts as success."""
    try:
        answer = json.loads(content or b"{}")
    except ValueError:
        return False
    return isinstance(answer, dict) and bool(answer.get(_FAILED, {}).get("Value"))


def _pieces(head: bytes, file: BinaryIO, tail: bytes) -> Iterator[bytes]:
    yield head
    while block := file.read(BLOCK):
        yield block
    yield tail
