"""Studies from a DICOMweb server and results back to it: a real Orthanc, and one that answers as none should."""

import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from apps.imaging.dicom import web
from common.errors import BadInput, UsageError
from common.files import Workspace
from tests.apps.imaging import in_process
from tests.apps.imaging.dicom_files import NAME, WHOLE, series
from tests.apps.imaging.helpers import output_file, random_model
from tests.conftest import absent
from tests.messages import refused, says
from tests.promise import kept

ORTHANC = shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER = {"PEAKLINE_DICOMWEB_USER": "alice", "PEAKLINE_DICOMWEB_PASSWORD": "secret"}
STUDY = WHOLE["StudyInstanceUID"]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The root of a server with a password, which keeps what it has in ``folder``."""
    if ORTHANC is None or not PLUGIN.exists():
        absent("Orthanc with DICOMweb (Debian packages orthanc, orthanc-dicomweb)")
    port = free_port()
    settings = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"alice": "secret"},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([str(ORTHANC), str(folder / "orthanc.json")], stdout=log, stderr=log)
        for _ in range(300):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/dicom-web"
        server.terminate()
        server.wait()


def stock(root: str, folder: Path, **fields: Any) -> Path:
    """Make a series in a new folder and send it."""
    folder.mkdir()
    series(folder, count=20, **WHOLE | fields)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in USER.items():
            patch.setenv(name, value)
        web.store(root, sorted(folder.iterdir()))
    return folder


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The server with one series in it, and that series."""
    place = tmp_path_factory.mktemp("orthanc")
    with serving(place) as root:
        yield root, stock(root, place / "series")


