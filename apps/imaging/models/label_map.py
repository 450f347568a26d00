"""Label maps: which class of which model becomes which label, where several models segment one image.

A map is a JSON file, ``{"classes": [{"value", "name", "from": {"model", "label"}}], "overlap": "later"}``. Those that
are installed with the program (``data/label_maps``) are read by the same code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict

from apps.imaging.models.manifest import Byte
from apps.imaging.models.model_folder import ImagingModel, Label
from apps.imaging.models.palette import color_of
from common import typed_json
from common.errors import BadInput
from common.resources import data_folder


class SourceEntry(TypedDict):
    """A class of a model."""

    model: str | int
    """A part of the path of ``-m``, or its beginning before ``_``; or its number from 1."""
    label: str | int
    """The class's name or value."""


ClassEntry = TypedDict(
    "ClassEntry",
    {
        "value": Annotated[int, ("minimum", 1), ("maximum", 65535)],
        "name": Annotated[str, ("pattern", r"\S")],
        "from": SourceEntry,
        "code": NotRequired[tuple[str, str, str] | None],
        "color": NotRequired[tuple[Byte, Byte, Byte]],
    },
)
"""One class of the map: its value in the label file, its name, and where it is from."""


class LabelMapFile(TypedDict):
    """A label map."""

    classes: Annotated[list[ClassEntry], ("minItems", 1)]
    overlap: NotRequired[Literal["later"]]
    """Where classes of several models meet, that of the later model stays."""


@dataclass(frozen=True, slots=True)
class LabelMap:
    """A label map, its classes found in the models."""

    labels: tuple[Label, ...]
    """The classes, background first."""
    tables: tuple[Mapping[int, int], ...]
    """By model: value of a class there -> value in the map."""


def shipped_map(name: str) -> Path:
    """The file of a map that is installed with the program."""
    return data_folder() / "label_maps" / f"{name}.json"


def read_entries(path: Path) -> list[ClassEntry]:
    """Read a map's classes.

    Raises
    ------
    BadInput
        If the file cannot be read, is no map, or gives two classes one value or one name.
    """
    entries = typed_json.read(path, LabelMapFile, what="label map", closed=True)["classes"]
    values: dict[int, ClassEntry] = {}
    names: dict[str, ClassEntry] = {}
    for entry in entries:
        other = values.setdefault(entry["value"], entry)
        if other is not entry:
            message = f"value {entry['value']} is of {_told(other)} and of {_told(entry)}; each class needs its own"
            raise BadInput(f"{path}: {message}", public="classes collide")
        other = names.setdefault(entry["name"], entry)
        if other is not entry:
            message = f"{entry['name']!r} names {_told(other)} and {_told(entry)}; each class needs a name of its own"
            raise BadInput(f"{path}: {message}", public="classes collide")
    return entries


def read_map(path: Path, names: Sequence[Path], models: Sequence[ImagingModel]) -> LabelMap:
    """Read a map and find its classes in the models.

    Parameters
    ----------
    names
        Paths of the models, as the user wrote them.
    models
        The models themselves, converted if need be.

    Raises
    ------
    BadInput
        As ``read_entries``; also if a model or a class is not there, is taken twice, or a model is not used.
    """
    tables: list[dict[int, int]] = [{} for _ in models]
    labels = [Label(0, "background")]
    for number, entry in enumerate(read_entries(path)):
        source = entry["from"]
        index = _model(path, source["model"], names)
        value = _value(path, source["label"], names[index], models[index])
        if value in tables[index]:
            message = f"class {source['label']} of {names[index]} becomes both {tables[index][value]} and"
            raise BadInput(f"{path}: {message} {entry['value']}", public="classes collide")
        tables[index][value] = entry["value"]
        red, green, blue = entry.get("color") or color_of(number)
        code = entry.get("code")
        named = (code[0], code[1], code[2]) if code else None
        labels.append(Label(entry["value"], entry["name"], named, (red, green, blue)))
    if unused := [str(name) for name, table in zip(names, tables, strict=True) if not table]:
        raise BadInput(
            f"{path}: no class is from {', '.join(unused)}; leave it out of -m", public="model without class"
        )
    return LabelMap(tuple(labels), tuple(tables))


def own_map(model: ImagingModel) -> LabelMap:
    """The map of one model whose labels stay as they are."""
    return LabelMap(model.labels, ({label.value: label.value for label in model.labels if label.value},))


def _told(entry: ClassEntry) -> str:
    return f"{entry['from']['label']} of {entry['from']['model']}"


def _model(path: Path, name: str | int, models: Sequence[Path]) -> int:
    """Index of the model that a map names."""
    if isinstance(name, int):
        found = [name - 1] if 1 <= name <= len(models) else []
    else:
        parts = [model.resolve().parts for model in models]
        found = [number for number, one in enumerate(parts) if name in one]
        found = found or [n for n, one in enumerate(parts) if any(part.startswith(f"{name}_") for part in one)]
    if len(found) == 1:
        return found[0]
    which = "several models are" if found else "no model is"
    raise BadInput(f"{path}: {which} {name!r}; -m has {', '.join(map(str, models))}", public="no such model in the map")


def _value(path: Path, label: str | int, name: Path, model: ImagingModel) -> int:
    """Value of a model's class, by its value or name."""
    for one in model.labels:
        if one.value and label in (one.value, one.name):
            return one.value
    classes = ", ".join(f"{one.value} {one.name}" for one in model.labels if one.value)
    raise BadInput(f"{path}: {name} has no class {label!r}; it has {classes}", public="no such class in the map")
