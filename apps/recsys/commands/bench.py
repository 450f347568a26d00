"""``recsys bench``: what is measured on the user's interactions, or on a generated sample."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.recsys.planning.model_options import DEFAULT, KINDS
from common.cli import fetch_bench
from common.memory.process import child

if TYPE_CHECKING:
    from common.cli.quick_bench import Step


def add(commands: Any) -> None:
    """Declare the subcommand."""
    one = fetch_bench.add_bench(commands, "recsys", steps)
    data_help = "CSV or Parquet, as train takes them (default: a generated sample of 600 users)"
    one.add_argument("interactions", nargs="*", type=Path, metavar="INTERACTIONS", help=data_help)
    one.add_argument("--model", choices=KINDS, default=DEFAULT, help="kind of model (default %(default)s)")


def steps(args: argparse.Namespace, folder: Path) -> "Sequence[Step]":
    """Train with a part of the items held out, evaluate on that, and list the best items of every user."""
    from common.cli.quick_bench import Step

    model, lists = folder / "model", folder / "lists.parquet"
    data = args.interactions
    if not data:
        data = [folder / "interactions.csv"]
        if not args.list:
            child.run_module("apps.recsys.data.synthetic", [str(folder)])
    train = (*data, "-o", model, "--model", args.model, "--split", "user-holdout")
    return [
        Step("train", train, model, _ndcg),
        Step("evaluate", (model,), None, _ndcg),
        Step("recommend", (model, "--all-users", "-o", lists), lists, lambda results: f"{results['users']:,} users"),
    ]


def _ndcg(results: Mapping[str, Any]) -> str:
    return f"NDCG@10 {results['metrics']['ndcg@10']:.4f}"
