"""The descriptions of ``model.json`` and ``run.json``, the schema files made from them, and what is refused by them."""

import copy
import json
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.imaging.models.manifest import ImagingManifest
from apps.imaging.models.model_folder import read_model
from apps.recsys.models import recommender
from common import model_folder, typed_json
from common.errors import BadInput
from common.resources import data_folder
from tests import schemas
from tests.messages import says

SHIPPED = data_folder() / "models" / "hippocampus"


def test_schema_files_are_those_of_the_descriptions() -> None:
    made = {f"{name}.schema.json": schemas.text(name) for name in schemas.schemas()}
    assert {path.name: path.read_text("utf-8") for path in schemas.FOLDER.iterdir()} == made, "python -m tests.schemas"
    for text in made.values():
        schemas.Draft202012Validator.check_schema(json.loads(text))


def test_the_shipped_model_matches() -> None:
    assert schemas.read_manifest(SHIPPED)["kind"] == "segresnet"
    assert schemas.read_record(SHIPPED / "run.json")["command"] == "imaging train"


FRACTIONS = st.floats(-1, 300).filter(lambda number: not number.is_integer())
"""JSON Schema takes 3.0 for an integer; what is written and read here does not."""
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), FRACTIONS, st.text(max_size=3), st.just([]), st.just({})
)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value."""
    inside = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    below = [place for _, one in inside if isinstance(one, dict | list) for place in _places(one)]
    return [(value, key) for key, _ in inside] + below


@pytest.mark.parametrize(
    ("name", "path", "description"),
    [("imaging-model", "model.json", ImagingManifest), ("run", "run.json", None)],
)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_check_and_schema_agree_on_a_changed_file(name: str, path: str, description: Any, data: st.DataObject) -> None:
    whole = json.loads((SHIPPED / path).read_text("utf-8"))
    if "measured" in whole:
        whole["measured"]["timeline"] = whole["measured"]["timeline"][:2]
    changed = copy.deepcopy(whole)
    container, key = data.draw(st.sampled_from(range(len(_places(changed)))).map(lambda at: _places(changed)[at]))
    if data.draw(st.booleans()):
        del container[key]
    else:
        container[key] = data.draw(VALUES)
    try:
        schemas.check_record(changed) if description is None else typed_json.check(changed, description)
        matches = True
    except typed_json.Mismatch:
        matches = False
    assert matches == schemas.validator(name).is_valid(changed)


DAMAGES: dict[str, tuple[Any, str]] = {
    "a negative size": ({"files": {"card.md": {"bytes": -1, "sha256": "0" * 64}}}, "bytes"),
    "a size that is text": ({"files": {"card.md": {"bytes": "12", "sha256": "0" * 64}}}, "bytes"),
    "a size that is true": ({"files": {"card.md": {"bytes": True, "sha256": "0" * 64}}}, "bytes"),
    "a name above the folder": ({"files": {"../card.md": {"bytes": 1, "sha256": "0" * 64}}}, "../card.md"),
    "a name from the root": ({"files": {"/etc/passwd": {"bytes": 1, "sha256": "0" * 64}}}, "/etc/passwd"),
    "the folder above": ({"files": {"..": {"bytes": 1, "sha256": "0" * 64}}}, ".."),
    "files as a list": ({"files": []}, "files"),
    "no digest": ({"files": {"card.md": {"bytes": 1}}}, "sha256"),
    "labels as text": ({"labels": "background"}, "labels"),
    "one label": ({"labels": [{"value": 0, "name": "a", "code": None, "color": [0, 0, 0]}]}, "labels"),
    "a label beyond 16 bits": (
        {"labels": [{"value": v, "name": "a", "code": None, "color": [0, 0, 0]} for v in (0, 65536)]},
        "labels[1].value",
    ),
    "a spacing of two": ({"spacing": [1, 1]}, "spacing"),
    "a spacing of NaN": ({"spacing": [1, 1, float("nan")]}, "spacing[2]"),
    "a negative spacing": ({"spacing": [1, 1, -1]}, "spacing[2]"),
    "a patch of nothing": ({"patch": [0, 8, 8]}, "patch[0]"),
    "a patch of fractions": ({"patch": [8.5, 8, 8]}, "patch[0]"),
    "no network": ({"network": None}, "network"),
    "an unknown network": ({"network": {"name": "net", "arguments": {}}}, "net"),
    "a network without its arguments": ({"network": {"name": "segresnet", "arguments": {}}}, "model"),
    "an unknown convention": ({"convention": "theirs"}, "convention"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped model."""
    place = tmp_path / "model"
    place.mkdir()
    for path in SHIPPED.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return place


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_refused_in_one_line(damage: str, folder: Path) -> None:
    fields, fact = DAMAGES[damage]
    manifest = json.loads((folder / "model.json").read_text("utf-8")) | fields
    (folder / "model.json").write_text(json.dumps(manifest))
    with pytest.raises(BadInput) as refused:
        read_model(folder)
    assert fact in str(refused.value) and "\n" not in str(refused.value)
    says(refused.value, "model.json")
    assert refused.value.public == "model manifest unreadable"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"{", b"[]", b"null", b"12", b"[" * 100_000, b'{"format": 1}', b"\0" * 100]
)
def test_what_is_no_manifest_is_refused_in_one_line(content: bytes, folder: Path) -> None:
    (folder / "model.json").write_bytes(content)
    for load in (read_model, recommender.load_manifest):
        with pytest.raises(BadInput) as refused:
            load(folder)
        assert "\n" not in str(refused.value)
        says(refused.value, "model.json")


