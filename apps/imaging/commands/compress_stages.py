"""``imaging compress`` in several stages: a smaller network, its fine-tuning, 8-bit integers, what it loses.

Each stage plans and supervises itself under the ceiling, as if it were given alone; this process waits beside it. The
model is not touched. A run that was ended continues: stages that are complete stay, and an unfinished fine-tuning goes
on from its checkpoint.
"""

import argparse
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from apps.imaging.commands.stages import OF_EACH_RUN, interruptible, run_child, same_settings, say
from common.errors import EXIT_OK, BadInput, UsageError
from common.model_folder import MANIFEST

WORK, SETTINGS = ".stages", "compress.json"
"""In the output folder while stages are left: the models in between, and the options."""
SMALLER, TUNED = "smaller", "tuned"
MADE = "made"
"""File in the work folder once the output is complete and has only to be measured."""
DEFAULT_FOLD = (0, 5)
IMAGES, LABELS = "imagesTr", "labelsTr"
"""Folders of a data set (``training.data.dataset``, which loads libraries)."""


def are_needed(args: argparse.Namespace) -> bool:
    """True if what is asked for is more than one stage."""
    return bool(args.finetune or args.measure) or (_quantises(args) and _shrinks(args))


def run(args: argparse.Namespace) -> int:
    """Run the stages that are left.

    Raises
    ------
    UsageError
        Options that contradict each other.
    BadInput
        As ``check_stages``.
    """
    if args.json or args.report or args.plan:
        raise UsageError("several stages: --json, --report and --plan are for one; give the stages one by one")
    if args.finetune and not (_shrinks(args) or args.int8):
        raise UsageError("--finetune: nothing is smaller; imaging train --init MODEL --distill MODEL fine-tunes alone")
    if args.measure and args.no_fold and args.finetune and args.finetune.resolve() == args.measure.resolve():
        raise UsageError("--measure: with --no-fold, fine-tuning sees every case of it; leave --no-fold out")
    if args.measure and not (_shrinks(args) or _quantises(args)) and not (args.output / MANIFEST).is_file():
        raise UsageError(f"-o {args.output}: no model folder; --measure alone measures one that was made before")
    if args.int8 and args.int8_weights:
        raise UsageError("--int8-weights: --int8 has the weights in integers too; give one of them")
    if args.int8 and args.calibration is None:
        raise UsageError("--int8: ranges are found on images: --calibration DIR; --int8-weights needs none")
    check_stages(args)
    return interruptible(args, "imaging compress", _dry_run if args.dry_run else _stages)


def check_stages(args: argparse.Namespace) -> None:
    """Check that options of a stage have the stage, and that its data set is one, before anything is made.

    Raises
    ------
    UsageError
        An option would have no effect.
    BadInput
        A folder is no data set.
    """
    of_tuning = {"--time": args.time, "--steps": args.steps, "--set": args.set}
    for name, value in of_tuning.items():
        if value and not args.finetune:
            raise UsageError(f"{name}: says how --finetune runs; give --finetune DATASET_DIR")
    for name, value in {"--fold": args.fold, "--no-fold": args.no_fold}.items():
        if value and not (args.finetune or args.measure):
            raise UsageError(f"{name}: says which cases --finetune and --measure take; give one of them")
    for folder in filter(None, (args.finetune, args.measure)):
        if not all((folder / name).is_dir() for name in (IMAGES, LABELS)):
            raise BadInput(f"{folder}: not a data set: it needs the folders {IMAGES} and {LABELS}")


def _shrinks(args: argparse.Namespace) -> bool:
    return bool(args.prune or args.drop_blocks or args.low_rank or args.half)


def _quantises(args: argparse.Namespace) -> bool:
    return bool(args.int8 or args.int8_weights)


def _stages(args: argparse.Namespace) -> int:
    source = _digest(args.model)
    work: Path = args.output / WORK
    settings = {name: value for name, value in vars(args).items() if name not in OF_EACH_RUN}
    settings |= {"source": source, "fold": args.fold}
    same_settings(args.output, work / SETTINGS, settings, begun=work.is_dir())
    for number, (about, folder, words) in enumerate(_plan(args, work, args.output), 1):
        if (work / MADE).is_file() or (folder != args.output and (folder / MANIFEST).is_file()):
            say(args, f"stage {number}: {about}: done before")
            continue
        say(args, f"stage {number}: {about}")
        if (code := run_child([*words, "-o", str(folder), *_running(args)])) != EXIT_OK:
            return code
    if args.measure:
        (work / MADE).touch()
        if (code := _measure(args, work)) != EXIT_OK:
            return code
    shutil.rmtree(work)
    _tell(args)
    return EXIT_OK


