"""The JSON Schema files in ``data/schemas``, generated from the descriptions that the code itself reads and writes by.

``python -m tests.schemas`` writes them; a test generates them again and compares.
"""

import ast
import inspect
import json
import sys
import types
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, is_typeddict

from jsonschema import Draft202012Validator

from apps.imaging.commands import results as imaging_results
from apps.imaging.models.manifest import ImagingManifest
from apps.imaging.training.proposal.recipe_file import RecipeEntry
from apps.recsys.commands import results as recsys_results
from apps.recsys.models.manifest import RecommenderManifest
from common import typed_json
from common.memory.report.run_json import EndingJson, RunJson, description_of
from tests.house import ROOT

FOLDER = ROOT / "data" / "schemas"
DIALECT = Draft202012Validator.META_SCHEMA["$id"]
RESULTS = {**recsys_results.RESULTS, **imaging_results.RESULTS}
PLAIN: Mapping[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def schema(title: str, description: Any) -> dict[str, Any]:
    """JSON Schema of a file of a description."""
    definitions: dict[str, Any] = {}
    return {"$schema": DIALECT, "title": title, **_schema(description, definitions), "$defs": definitions}


def run_schema() -> dict[str, Any]:
    """JSON Schema of run records."""
    definitions: dict[str, Any] = {}
    forms = [_schema(one, definitions) for one in (RunJson, EndingJson)]
    title, results = "peakline: run.json and the output of --json", _results(definitions)
    return {"$schema": DIALECT, "title": title, "anyOf": forms, "allOf": results, "$defs": definitions}


def _schema(description: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(description), get_args(description)
    if description is Any:
        return {}
    if origin is Annotated:
        return {**_schema(arguments[0], definitions), **dict(arguments[1:])}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(one, definitions) for one in arguments]}
    if origin is Mapping:
        names = _schema(arguments[0], definitions)
        inside = {"additionalProperties": _schema(arguments[1], definitions)}
        return {"type": "object", **({} if names == {"type": "string"} else {"propertyNames": names}), **inside}
    if origin is list or (origin is tuple and arguments[-1] is Ellipsis):
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is tuple:
        size = len(arguments)
        items = [_schema(one, definitions) for one in arguments]
        return {"type": "array", "prefixItems": items, "minItems": size, "maxItems": size}
    if is_typeddict(description):
        return _reference(description, definitions)
    return {"type": PLAIN[description]}


def _reference(description: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    package, application, *_ = description.__module__.split(".")
    name = f"{application}_{description.__name__}" if package == "apps" else description.__name__
    if name not in definitions:
        definitions[name] = {}
        texts = _field_docstrings(description)
        definitions[name] = {
            "type": "object",
            "description": inspect.getdoc(description),
            "properties": {
                field: {**_schema(kind, definitions), **({"description": texts[field]} if field in texts else {})}
                for field, kind in typed_json.fields(description).items()
            },
            "required": sorted(description.__required_keys__),
        }
    return {"$ref": f"#/$defs/{name}"}


def _field_docstrings(description: Any) -> dict[str, str]:
    """The texts under a description's fields, its bases' too, which a ``TypedDict`` does not remember."""
    (body,) = ast.parse(inspect.getsource(description)).body
    assert isinstance(body, ast.ClassDef)
    names = vars(sys.modules[description.__module__])
    bases = (eval(ast.unparse(base), dict(names)) for base in body.bases)
    found = {field: text for base in bases if is_typeddict(base) for field, text in _field_docstrings(base).items()}
    for field, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
            found[ast.unparse(field.target)] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def _results(definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the description of ``results`` by command; none, where the command ended before it had any."""
    return [
        {
            "if": {"properties": {"command": {"const": command}, "exit_code": {"const": 0}}},
            "then": {
                "properties": {
                    "results": {"anyOf": [{"maxProperties": 0}, *(_schema(one, definitions) for one in choices)]}
                }
            },
        }
        for command, choices in RESULTS.items()
    ]


def schemas() -> dict[str, dict[str, Any]]:
    """Every schema by the name of its file."""
    return {
        "run": run_schema(),
        "imaging-model": schema("peakline: model.json of a segmentation model", ImagingManifest),
        "imaging-recipe": schema("peakline: a recipe of imaging fingerprint", RecipeEntry),
        "recsys-model": schema("peakline: model.json of a recommender", RecommenderManifest),
    }


def text(name: str) -> str:
    """A schema's file."""
    return json.dumps(schemas()[name], indent=1) + "\n"


@cache
def validator(name: str) -> Draft202012Validator:
    """For the schema file that is installed with the program."""
    return Draft202012Validator(json.loads((FOLDER / f"{name}.schema.json").read_text("utf-8")))


def check_record(record: dict[str, Any]) -> None:
    """Check by the descriptions themselves, whose messages are short; raises ``typed_json.Mismatch``."""
    typed_json.check(record, description_of(record))
    if record["exit_code"] == 0 and record["results"] and record["command"] in RESULTS:
        (*others, last) = RESULTS[record["command"]]
        for choice in others:
            with suppress(typed_json.Mismatch):
                return typed_json.check(record["results"], choice, "results")
        typed_json.check(record["results"], last, "results")


def checked_record(record: dict[str, Any]) -> dict[str, Any]:
    """A run record that matches its schema, and says about its ending what the ending needs."""
    check_record(record)
    validator("run").validate(record)
    code = record["exit_code"]
    assert ("error" in record) == (code not in (0, 130)), record
    assert "smallest_feasible_bytes" in record or code != 3 or "measured" not in record, record
    return record


def read_record(path: Path) -> dict[str, Any]:
    """``run.json`` or ``evaluation.json``, checked."""
    return checked_record(json.loads(path.read_text("utf-8")))


def read_manifest(directory: Path) -> dict[str, Any]:
    """A model folder's ``model.json``, checked."""
    manifest: dict[str, Any] = json.loads((directory / "model.json").read_text("utf-8"))
    validator(f"{manifest['application']}-model").validate(manifest)
    return manifest


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    for name in schemas():
        (FOLDER / f"{name}.schema.json").write_text(text(name), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
