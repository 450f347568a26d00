"""``make demo``: a recommender trained, asked and served, a brain segmented, a segmentation trained, under ceilings.

It runs the two command lines as a user would and shows what they show. Real data is used if this machine has it or its
publisher sends it (an answer within three seconds, everything within half a minute); else a generated sample stands in,
and the demo says so. It ends within four minutes on any machine: the training gets the time that is left
(``training_seconds``).
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
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from zipfile import ZipFile

from common import datasets
from common.errors import BadInput
from common.memory.process import child
from common.resources import data_folder

OUTPUT = Path("demo-output")
RECSYS_CEILING = "400MiB"
SERVE_CEILING = "300MiB"
TRAIN_CEILING = "1GiB"
INFER_CEILING = "512MiB"
BRAIN_CEILING = "400MiB"
MNI152 = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
"""The average T1 in PyPI's nilearn (a wheel of 11 MB)."""
PATCH = "32,40,32"
"""Smaller than the default: in the same processor seconds (60, AVX2, one thread) 130 steps reach a mean Dice of 0.79,
and 60 steps of the default, 40x56x40, 0.20."""
ENOUGH_STEPS = 100
INFERRED_CASES = 4
STARTUP_SECONDS = 30
DOWNLOAD_SECONDS = 30
LIMIT_SECONDS = 200
"""Time by which the last command should have ended. A command that takes longer than expected (30 s on a machine of two
cores with a load of ten) still ends within four minutes."""
AFTER = 0.7
"""The commands around the training's steps take so many times what the recommender's take (processor seconds of one
thread in AVX2, nothing measured before: 20 and 31)."""
LEAST_SECONDS, MOST_SECONDS = 15, 75
"""Shortest and longest training: less learns nothing worth showing, and after the longest every class has its place."""


