"""The rules of the house that no linter knows; ``make lint`` runs this, and a test asserts that it finds nothing.

Arrows point one way, heavy libraries stay off the way of ``--help``, modules stay small, nothing prints from a
library, and no data file or machine's path is committed.
"""

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
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
MAX_LINES = 400
MAX_MEDIAN = 150
MAX_FILE_BYTES = 10 << 20
DATA_SUFFIXES = (".nii", ".nii.gz", ".dcm", ".npz", ".dat", ".tar.xz")


def _tracked() -> list[str]:
    """Committed files and those about to be."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listing.returncode == 0:
        return [name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]
    return [str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


def suite_modules() -> list[str]:
    """The suite's own modules, without tests."""
    return [name for name in _tracked() if name.endswith(".py") and name.startswith(("common/", "apps/"))]


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


def _imports(name: str) -> Iterator[tuple[str, bool]]:
    """Every imported module of a file, and whether it is imported when the file is."""
    tree = ast.parse((ROOT / name).read_text("utf-8"))
    package = name.removesuffix(".py").split("/")[:-1]
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield ".".join([*base, *([node.module] if node.module else [])]), id(node) in top


def _arrow(name: str, module: str) -> str | None:
    if name.startswith("common/") and module.split(".")[0] == "apps":
        return "common never imports apps"
    for here, there in (("recsys", "imaging"), ("imaging", "recsys")):
        if name.startswith(f"apps/{here}/") and module.startswith(f"apps.{there}"):
            return "the applications never import each other"
    inside = module in ("common.memory", "common.errors") or module.startswith("common.memory.")
    if name.startswith("common/memory/") and module.startswith("common.") and not inside:
        return "common.memory imports none of its siblings"
    return None


def problems() -> Iterator[str]:
    """Each broken rule as a line: where, and which."""
    modules = suite_modules()
    for name in modules:
        light = name.startswith("common/memory/") or name.endswith(("/cli.py", "/workloads.py", "/__main__.py"))
        for module, at_import in _imports(name):
            if broken := _arrow(name, module):
                yield f"{name} imports {module}: {broken}"
            if at_import and light and module.split(".")[0] in HEAVY:
                yield f"{name} imports {module} at module level: heavy, on the way of --help"
        text = (ROOT / name).read_text("utf-8")
        if (length := text.count("\n")) > MAX_LINES:
            yield f"{name}: {length} lines, at most {MAX_LINES}"
        if re.search(r"\b(pickle|cPickle|joblib)\b", text):
            yield f"{name}: names pickle"
    code = [lines_of_code(name) for name in modules if "/bench/" not in name]
    if statistics.median(code) > MAX_MEDIAN:
        yield f"the suite's median is {statistics.median(code)} lines of code"
    for name in _tracked():
        if (ROOT / name).stat().st_size > MAX_FILE_BYTES:
            yield f"{name}: larger than {MAX_FILE_BYTES} bytes"
        if name.endswith(DATA_SUFFIXES):
            yield f"{name}: a data file"


def main() -> int:
    """Print the suite's size and every broken rule."""
    code = [lines_of_code(name) for name in suite_modules() if "/bench/" not in name]
    bench = sum(lines_of_code(name) for name in suite_modules() if "/bench/" in name)
    sys.stdout.write(f"{sum(code)} lines of code in {len(code)} modules, median {statistics.median(code):g};")
    sys.stdout.write(f" benchmarks {bench}\n")
    found = list(problems())
    sys.stdout.write("".join(f"{line}\n" for line in found))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
