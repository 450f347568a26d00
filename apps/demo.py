"""``make demo``: a recommender trained, asked and served, a segmentation trained and inferred, each under a ceiling.

It runs the two command lines as a user would and shows what they show. Real data is used where it is at hand; where
it cannot be had within three seconds, a generated sample stands in, and the demo says so.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from contextlib import contextmanager
from pathlib import Path

from common import datasets
from common.errors import BadInput
from common.memory.process import child

OUTPUT = Path("demo-output")
RECSYS_CEILING = "400MiB"
SERVE_CEILING = "300MiB"
TRAIN_CEILING = "1GiB"
INFER_CEILING = "512MiB"
TRAIN_STEPS = 400
INFERRED_CASES = 4
STARTUP_SECONDS = 30


def say(text: str = "") -> None:
    """To the terminal at once, in order with what the commands write."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def command(*words: object) -> list[str]:
    """``recsys ...`` or ``imaging ...`` as this interpreter runs it."""
    application, *rest = map(str, words)
    return child.python_command(f"apps.{application}", rest)


def run(*words: object) -> None:
    """Show a command and run it; its failure is the demo's."""
    say("\n$ " + " ".join(map(str, words)))
    subprocess.run(command(*words), env=child.python_environment(), check=True)


def real_or_sample(name: str, sample_module: str) -> tuple[Path, bool]:
    """The data set's folder, and whether it is the real one."""
    found = datasets.find(name)
    if found is None:
        entry = datasets.catalog()[name]
        say(f"{entry.title}: not at hand, trying its publisher (licence: {entry.licence})")
        try:
            found = datasets.fetch(entry, datasets.cache_directory())
        except BadInput as error:
            say(f"  {error}")
    if found is not None:
        say(f"data: {name}, the real set")
        return found, True
    folder = OUTPUT / "sample" / name
    say(f"data: a generated sample in place of {name}")
    subprocess.run(child.python_command(sample_module, [str(folder)]), env=child.python_environment(), check=True)
    return folder, False


def recommender() -> None:
    """Train, evaluate, ask, serve."""
    say("=== recsys: artists people play, under a ceiling ===")
    data, real = real_or_sample("lastfm", "apps.recsys.data.synthetic")
    plays, items = (
        (data / "plays.csv", data / "artists.csv") if real else (data / "interactions.csv", data / "items.csv")
    )
    model = OUTPUT / "recsys-model"
    run("recsys", "train", plays, "-o", model, "--items", items, "--split", "user-holdout", "--memory", RECSYS_CEILING)
    run("recsys", "evaluate", model, "--memory", RECSYS_CEILING)
    run("recsys", "recommend", model, "--user", _first_user(plays), "-k", "5", "--memory", RECSYS_CEILING)
    serve(model)


def _first_user(plays: Path) -> str:
    return plays.read_text("utf-8").splitlines()[1].split(",")[0]


def serve(model: Path) -> None:
    """Start the server, ask it over HTTP, stop it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ("recsys", "serve", model, "--port", port, "--memory", SERVE_CEILING)
    say("\n$ " + " ".join(map(str, words)) + " &")
    with started(command(*words)) as server:
        address = f"http://127.0.0.1:{port}"
        wait_until_healthy(server, f"{address}/health")
        user = _first_user_of(model)
        for path in ("/health", f"/recommend?user={user}&k=3"):
            say(f"$ curl '{address}{path}'")
            with urllib.request.urlopen(address + path, timeout=10) as answer:
                say(json.dumps(json.load(answer), ensure_ascii=False))


def _first_user_of(model: Path) -> str:
    import pyarrow.parquet as pq

    return str(pq.read_table(model / "users.parquet", columns=["id"])["id"][0])


@contextmanager
def started(argv: list[str]) -> Iterable[subprocess.Popen[bytes]]:  # type: ignore[misc]
    """A process that is stopped by SIGTERM at the end, and must then end well."""
    process = subprocess.Popen(argv, env=child.python_environment())
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=STARTUP_SECONDS)


def wait_until_healthy(server: subprocess.Popen[bytes], address: str) -> None:
    """Return when the server answers."""
    for _ in range(10 * STARTUP_SECONDS):
        if server.poll() is not None:
            raise SystemExit(f"the server ended with {server.returncode}")
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not answer in time")


def segmentation() -> None:
    """Train for a fixed number of steps, infer held-out volumes, evaluate, show a preview."""
    say("\n=== imaging: the hippocampus in MR volumes, under a ceiling ===")
    data, _ = real_or_sample("msd-hippocampus", "apps.imaging.training.synthetic")
    model, predictions, inputs = OUTPUT / "imaging-model", OUTPUT / "predictions", OUTPUT / "held-out"
    run("imaging", "train", data, "-o", model, "--fold", "0/5", "--steps", TRAIN_STEPS, "--memory", TRAIN_CEILING)
    held_out = sorted(path.name for path in (data / "labelsTr").glob("*.nii*"))[0::5][:INFERRED_CASES]
    inputs.mkdir(parents=True)
    for name in held_out:
        os.symlink((data / "imagesTr" / name).resolve(), inputs / name)
    files = [inputs / name for name in held_out]
    run("imaging", "infer", *files, "-m", model, "-o", predictions, "--preview", "--memory", INFER_CEILING)
    run("imaging", "evaluate", predictions, data / "labelsTr", "--memory", INFER_CEILING)
    say(f"\npreview: {next(predictions.rglob('*.png'))}")


def memory_lines() -> None:
    """Ceiling, predicted, measured of both applications' training."""
    say()
    for name in ("recsys-model", "imaging-model"):
        record = json.loads((OUTPUT / name / "run.json").read_text("utf-8"))
        mib = {
            "ceiling": record["budget"]["host_bytes"],
            "predicted": record["plan"]["predicted_peak_bytes"],
            "measured": record["measured"]["peak_bytes"],
        }
        say(f"{record['command']:>14}: " + ", ".join(f"{key} {value / 2**20:.0f} MiB" for key, value in mib.items()))


def main() -> int:
    """Run everything into a fresh ``demo-output``."""
    began = time.monotonic()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    try:
        recommender()
        segmentation()
        memory_lines()
    except subprocess.CalledProcessError as error:
        say(f"demo: a command ended with exit code {error.returncode}")
        return 1
    say(f"demo: done in {time.monotonic() - began:.0f} s; everything is in {OUTPUT}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
