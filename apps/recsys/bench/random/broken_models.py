"""Ask damaged models and damaged caches of costs for recommendations.

``python -m apps.recsys.bench.random.broken_models [MODELS] [CACHES]`` prints a line of JSON for each kind of
file once it is done. Exit 1 if a command ended otherwise than documented.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.recsys.bench.random.tables import Table
from common.bench.forced.broken_files import campaign, run_campaigns

KINDS = ("ials", "bpr", "popularity", "embedding", "linear")
ASK = ("--user", "1", "-k", "3", "--memory", "500MiB", "-q")


def campaigns(models: int, caches: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the campaigns; yield the name and the counts of each."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        source = Table(rows=2000, users=100, items=60).write(folder)
        for kind in KINDS:
            model = folder / kind
            passes = () if kind == "linear" else ("--epochs", "2")
            train = ["train", source, "-o", model, "--model", kind, *passes, "--factors", "8", "-q"]
            subprocess.run([sys.executable, "-m", "apps.recsys", *map(str, train)], check=True)
            yield kind, campaign(model, lambda copy: ["apps.recsys", "recommend", copy, *ASK], models // len(KINDS))
        cache = folder / "cache"
        ask = ["apps.recsys", "recommend", folder / "ials", *ASK]
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        subprocess.run([sys.executable, "-m", *map(str, ask)], env=environment, check=True, stdout=subprocess.DEVNULL)
        yield "costs", campaign(cache, lambda copy: ask, caches, cache=True)


if __name__ == "__main__":
    sys.exit(run_campaigns(campaigns, sys.argv[1:]))