def _measure(args: argparse.Namespace, work: Path) -> int:
    """Run and evaluate the model and the smaller one on the held-out cases, and write what it loses into it."""
    from apps.imaging.compression import measuring
    from apps.imaging.importers.convert import converted_model
    from apps.imaging.models.model_folder import read_model
    from common.memory.process.budget import MemoryBudget

    folder = args.model
    if not (folder / MANIFEST).is_file():
        folder = converted_model(folder, MemoryBudget.parse(args.memory))
    original = read_model(folder)
    measuring.check_variant(original, args.output)
    cases = measuring.link_cases(args.measure, None if args.no_fold else args.fold or DEFAULT_FOLD, work)
    say(args, f"measuring both models on {cases} cases")
    for name, model in ((measuring.BEFORE, folder), (measuring.AFTER, args.output)):
        labels = work / name
        if (labels / measuring.EVALUATION).is_file():
            continue
        shutil.rmtree(labels, ignore_errors=True)  # seconds are those of one run
        words = ["infer", str(work / measuring.IMAGES), "-m", str(model), "-o", str(labels), *_running(args)]
        code = run_child(words)
        if code == EXIT_OK:
            code = run_child(["evaluate", str(labels), str(work / measuring.LABELS), *_running(args)])
        if code != EXIT_OK:
            return code
    for line in measuring.write(args.output, measuring.measurement(original, read_model(args.output), work)):
        say(args, line)
    return EXIT_OK


def _dry_run(args: argparse.Namespace) -> int:
    """Print each stage's plan. The network is made smaller for it, in a folder that does not stay."""
    with TemporaryDirectory() as folder:
        work = Path(folder)
        for number, (about, place, words) in enumerate(_plan(args, work, args.output), 1):
            say(args, f"stage {number}: {about}")
            code = run_child([*words, "-o", str(place), *_running(args), "--dry-run"], out=True)
            if code == EXIT_OK and place == work / SMALLER:
                code = run_child([*words, "-o", str(place), *_running(args), "-q"])
            if code != EXIT_OK:
                return code
            if (work / SMALLER).is_dir():
                shutil.copytree(work / SMALLER, work / TUNED, dirs_exist_ok=True)  # of the same sizes
            elif place == work / TUNED:
                shutil.copytree(args.model, work / TUNED, dirs_exist_ok=True)
    if args.measure:
        say(args, "then: both models label the held-out cases, and are compared")
    return EXIT_OK


def _plan(args: argparse.Namespace, work: Path, output: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """The stages in order: what it is, its folder, its command without that."""
    model, smaller, tuned = str(args.model), work / SMALLER, work / TUNED
    images = ["--tiles", str(args.tiles)]
    if args.calibration is not None:
        images += ["--calibration", str(args.calibration)]
    last = args.model
    if _shrinks(args):
        last = smaller if args.finetune or _quantises(args) else output
        yield "a smaller network", last, ["compress", model, *_shrinking(args, images)]
    if args.finetune:
        words = ["train", str(args.finetune), "--init", str(last), "--distill", model]
        last = tuned if _quantises(args) else output
        yield "fine-tuning with the soft labels of the model", last, [*words, *_tuning(args)]
    if args.int8:
        yield "8-bit integers", output, ["compress", str(last), "--int8", *images]
    elif args.int8_weights:
        yield "weights in 8-bit integers", output, ["compress", str(last), "--int8-weights"]


def _shrinking(args: argparse.Namespace, images: list[str]) -> list[str]:
    words = [] if args.prune is None else ["--prune", str(args.prune), "--importance", args.importance]
    if args.drop_blocks:
        words += ["--drop-blocks", str(args.drop_blocks)]
    if args.low_rank is not None:
        words += ["--low-rank", str(args.low_rank), "--decomposition", args.decomposition]
    if args.half:
        words.append("--fp16")
    reads = args.calibration is not None and (args.importance != "norm" or args.drop_blocks)
    return words + (images if reads else [])


def _tuning(args: argparse.Namespace) -> list[str]:
    words = ["--no-fold"] if args.no_fold else ["--fold", "/".join(map(str, args.fold or DEFAULT_FOLD))]
    if args.time:
        words += ["--time", f"{args.time}s"]
    if args.steps:
        words += ["--steps", str(args.steps)]
    if args.int8 and not any(pair.startswith("quantise=") for pair in args.set):
        words += ["--set", "quantise=int8"]
    return words + [word for pair in args.set for word in ("--set", pair)] + ["--seed", str(args.seed)]


def _running(args: argparse.Namespace) -> list[str]:
    return ["--memory", args.memory, "--threads", str(args.threads), *(["-q"] if args.quiet else [])]


def _digest(model: Path) -> str:
    """Digest of a model folder's weights; the path of a model of another kind, whose import has a digest of its own."""
    from apps.imaging.models.model_folder import read_manifest
    from common.engines.base import WEIGHTS

    if not (model / MANIFEST).is_file():
        return str(model.resolve())
    return read_manifest(model)["files"][WEIGHTS]["sha256"]


def _tell(args: argparse.Namespace) -> None:
    """One line on what is smaller now."""
    from apps.imaging.models.model_folder import read_manifest

    try:
        before, after = (_sizes(read_manifest(folder)) for folder in (args.model, args.output))
    except BadInput:
        return  # an imported model has no files of these names
    for name in after:
        if name in before:
            say(args, f"{name}: {before[name]:,} bytes before, {after[name]:,} after")


def _sizes(manifest: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of what inference reads: the weights, and the network as it is run."""
    from common.engines.base import INT8, NETWORK, WEIGHTS

    files = manifest["files"]
    network = sum(files[name]["bytes"] for name in INT8) if INT8[0] in files else files[NETWORK]["bytes"]
    return {"weights": files[WEIGHTS]["bytes"], "network": network}
