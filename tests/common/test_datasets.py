"""Fetching, against a server on loopback."""

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from common import datasets
from common.datasets import Dataset
from common.errors import BadInput
from tests.messages import refused

TABLE = {"separator": "::", "encoding": "latin-1", "columns": ["id", "title"], "header": False}


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes], list[str]]]:
    """Address, what it serves by path, and the Range headers it was sent."""
    content: dict[str, bytes] = {}
    ranges: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = content.get(self.path)
            if body is None:
                self.send_error(404)
                return
            start = 0
            if "Range" in self.headers:
                ranges.append(self.headers["Range"])
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                if start >= len(body):
                    self.send_error(416)
                    return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start:])

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", content, ranges
    httpd.shutdown()
    httpd.server_close()


def _zip(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def _entry(url: str, body: bytes, **change: object) -> Dataset:
    entry = {
        "name": "films",
        "application": "recsys",
        "title": "films",
        "url": url,
        "checksum": "sha256:" + hashlib.sha256(body).hexdigest(),
        "unpacked_bytes": 10_000,
        "licence": "",
        "citation": "",
        "files": {"movies.csv": "ml/movies.dat"},
        "table": {"movies.csv": TABLE},
    }
    return Dataset(**(entry | change))  # type: ignore[arg-type]


def test_a_table_becomes_csv(server: tuple[str, dict[str, bytes], list[str]], tmp_path: Path) -> None:
    address, content, _ = server
    content["/a.zip"] = body = _zip(
        ml__movies=b"", **{"ml__movies.dat": "1::Léon, the film\n2::Alien\n".encode("latin-1")}
    )
    folder = datasets.fetch(_entry(f"{address}/a.zip", body), tmp_path)
    assert (folder / "movies.csv").read_text("utf-8").splitlines() == ["id,title", '1,"Léon, the film"', "2,Alien"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["films"]
    del content["/a.zip"]
    assert datasets.fetch(_entry(f"{address}/a.zip", body), tmp_path) == folder


def test_goes_on_from_a_broken_transfer(server: tuple[str, dict[str, bytes], list[str]], tmp_path: Path) -> None:
    address, content, ranges = server
    content["/a.zip"] = body = _zip(**{"ml__movies.dat": b"1::Alien\n"})
    (tmp_path / ".films.download").write_bytes(body[:40])
    datasets.fetch(_entry(f"{address}/a.zip", body), tmp_path)
    assert ranges == ["bytes=40-"]


def test_wrong_digest_keeps_nothing(server: tuple[str, dict[str, bytes], list[str]], tmp_path: Path) -> None:
    address, content, _ = server
    content["/a.zip"] = _zip(**{"ml__movies.dat": b"1::Alien\n"})
    with refused(BadInput, "a.zip", "sha256", hashlib.sha256(b"other").hexdigest()):
        datasets.fetch(_entry(f"{address}/a.zip", b"other"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_bomb_is_refused(server: tuple[str, dict[str, bytes], list[str]], tmp_path: Path) -> None:
    address, content, _ = server
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ml/movies.dat", b"\0" * 5_000_000)
    content["/a.zip"] = body = buffer.getvalue()
    with refused(BadInput, "archive", "more"):
        datasets.fetch(_entry(f"{address}/a.zip", body, table={}), tmp_path)
    assert not (tmp_path / "films").exists()


def test_only_listed_members_and_no_escape(server: tuple[str, dict[str, bytes], list[str]], tmp_path: Path) -> None:
    address, content, _ = server
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("T/imagesTr/a.nii.gz", "T/imagesTr/._a.nii.gz", "T/imagesTr/../../../evil", "T/other.txt"):
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("T/imagesTr/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    content["/a.tar"] = body = buffer.getvalue()
    entry = _entry(f"{address}/a.tar", body, files={"imagesTr/": "T/imagesTr/"}, table={})
    folder = datasets.fetch(entry, tmp_path / "in")
    assert [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()] == ["imagesTr/a.nii.gz"]
    assert not (tmp_path / "evil").exists()


def test_lacking_a_member(server: tuple[str, dict[str, bytes], list[str]], tmp_path: Path) -> None:
    address, content, _ = server
    content["/a.zip"] = body = _zip(readme=b"")
    with refused(BadInput, "movies.csv"):
        datasets.fetch(_entry(f"{address}/a.zip", body), tmp_path)


def test_unreachable_is_one_line(server: tuple[str, dict[str, bytes], list[str]], tmp_path: Path) -> None:
    address, _, _ = server
    with refused(BadInput, 404) as none:
        datasets.fetch(_entry(f"{address}/none.zip", b""), tmp_path)
    with refused(BadInput, "http://127.0.0.1:9/none.zip") as unreachable:
        datasets.fetch(_entry("http://127.0.0.1:9/none.zip", b""), tmp_path)
    assert "\n" not in f"{none.value}{unreachable.value}"


def test_the_catalogue_is_complete() -> None:
    entries = datasets.catalog()
    assert {"lastfm", "ml-1m", "msd-hippocampus"} <= set(entries)
    for entry in entries.values():
        assert entry.url.startswith("https://") and entry.application in ("recsys", "imaging")
        assert len(entry.checksum.partition(":")[2]) in (32, 64)


def test_found_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PEAKLINE_DATA", str(tmp_path / "data"))
    assert datasets.find("films") is None
    (datasets.cache_directory() / "films").mkdir(parents=True)
    assert datasets.find("films") == datasets.cache_directory() / "films"
    (tmp_path / "data" / "films").mkdir(parents=True)
    assert datasets.find("films") == tmp_path / "data" / "films"
