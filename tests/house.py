"""The rules of the house that no linter knows; ``make lint`` runs this, and a test asserts that it finds nothing.

Imports follow the arrows of ``ARROWS`` and form no circle, heavy libraries stay off the way of ``--help``, modules and
folders stay small, nothing unpickles, and no data file is committed. ``python -m tests.house --mermaid`` draws the
arrows; ``docs/architecture.md`` holds that picture.
"""

import ast
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch",
    "monai",
    "openvino",
    "implicit",
    "pandas",
    "pyarrow",
    "onnx",
    "onnxruntime",
    "scipy",
    "nibabel",
    "optuna",
}
LIGHT = ("common/cli/", "common/search/", "common/memory/", "apps/imaging/commands/", "apps/recsys/commands/")
"""Folders whose heavy imports are inside functions only: they are loaded by ``--help``, or in every process."""
ARROWS: Mapping[str, Mapping[str, str]] = {
    "common": {
        "memory.process": "",
        "memory.costs": "memory.process",
        "memory.plan": "memory.costs memory.process",
        "memory.report": "memory.plan memory.process",
        "cli": "training memory.report memory.plan memory.costs memory.process",
        "engines": "memory.costs memory.process",
        "tiling": "",
        "compression": "",
        "training": "memory.costs memory.process",
        "search": "training memory.report memory.process",
        "api": "memory.plan memory.costs memory.process",
    },
    "apps.imaging": {
        "volumes": "",
        "models": "volumes",
        "importers": "models volumes",
        "exporters": "models volumes",
        "dicom": "models volumes",
        "inference": "dicom models volumes",
        "evaluation": "inference volumes",
        "training": "models volumes",
        "compression": "training inference dicom models volumes",
        "planning": "exporters compression training evaluation inference dicom models volumes",
        "commands": "planning compression training evaluation inference exporters importers dicom models volumes",
    },
    "apps.recsys": {
        "data": "",
        "models": "data",
        "evaluation": "models data",
        "planning": "models data",
        "training": "planning evaluation models data",
        "serving": "planning models data",
        "commands": "training serving planning evaluation models data",
    },
}
"""Package -> room -> the rooms of the same package that its modules may import.

Besides, the rooms of ``common`` may import the modules that stand in ``common`` itself, and those of an application all
of ``common``. An application's command line and warm-up may import all of its rooms; so may ``bench``, which nothing
else imports. The applications never import each other.
"""
MEMORY_MAY = ("common/errors.py", "common/memory/footprint.py")
"""Modules outside ``common.memory`` that its rooms may import: the layer stands alone."""
MAX_LINES = 400
MAX_MODULES = 14
"""In a folder, ``__init__`` not counted."""
MAX_MEDIAN = 150
MAX_FILE_BYTES = 10 << 20
DATA_SUFFIXES = (".nii", ".nii.gz", ".dcm", ".npz", ".dat", ".tar.xz")


def tracked() -> list[str]:
    """Committed files and those about to be."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode == 0:
        return [name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]
    return [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


def suite_modules() -> list[str]:
    """The suite's own modules, without tests."""
    return [name for name in tracked() if name.endswith(".py") and name.startswith(("common/", "apps/"))]


