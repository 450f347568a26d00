"""Plan with damaged models and damaged caches of costs.

``python -m apps.imaging.bench.robustness.broken_models [MODELS] [CACHES]`` prints a summary as JSON.
Exit 1 if a command ended otherwise than documented.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from apps.imaging.bench.large import make_model
from apps.imaging.bench.robustness.random_studies import Volume
from common.bench.forced.broken_files import campaign

MODELS, CACHES = 800, 200
OPTIONS = ("--memory", "600MiB", "--dry-run", "-q")


def main(argv: Sequence[str]) -> int:
    """Run the command line."""
    models, caches = (int(argv[0]), int(argv[1])) if len(argv) == 2 else (MODELS, CACHES)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        image = Volume((20, 24, 20)).write(folder, "a")
        model = make_model(folder / "model", classes=3, filters=8, tile=16)
        plan = ["apps.imaging", "infer", image, "-o", folder / "out", *OPTIONS, "-m"]
        result = {"models": campaign(model, lambda copy: [*plan, copy], models)}
        cache = folder / "cache"
        environment = os.environ | {"XDG_CACHE_HOME": str(cache)}
        command = [sys.executable, "-m", *map(str, plan), str(model)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        result["costs"] = campaign(cache, lambda copy: [*plan, model], caches, cache=True)
    sys.stdout.write(json.dumps(result) + "\n")
    return int(any(each["failed"] for each in result.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
