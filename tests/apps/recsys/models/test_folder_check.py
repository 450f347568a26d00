"""Files of a model folder that cannot be what the manifest says: refused in one line, whichever byte is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.recsys.data.id_table import IdTable
from apps.recsys.models import weights
from apps.recsys.models.manifest import Table
from apps.recsys.models.recommender import load_manifest
from apps.recsys.serving.service import RecommenderService
from common import model_folder
from common.compression import layouts
from common.errors import BadInput
from tests.apps.recsys.models.test_manifest import HYPER, write_files
from tests.messages import refused

Change = Callable[[bytes], bytes]


def folder_with(tmp_path: Path, **changed: Change) -> Path:
    """A model whose files are changed before they are sealed, so that sizes and digests agree."""
    write_files(tmp_path)
    for name, change in changed.items():
        path = next(path for path in tmp_path.iterdir() if path.name.replace(".", "_").startswith(name))
        path.write_bytes(change(path.read_bytes()))
    fields = {"factors": 8, "items": 5, "users": 4, "interactions": 9, "longest_history": 3, "table": "full"}
    fields |= {"hyper": HYPER["ials"], "split": "none", "seed": 0}
    names = sorted(path.name for path in tmp_path.iterdir())
    model_folder.seal(tmp_path, application="recsys", kind="ials", files=names, fields=fields)
    return tmp_path


def header(**fields: Any) -> Change:
    """Change the entry of ``item_factors`` in the header of the weights."""

    def change(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + length])
        entries[weights.ITEMS] |= fields
        text = json.dumps(entries).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    return change


def test_the_folder_itself_is_read(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    service = RecommenderService(folder, load_manifest(folder))
    assert len(service.for_user("3", 5)) == 3


@pytest.mark.parametrize(
    "change",
    [
        header(shape=[-1, 8]),
        header(shape=[40]),
        header(shape="x"),
        header(shape=[1 << 40, 1 << 20]),
        header(shape=[8, 5]),
        header(shape=[5, 4]),
        header(shape=[5.0, 8]),
        header(shape=[True, 8]),
        header(data_offsets=[-8, 152]),
        header(data_offsets=[0, 1 << 62]),
        header(data_offsets=[8, 168]),
        header(data_offsets=[0]),
        header(dtype="F33"),
        header(dtype=7),
        lambda content: (1 << 62).to_bytes(8, "little") + content[8:],
        lambda content: content[:7],
        lambda content: b"",
        lambda content: b"\x40" + bytes(7) + b"{" * 64,
        lambda content: b"\x02" + bytes(7) + b"[]",
        lambda content: b"\x02" + bytes(7) + b"{}",
    ],
)
def test_weights(tmp_path: Path, change: Change) -> None:
    folder = folder_with(tmp_path, weights=change)
    with refused(BadInput, weights.WEIGHTS) as caught:
        load_manifest(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["items", "users"])
@pytest.mark.parametrize(
    "change", [lambda content: b"\x00garbage" * 50, lambda content: content[:-1], lambda content: b""]
)
def test_tables_that_are_no_parquet(tmp_path: Path, name: str, change: Change) -> None:
    with refused(BadInput, f"{name}.parquet", "Parquet"):
        load_manifest(folder_with(tmp_path, **{name: change}))


@pytest.mark.parametrize("part", ["indptr", "items", "values"])
@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"\x93NUMPY garbage" * 9,
        lambda content: content[: len(content) - 6],
        lambda content: content.replace(b"(", b"[").replace(b")", b"]"),
        lambda content: content.replace(b"'descr'", b"'x' * 9"),
        lambda content: content.replace(b"<", b">"),
        lambda content: content + content[-8:],
        lambda content: b"",
    ],
)
def test_arrays_of_another_form(tmp_path: Path, part: str, change: Change) -> None:
    with refused(BadInput, f"history.{part}.npy"):
        load_manifest(folder_with(tmp_path, **{f"history_{part}": change}))


def number(place: int, value: int, size: int) -> Change:
    """Replace a number at the end of an array."""

    def change(content: bytes) -> bytes:
        at = len(content) + place * size
        return content[:at] + value.to_bytes(size, "little", signed=True) + content[at + size :]

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("history_indptr", number(-1, 1 << 40, 8)),
        ("history_indptr", number(-2, 12, 8)),
        ("history_indptr", number(-5, 1, 8)),
        ("history_items", number(-1, 1 << 30, 4)),
        ("history_items", number(-1, -1, 4)),
        ("history_values", lambda content: content[:-4] + np.float32("nan").tobytes()),
        ("weights", lambda content: content[:-4] + np.float32("nan").tobytes()),
        ("weights", lambda content: content[:-4] + np.float32("inf").tobytes()),
        ("items", lambda content: b"PAR1" + bytes(40) + b"PAR1"),
    ],
)
def test_content_that_cannot_be(tmp_path: Path, name: str, change: Change) -> None:
    folder = folder_with(tmp_path, **{name: change})
    manifest = load_manifest(folder)
    with refused(BadInput, folder) as caught:
        RecommenderService(folder, manifest).for_user("3", 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"values": 300}, "attribute.0.codes.npy"),
        ({"values": 3}, "attribute.0.values.npy"),
        ({"several": True}, "attribute.0.indptr.npy"),
        ({"kind": "text"}, "attribute.0.letters.npy"),
        ({"kind": "vector"}, "kind"),
        ({"values": -1}, "values"),
        ({"entries": 1 << 60}, "entries"),
        ({"name": 7}, "name"),
    ],
)
def test_attributes_are_what_the_manifest_says(tmp_path: Path, change: dict[str, Any], fact: str) -> None:
    folder = folder_with(tmp_path)
    np.save(folder / "attribute.0.codes.npy", np.array([1, 2, 0, 1, 2], np.uint8))
    np.save(folder / "attribute.0.values.npy", np.array([1990.0, 2000.0]))
    manifest = json.loads((folder / "model.json").read_text())
    for name in ("attribute.0.codes.npy", "attribute.0.values.npy"):
        manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": "0" * 64}
    attribute = {
        "name": "year",
        "kind": "number",
        "several": False,
        "values": 2,
        "entries": 5,
        "longest": 1,
        "letters": 0,
    }
    (folder / "model.json").write_text(json.dumps({**manifest, "attributes": [attribute]}))
    service = RecommenderService(folder, load_manifest(folder))
    assert {item["id"] for item in service.for_history(["3"], 5, where="year < 1995")} <= {0, 3}
    (folder / "model.json").write_text(json.dumps({**manifest, "attributes": [attribute | change]}))
    with refused(BadInput, folder, fact) as caught:
        load_manifest(folder)
    assert "\n" not in str(caught.value)
    (folder / "model.json").write_text(json.dumps({**manifest, "attributes": [attribute, attribute]}))
    with refused(BadInput, "attributes"):
        load_manifest(folder)


def test_a_file_that_the_manifest_lacks(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    manifest = json.loads((folder / "model.json").read_text())
    del manifest["files"]["users.parquet"]
    (folder / "model.json").write_text(json.dumps(manifest))
    with refused(BadInput, "users.parquet"):
        load_manifest(folder)


def test_a_table_of_another_length(tmp_path: Path) -> None:
    write_files(tmp_path)
    with refused(BadInput, "items.parquet", 5, 6):
        IdTable(tmp_path / "items.parquet", 6)


def test_unknown_ids_change_no_list(tmp_path: Path) -> None:
    write_files(tmp_path)
    items, said = IdTable(tmp_path / "items.parquet"), []
    assert items.allowed(None, None, said.append) is None and not said
    assert items.allowed(None, ["3", "x", "03"], said.append).tolist() == [True, True, True, False, True]
    assert items.allowed(["1", "7", "2"], ["2"], said.append).tolist() == [False, True, False, False, False]
    assert ["2 of 3" in said[0], "'x'" in said[0], "--only" in said[1], "1 of 3" in said[1]] == [True] * 4
    with refused(BadInput, "--only", "'x'"):
        items.allowed(["x"], None, said.append)


def test_every_kind_of_table_has_a_name() -> None:
    assert set(Table.__args__) == set(layouts.KINDS)