class Clock:
    """Seconds since the demo began."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def __call__(self) -> float:
        return time.monotonic() - self._began


def training_seconds(elapsed: float, recommender_seconds: float) -> int | None:
    """Return the time limit of the training, or ``None`` where too little time is left.

    Parameters
    ----------
    elapsed
        Seconds since the demo began.
    recommender_seconds
        Duration of the recommender's commands, as a measure of this machine and of its other load.
    """
    left = LIMIT_SECONDS - elapsed - AFTER * recommender_seconds
    return min(MOST_SECONDS, int(left)) if left >= LEAST_SECONDS else None


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
    clock = Clock()

    def progress(done: int, total: int | None) -> None:
        if clock() > DOWNLOAD_SECONDS:
            raise BadInput(f"{done} bytes in {clock():.0f} s: not waiting for the rest")

    folder = datasets.find(name)
    if folder is None:
        entry = datasets.catalog()[name]
        say(f"{entry.title}: not on this machine, trying its publisher (licence: {entry.licence})")
        try:
            folder = datasets.fetch(entry, datasets.cache_directory(), progress=progress)
        except BadInput as error:
            say(f"  {error}")
    if folder is not None:
        say(f"data: {name}, the real set")
        return folder, True
    folder = OUTPUT / "sample" / name
    say(f"data: a generated sample in place of {name}")
    subprocess.run(child.python_command(sample_module, [str(folder)]), env=child.python_environment(), check=True)
    return folder, False


def recommender() -> float:
    """Train, evaluate, ask, serve; returns the seconds that these took."""
    say("=== recsys: artists people play, under a ceiling ===")
    data, real = real_or_sample("lastfm", "apps.recsys.data.synthetic")
    plays, items = (
        (data / "plays.csv", data / "artists.csv") if real else (data / "interactions.csv", data / "items.csv")
    )
    model, clock = OUTPUT / "recsys-model", Clock()
    run("recsys", "train", plays, "-o", model, "--items", items, "--split", "user-holdout", "--memory", RECSYS_CEILING)
    run("recsys", "evaluate", model, "--memory", RECSYS_CEILING)
    run("recsys", "recommend", model, "--user", _first_user(plays), "-k", "5", "--memory", RECSYS_CEILING)
    serve(model)
    return clock()


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
def started(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
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


def brain() -> None:
    """Segment an average of 152 heads with the shipped model, and show the volumes."""
    say("\n=== imaging: 18 structures of the brain in the MNI152 average T1, under a ceiling ===")
    image = mni152()
    if image is None:
        return
    found = OUTPUT / "brain"
    run("imaging", "infer", image, "-m", "brain", "-o", found, "--preview", "--statistics", "--memory", BRAIN_CEILING)
    say(next(found.rglob("*.csv")).read_text("utf-8"))
    say(f"preview: {next(found.rglob('*.png'))}")


def mni152() -> Path | None:
    """The image of the installed nilearn, or of its wheel; ``None`` where neither is at hand."""
    spec = find_spec("nilearn")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]).parent / MNI152
    folder = OUTPUT / "mni152"
    words = ("pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "-d", str(folder), "nilearn")
    try:
        subprocess.run([sys.executable, "-m", *words], check=True, timeout=DOWNLOAD_SECONDS, stderr=subprocess.DEVNULL)
        with ZipFile(next(folder.glob("nilearn-*.whl"))) as wheel:
            return Path(wheel.extract(MNI152, folder))
    except (subprocess.SubprocessError, StopIteration, KeyError, OSError) as error:
        say(f"no image: nilearn, which has it, is not installed and was not sent ({type(error).__name__})")
        return None


def segmentation(clock: Clock, recommender_seconds: float) -> None:
    """Train for the time that is left, segment held-out volumes, evaluate, show a preview; then the shipped model."""
    say("\n=== imaging: the hippocampus in MR volumes, under a ceiling ===")
    data, real = real_or_sample("msd-hippocampus", "apps.imaging.training.data.synthetic")
    cases = sorted(path.name for path in (data / "labelsTr").glob("*.nii*"))
    # A multiple of 5: of the 208 cases that the shipped model was made with, every fifth was held out from it too.
    parts = len(cases) // INFERRED_CASES // 5 * 5
    inputs = OUTPUT / "held-out"
    inputs.mkdir(parents=True)
    for name in cases[::parts][:INFERRED_CASES]:
        os.symlink((data / "imagesTr" / name).resolve(), inputs / name)

    def train(*more: object) -> None:
        # No validations between the steps: on a slow machine they would take most of the time.
        options = ("--fold", f"0/{parts}", "--patch", PATCH, "--set", "validation_cases=0", "--memory", TRAIN_CEILING)
        run("imaging", "train", data, "-o", OUTPUT / "imaging-model", *options, *more)

    train("--dry-run")
    if seconds := training_seconds(clock(), recommender_seconds):
        train("--time", f"{seconds}s")
        steps = json.loads((OUTPUT / "imaging-model" / "run.json").read_text("utf-8"))["results"]["steps"]
        if steps < ENOUGH_STEPS:
            say(f"{steps} steps in that time on this machine; finding both classes takes about {ENOUGH_STEPS}")
        infer_and_evaluate(OUTPUT / "imaging-model", inputs, data)
    else:
        say(f"no training: {clock():.0f} s have passed, too many to train and end within four minutes on this machine")
    if real:
        say("\nThe model that comes with peakline, trained for 2,000 steps (it may have seen some of these volumes):")
        infer_and_evaluate(data_folder() / "models" / "hippocampus", inputs, data)


def infer_and_evaluate(model: Path, inputs: Path, data: Path) -> None:
    """Segment the volumes, compare with the references, and say where a picture is."""
    predictions = OUTPUT / f"predictions-{model.name}"
    run("imaging", "infer", inputs, "-m", model, "-o", predictions, "--preview", "--memory", INFER_CEILING)
    run("imaging", "evaluate", predictions, data / "labelsTr", "--memory", INFER_CEILING)
    say(f"preview: {next(predictions.rglob('*.png'))}")


def memory_lines() -> None:
    """Ceiling, predicted, measured of both applications' training."""
    say()
    for path in (OUTPUT / "recsys-model" / "run.json", OUTPUT / "imaging-model" / "run.json"):
        if not path.is_file():
            continue
        record = json.loads(path.read_text("utf-8"))
        mib = {
            "ceiling": record["budget"]["host_bytes"],
            "predicted": record["plan"]["predicted_peak_bytes"],
            "measured": record["measured"]["peak_bytes"],
        }
        say(f"{record['command']:>14}: " + ", ".join(f"{key} {value / 2**20:.0f} MiB" for key, value in mib.items()))


def main() -> int:
    """Run everything into a fresh ``demo-output``."""
    clock = Clock()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    try:
        recommender_seconds = recommender()
        brain()
        segmentation(clock, recommender_seconds)
        memory_lines()
    except subprocess.CalledProcessError as error:
        say(f"demo: a command ended with exit code {error.returncode}")
        return 1
    say(f"demo: done in {clock():.0f} s; everything is in {OUTPUT}/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