def test_a_manifest_too_large_is_not_read(folder: Path) -> None:
    with (folder / "model.json").open("wb") as stream:
        stream.truncate(1 << 40)  # sparse
    with pytest.raises(BadInput, match="larger"):
        read_model(folder)


def test_another_applications_model_and_a_newer_format_are_named_first(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"imaging.*recsys"):
        recommender.load_manifest(folder)
    (folder / "model.json").write_text(json.dumps({"format": 2, "application": "imaging"}))
    with pytest.raises(BadInput, match="format 2"):
        read_model(folder)


def test_a_command_refuses_a_damaged_model_with_exit_4(quick: Any, folder: Path) -> None:
    text = (folder / "model.json").read_text("utf-8")
    (folder / "model.json").write_text(text.replace('"bytes": 1827', '"bytes": -1'))
    done = quick("apps.imaging", "inspect", folder)
    assert done.code == 4 and done.err.count("\n") == 1 and "bytes" in done.err


class Inner(TypedDict):
    number: Annotated[int, ("minimum", 0)]
    kind: NotRequired[Literal["a", "b"]]


class Outer(TypedDict):
    one: Inner | None
    pairs: list[tuple[str, float]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"pairs": []}, "one missing"),
        ({"one": {}, "pairs": []}, "one: number missing"),
        ({"one": {"number": -1}, "pairs": []}, "one.number is -1, expected at least 0"),
        ({"one": {"number": 1, "kind": "c"}, "pairs": []}, "one.kind is 'c', expected one of a, b"),
        ({"one": 3, "pairs": []}, "one is 3, expected an object"),
        ({"one": None, "pairs": [["a", 1], ["b", "c"]]}, "pairs[1][1] is 'c', expected a number"),
        ({"one": None, "pairs": [["a"]]}, "pairs[0] is an array of 1, expected an array of 2"),
        ({"one": None, "pairs": {}}, "pairs is an object, expected an array"),
        ([], "the whole is an array of 0, expected an object"),
    ],
)
def test_a_mismatch_says_where_and_what(value: Any, message: str) -> None:
    with pytest.raises(typed_json.Mismatch) as refused:
        typed_json.check(value, Outer)
    assert str(refused.value) == message


def test_what_matches_may_have_more() -> None:
    typed_json.check({"one": {"number": 1, "more": []}, "pairs": [["a", 1]], "added": True}, Outer)


def test_a_shipped_model_is_found_by_name_and_a_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_folder.model_path("hippocampus") == SHIPPED
    assert "hippocampus" in model_folder.shipped_note(SHIPPED)
    assert model_folder.model_path("./hippocampus") == Path("hippocampus")
    (tmp_path / "hippocampus").mkdir()
    assert model_folder.model_path("hippocampus") == Path("hippocampus")
    assert model_folder.shipped_note(Path("hippocampus")) == ""
    with pytest.raises(BadInput, match="hippocampus"):
        read_model(model_folder.model_path("no-such-model"))
