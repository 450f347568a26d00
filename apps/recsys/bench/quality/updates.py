"""Compare models that ``recsys update`` extended with models that were trained again, by kind.

``python -m apps.recsys.bench.quality.updates INTERACTIONS WORK``, for a CSV file with a header (Last.fm's plays, for
example). A fifth of the pairs is scored. Of the rest the model is trained without a tenth of the users, a tenth of the
items, and a tenth of the other pairs; these come with the update. All settings are defaults. Scored are all pairs,
those of users who came with the update, and those of items that came with it.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

KINDS = ("linear", "popularity", "ials", "bpr", "embedding")
LATER, SCORED = 0.1, 0.2
METRIC = "ndcg@20"
CEILING = "512MiB"


def split(interactions: Path, work: Path) -> dict[str, Path]:
    """Write ``first``, ``later``, ``both``, and the pairs to score: ``all``, ``users``, ``items``."""
    header, *rows = interactions.read_text(encoding="utf-8").splitlines()
    pairs = [row.split(",")[:2] for row in rows]
    chance = random.Random(0)
    new = [{one for one in sorted({pair[at] for pair in pairs}) if chance.random() < LATER} for at in (0, 1)]
    parts = defaultdict[str, list[str]](list)
    for row, (user, item) in zip(rows, pairs, strict=True):
        if chance.random() < SCORED:
            names = ["all", *(["users"] if user in new[0] else []), *(["items"] if item in new[1] else [])]
        else:
            late = user in new[0] or item in new[1] or chance.random() < LATER
            names = ["later" if late else "first"]
        for name in names:
            parts[name].append(row)
    parts["both"] = parts["first"] + parts["later"]
    paths = {name: work / f"{name}.csv" for name in parts}
    for name, path in paths.items():
        path.write_text("\n".join([header, *parts[name]]) + "\n", encoding="utf-8")
    return paths


def _run(*words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "apps.recsys", *map(str, words), "--memory", CEILING, "-q", "--json"]
    record: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return record


def measure(interactions: Path, work: Path, kind: str) -> dict[str, Any]:
    """Metrics and seconds of the updated and of the retrained model; the sizes that the update added."""
    work.mkdir(parents=True, exist_ok=True)
    paths = split(interactions, work)
    first, updated, trained = (work / f"{kind}-{name}" for name in ("first", "updated", "trained"))
    settings: list[object] = []
    _run("train", paths["first"], "-o", first, "--model", kind)
    if kind == "linear":  # with the numbers that the first training chose
        manifest = json.loads((first / "model.json").read_text())
        settings = ["--factors", manifest["factors"]]
        settings += [f"--set={name}={value}" for name, value in manifest["hyper"].items()]
    update = _run("update", first, paths["later"], "-o", updated)
    training = _run("train", paths["both"], "-o", trained, "--model", kind, *settings)
    found: dict[str, Any] = {"added": update["results"]["added"]}
    for name, model, record in (("updated", updated, update), ("retrained", trained, training)):
        found[name] = {"seconds": record["seconds"]}
        for scored in ("all", "users", "items"):
            words = ("evaluate", model, "--test", paths[scored], "--metrics", METRIC)
            found[name][scored] = _run(*words)["results"]["metrics"][METRIC]
    return found


def _table(found: dict[str, dict[str, Any]]) -> str:
    """The measurements as a table in Markdown."""
    lines = [f"| model | {METRIC}: all pairs | of new users | of new items | seconds |", "|---|---|---|---|---|"]
    for kind, results in found.items():
        for name in ("updated", "retrained"):
            one = results[name]
            values = " | ".join(f"{one[scored]:.4f}" for scored in ("all", "users", "items"))
            lines.append(f"| `{kind}`, {name} | {values} | {one['seconds']:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    kinds = sys.argv[3:] or KINDS
    sys.stdout.write(_table({kind: measure(Path(sys.argv[1]), Path(sys.argv[2]), kind) for kind in kinds}))
