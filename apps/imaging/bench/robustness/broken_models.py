"""Plan with damaged models and damaged caches of costs.

``python -m apps.imaging.bench.robustness.broken_models [MODELS] [CACHES]`` prints a line of JSON for each kind of
file once it is done. Exit 1 if a command ended otherwise than documented.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apps.imaging.bench.large import make_model
from apps.imaging.bench.robustness.random_studies import Volume
from common.bench.forced.broken_files import campaign, run_campaigns

OPTIONS = ("--memory", "600MiB", "--dry-run", "-q")


def campaigns(models: int, caches: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the campaigns; yield the name and the counts of each."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        image = Volume((20, 24, 20)).write(folder, "a")
        model = make_model(folder / "model", classes=3, filters=8, tile=16)
        plan = ["apps.imaging", "infer", image, "-o", folder / "out", *OPTIONS, "-m"]
        yield "models", campaign(model, lambda copy: [*plan, copy], models)
        cache = folder / "cache"
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        command = [sys.executable, "-m", *map(str, plan), str(model)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        yield "costs", campaign(cache, lambda copy: [*plan, model], caches, cache=True)


if __name__ == "__main__":
    sys.exit(run_campaigns(campaigns, sys.argv[1:]))
