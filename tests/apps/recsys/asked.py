"""Requests as the command line makes them."""

from pathlib import Path

from apps.recsys import cli
from apps.recsys.planning.train_request import TrainRequest


def train_request(*options: object) -> TrainRequest:
    """The request of ``recsys train INTERACTIONS -o MODEL --threads 1`` with these options."""
    command = ["train", "interactions.csv", "-o", str(Path("model")), "--threads", "1", *map(str, options)]
    return TrainRequest.of(cli.parser().parse_args(command))