def _docstring_lines(tree: ast.AST) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                value = child.value.value
                if isinstance(value, str):
                    lines |= set(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    return lines


def lines_of_code(name: str) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    text = (ROOT / name).read_text("utf-8")
    quiet = _docstring_lines(ast.parse(text))
    numbered = enumerate(text.splitlines(), 1)
    return sum(1 for i, line in numbered if i not in quiet and line.strip() and not line.strip().startswith("#"))


def _named(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Every import statement with each dotted name that it may mean."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node, node.module
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def imports(name: str, modules: Sequence[str]) -> set[str]:
    """Files among ``modules`` that the file ``name`` imports anywhere, inside functions and for types too."""
    tree = ast.parse((ROOT / name).read_text("utf-8"))
    files = {dotted.replace(".", "/") + ".py" for _, dotted in _named(tree)}
    return (files & set(modules)) - {name}


def circles(arrows: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of files that import each other, directly or through others: Tarjan's strongly connected components.

    >>> circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})
    [['b', 'c']]
    """
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for target in sorted(arrows.get(name, ())):
            if target not in order:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], order[target])
        if low[name] == order[name]:
            at = stack.index(name)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in arrows:
        if name not in order:
            visit(name)
    return groups


def room(name: str) -> tuple[str, str]:
    """Package and room of a file; the room is empty for a module that stands in the package itself.

    >>> room("common/memory/plan/planner.py"), room("apps/recsys/models/als/ials.py"), room("common/errors.py")
    (('common', 'memory.plan'), ('apps.recsys', 'models'), ('common', ''))
    """
    folders = name.split("/")[:-1]
    size = 2 if folders[0] == "apps" else 1
    package, inner = ".".join(folders[:size]), folders[size:]
    return package, ".".join(inner[: 2 if inner[:1] == ["memory"] else 1])


def forbidden(name: str, target: str) -> str | None:
    """Why the file ``name`` may not import the file ``target``; ``None``: it may."""
    (package, here), (other, there) = room(name), room(target)
    if there == "bench" and here != "bench":
        return "only benchmarks import benchmarks"
    if package != other:
        return None if other == "common" or package == "apps" else f"{package} never imports {other}"
    if here in (there, "", "bench"):
        return None
    if here.startswith("memory.") and (not there or there == "memory"):
        return None if target in MEMORY_MAY else "common.memory imports none of its siblings"
    if there in ("", "memory"):
        return None if package == "common" else f"no room imports {package}'s command line"
    if here not in ARROWS[package]:
        return f"the table of arrows has no room {package}.{here}"
    return None if there in ARROWS[package][here].split() else f"the table of arrows has none from {here} to {there}"


def mermaid() -> str:
    """The table of arrows as a Mermaid graph; arrows that follow from others are left out."""
    lines = ["```mermaid", "graph TD"]
    for package, rooms in ARROWS.items():
        lines.append(f'  subgraph {package.replace(".", "_")}["{package}"]')
        for here, text in rooms.items():
            direct = set(text.split())
            implied = {far for near in direct for far in rooms[near].split()}
            label = f"{package}.{here}".replace(".", "_")
            lines.append(f"    {label}[{here}]")
            lines += [f"    {label} --> {f'{package}.{there}'.replace('.', '_')}" for there in sorted(direct - implied)]
        lines.append("  end")
    lines += ["  apps_imaging --> common", "  apps_recsys --> common", "```"]
    return "\n".join(lines) + "\n"


def _module_problems(name: str) -> Iterator[str]:
    text = (ROOT / name).read_text("utf-8")
    if name.startswith(LIGHT) or name.endswith(("/cli.py", "/__main__.py", "/__init__.py")):
        tree = ast.parse(text)
        top = set(map(id, tree.body))
        for node, dotted in _named(tree):
            if id(node) in top and dotted.split(".")[0] in HEAVY:
                yield f"{name} imports {dotted} at module level: heavy, on the way of --help"
    if (length := text.count("\n")) > MAX_LINES:
        yield f"{name}: {length} lines, at most {MAX_LINES}"
    if re.search(r"\b(pickle|cPickle|joblib)\b", text):
        yield f"{name}: names pickle"


def problems() -> Iterator[str]:
    """Each broken rule as a line: where, and which."""
    modules = suite_modules()
    arrows = {name: imports(name, modules) for name in modules}
    for name in modules:
        yield from _module_problems(name)
        broken = ((target, forbidden(name, target)) for target in sorted(arrows[name]))
        yield from (f"{name} imports {target}: {why}" for target, why in broken if why)
    yield from (f"import circle: {', '.join(circle)}" for circle in circles(arrows))
    folders = Counter(str(Path(name).parent) for name in tracked() if re.search(r"(?<!__init__)\.py$", name))
    yield from (f"{folder}: {n} modules, at most {MAX_MODULES}" for folder, n in folders.items() if n > MAX_MODULES)
    if (median := statistics.median(map(lines_of_code, modules))) > MAX_MEDIAN:
        yield f"the median module has {median} lines of code, at most {MAX_MEDIAN}"
    for name in tracked():
        if (ROOT / name).stat().st_size > MAX_FILE_BYTES:
            yield f"{name}: larger than {MAX_FILE_BYTES} bytes"
        if name.endswith(DATA_SUFFIXES):
            yield f"{name}: a data file"


def main(arguments: Sequence[str]) -> int:
    """Print the suite's size and every broken rule, or the picture of the arrows."""
    if arguments == ["--mermaid"]:
        sys.stdout.write(mermaid())
        return 0
    sizes = {name: lines_of_code(name) for name in suite_modules()}
    code = [size for name, size in sizes.items() if "/bench/" not in name]
    sys.stdout.write(f"{sum(code)} lines of code in {len(code)} modules, median {statistics.median(code):g};")
    sys.stdout.write(f" benchmarks {sum(sizes.values()) - sum(code)}\n")
    broken = list(problems())
    sys.stdout.write("".join(f"{line}\n" for line in broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
