"""``imaging ensemble``: its options, and which functions plan and run it."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.imaging.planning import baselines
from common import model_folder
from common.cli import main
from common.cli.session import CommandSession
from common.errors import UsageError
from common.memory.process.budget import MemoryBudget

if TYPE_CHECKING:
    from apps.imaging.planning.ensemble import EnsembleWorkload

DESCRIPTION = """Join models that imaging train made of one data set (its folds, or trainings from several seeds) into
one model, whose logits are the mean of theirs."""


@dataclass(frozen=True, slots=True)
class EnsembleOptions:
    """The options of ``imaging ensemble``."""

    models: tuple[Path, ...]
    output: Path
    threads: int


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = commands.add_parser("ensemble", help="join trained models into one", description=DESCRIPTION)
    one.add_argument(
        "models", type=model_folder.model_path, nargs="+", metavar="MODEL", help="folders of imaging train"
    )
    one.add_argument("-o", "--output", type=Path, required=True, metavar="MODEL_DIR", help="model folder to write")
    main.add_common_options(one)
    command = main.Command(
        "imaging ensemble",
        _options,
        _workload,
        lambda options: baselines.ENSEMBLE,
        _run,
        lambda options: options.output / "run.json",
        huge_pages=True,
        alone=True,
    )
    one.set_defaults(command=command)


def _options(args: argparse.Namespace) -> EnsembleOptions:
    model_folder.check_output(args.output, "imaging")
    if args.output.resolve() in [model.resolve() for model in args.models]:
        raise UsageError(f"-o {args.output}: is one of the models; choose another folder")
    return EnsembleOptions(tuple(args.models), args.output, args.threads)


def _workload(options: EnsembleOptions, budget: MemoryBudget) -> "EnsembleWorkload":
    from apps.imaging.models.ensemble import check_members
    from apps.imaging.models.model_folder import read_model
    from apps.imaging.planning.ensemble import EnsembleWorkload

    models = [read_model(directory) for directory in options.models]
    check_members(models)
    return EnsembleWorkload(models, options.threads)


def _run(session: "CommandSession[EnsembleOptions, EnsembleWorkload]") -> Mapping[str, Any]:
    from apps.imaging.models.ensemble import write_ensemble
    from apps.imaging.planning.ensemble import JOIN

    with session.phase(JOIN):
        validated = write_ensemble(session.workload.models, session.request.output)
    if validated:
        session.say(f"cross-validation over {validated['cases']} cases: mean Dice {validated['mean_dice']:.4f}")
    return {"members": len(session.workload.models), "cross_validation": validated}
