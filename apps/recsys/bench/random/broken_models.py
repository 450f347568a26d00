"""Ask damaged models and damaged caches of costs for recommendations.

``python -m apps.recsys.bench.random.broken_models [MODELS] [CACHES]`` prints a summary as JSON. Exit 1 if a command
ended otherwise than documented.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from apps.recsys.bench.random.tables import Table
from common.bench.forced.broken_files import campaign

MODELS, CACHES = 800, 200
KINDS = ("ials", "bpr", "popularity", "embedding", "linear")
ASK = ("--user", "1", "-k", "3", "--memory", "500MiB", "-q")


def main(argv: Sequence[str]) -> int:
    """Run the command line."""
    models, caches = (int(argv[0]), int(argv[1])) if len(argv) == 2 else (MODELS, CACHES)
    result = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = Table(rows=2000, users=100, items=60).write(folder)
        for kind in KINDS:
            model = folder / kind
            passes = () if kind == "linear" else ("--epochs", "2")
            train = ["train", source, "-o", model, "--model", kind, *passes, "--factors", "8", "-q"]
            subprocess.run([sys.executable, "-m", "apps.recsys", *map(str, train)], check=True)
            result[kind] = campaign(model, lambda copy: ["apps.recsys", "recommend", copy, *ASK], models // len(KINDS))
        cache = folder / "cache"
        ask = ["apps.recsys", "recommend", folder / "ials", *ASK]
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        subprocess.run([sys.executable, "-m", *map(str, ask)], env=environment, check=True, stdout=subprocess.DEVNULL)
        result["costs"] = campaign(cache, lambda copy: ask, caches, cache=True)
    sys.stdout.write(json.dumps(result) + "\n")
    return int(any(each["failed"] for each in result.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