def test_a_study_goes_through_a_server_and_its_result_back(run, quick, stocked, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, folder = stocked
    random_model(tmp_path / "model")
    out = tmp_path / "out"
    options = ("-m", tmp_path / "model", "--output-type", "nifti,dicom-seg,dicom-rtstruct")
    done = run(
        "apps.imaging", "infer", f"{root}/studies/{STUDY}", "-o", out, "--stow", root, "--json", *options, env=USER
    )
    assert done.code == 0, done.err
    kept(done.record)
    names = [output_file(out, ending=ending).name for ending in (".nii.gz", ".rtstruct.dcm", ".seg.dcm")]
    assert sorted(path.name for path in out.iterdir()) == ["run.json", *names, "studies.csv"]
    assert re.fullmatch(r"series-[0-9a-f]{8}\.nii\.gz", names[0])
    assert not list(tmp_path.glob(".dicomweb*"))
    plain = quick("apps.imaging", "infer", folder, "-o", tmp_path / "plain", *options)
    assert plain.code == 0, plain.err
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    said = done.out + done.err + (out / "run.json").read_text()
    assert not [word for word in (NAME, "secret", STUDY, "127.0.0.1") if word in said]
    seg = pydicom.dcmread(output_file(out, ending=".seg.dcm"))
    back = tmp_path / "back"
    back.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in USER.items():
            patch.setenv(name, value)
        web.download(f"{root}/studies/{STUDY}/series/{seg.SeriesInstanceUID}", back)
        listed = web._search(f"{root}/studies/{STUDY}/series")
    (stored,) = back.iterdir()
    found = pydicom.dcmread(stored)
    assert found.PixelData == seg.PixelData and found.SOPInstanceUID == seg.SOPInstanceUID
    assert {web._value(one, web._MODALITY) for one in listed} == {"CT", "SEG", "RTSTRUCT"}


def test_a_search_a_choice_and_inspect(run, stocked, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root, _ = stocked
    told = run("apps.imaging", "inspect", f"{root}/studies/{STUDY}", env=USER)
    assert told.code == 0
    says(told.out, "CT", "20 slices")
    assert NAME not in told.out + told.err and "PLANTED" not in told.out + told.err
    with pytest.MonkeyPatch.context() as patch:
        for name, value in USER.items():
            patch.setenv(name, value)
        assert web.find_studies(f"{root}/studies?PatientID=PLANTED-ID") == [f"{root}/studies/{STUDY}"]
        with refused(BadInput, "studies"):
            web.find_studies(f"{root}/studies?PatientID=nobody")
        with refused(BadInput, "--series"):
            web.download(f"{root}/studies/{STUDY}", tmp_path, "7")
    denied = run("apps.imaging", "inspect", f"{root}/studies/{STUDY}", env=USER | {"PEAKLINE_DICOMWEB_PASSWORD": "no"})
    assert denied.code == 4 and "401" in denied.err and len(denied.err.splitlines()) == 1


@contextmanager
def watched(root: str) -> Iterator[tuple[str, list[str]]]:
    """Another address of the server, and the paths of all objects that were fetched there."""
    fetched: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            accept = self.headers["Accept"]
            if "multipart" in accept:
                fetched.append(self.path)
            headers = {"Accept": accept, "Authorization": self.headers["Authorization"]}
            with urllib.request.urlopen(urllib.request.Request(root + self.path, headers=headers)) as answer:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers["Content-Type"])
                self.end_headers()
                shutil.copyfileobj(answer, self.wfile)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", fetched
    server.shutdown()


def test_what_was_done_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model(tmp_path / "model")
    with serving(tmp_path) as direct, watched(direct) as (root, fetched):
        folder = stock(direct, tmp_path / "series")

        def infer(*options: object) -> str:
            """Run, and say what became of the study."""
            command = ("infer", f"{root}/studies/{STUDY}", "-m", tmp_path / "model", "-o", tmp_path / "out")
            with monkeypatch.context() as patch:
                for name, value in USER.items():
                    patch.setenv(name, value)
                results, _ = in_process.done(*command, *options)
            return str(results["studies"][0]["status"])

        assert infer() == "done" and len(fetched) == 1
        first = output_file(tmp_path / "out").read_bytes()
        assert infer() == "skipped" and len(fetched) == 1
        assert infer("--overlap", "0.25") == "done" and len(fetched) == 2, "other labels were asked for"
        assert infer() == "skipped" and len(fetched) == 2, "a result with other settings does not replace it"
        assert output_file(tmp_path / "out").read_bytes() == first
        output_file(tmp_path / "out").unlink()
        assert infer() == "done" and len(fetched) == 3, "the output was gone"
        one = pydicom.dcmread(sorted(folder.iterdir())[0])
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"{STUDY}.999"
        with pytest.MonkeyPatch.context() as patch:
            for name, value in USER.items():
                patch.setenv(name, value)
            before = web.listing(f"{root}/studies/{STUDY}")
            one.save_as(tmp_path / "more.dcm")
            web.store(direct, [tmp_path / "more.dcm"])
            assert web.listing(f"{root}/studies/{STUDY}") != before


BODY = b"--B\r\nContent-Type: application/dicom\r\n\r\none\r\n--A\r\n--B\r\n\r\n" + bytes(600_000) + b"\r\n--B--\r\n"
ANSWERS: dict[str, tuple[int, str, bytes]] = {
    "good": (200, 'multipart/related; boundary="B"', BODY),
    "cut": (200, "multipart/related; boundary=B", BODY[:300_000]),
    "plain": (200, "application/dicom", b"abc"),
    "endless": (200, "multipart/related; boundary=B", b"--B\r\n" + b"x" * 100_000),
    "moved": (302, "text/plain", b""),
    "list": (200, "application/dicom+json", b'{"not": "a list"}'),
    "some": (200, "application/dicom+json", b"[]"),
}


@pytest.fixture(scope="module")
def odd() -> Iterator[str]:
    """A server with one answer to each address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, kind, body = ANSWERS[self.path.split("/")[1]]
            self.send_response(code)
            self.send_header("Content-Type", kind)
            if code == 302:
                self.send_header("Location", "http://example.org/")
            if body == b"[]":
                self.send_header("Warning", '299 here: "There are 7 additional results that can be requested"')
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.parametrize("block", [1, 7, 1 << 18])
def test_parts_are_what_was_sent(odd: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """However the answer is cut into blocks, and whatever looks like a boundary."""
    monkeypatch.setattr(web, "BLOCK", block)
    if block < 100:
        monkeypatch.setitem(ANSWERS, "good", (200, ANSWERS["good"][1], BODY.replace(bytes(600_000), bytes(600))))
    web.download(f"{odd}/good/series/1", tmp_path)
    first, second = sorted(tmp_path.iterdir())
    assert first.read_bytes() == b"one\r\n--A"
    assert not np.frombuffer(second.read_bytes(), np.uint8).any() and second.stat().st_size in (600, 600_000)


@pytest.mark.parametrize(
    ("name", "fact"),
    [("cut", "early"), ("plain", "multipart"), ("endless", "header"), ("moved", "302")],
)
def test_odd_answers_are_one_line(odd: str, tmp_path: Path, name: str, fact: str) -> None:
    with refused(BadInput, fact) as refusal:
        web.download(f"{odd}/{name}/series/1", tmp_path)
    assert "\n" not in str(refusal.value) and "127.0.0.1" not in refusal.value.public
    with refused(BadInput, "answer"):
        web.find_studies(f"{odd}/list/studies?a=b")
    with refused(BadInput, "part"):
        web.find_studies(f"{odd}/some/studies?a=b")
    with pytest.raises(BadInput):
        web.find_studies(f"http://127.0.0.1:{free_port()}/studies?a=b")


def test_credentials_stay_where_they_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEAKLINE_DICOMWEB_TOKEN", "secret")
    with refused(BadInput, "HTTP") as refusal:
        web.find_studies("http://hospital.example/studies?a=b")
    assert "secret" not in str(refusal.value)
    with refused(UsageError, "PEAKLINE_DICOMWEB_USER"):
        web.check_address("https://alice:secret@hospital.example/dicom-web")


def test_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".dicomweb.999999999.scratch", tmp_path / f".dicomweb.{os.getppid()}.scratch"
    dead.mkdir()
    alive.mkdir()
    Workspace(tmp_path, "dicomweb")
    assert not dead.exists() and alive.exists()
