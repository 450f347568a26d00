"""The request of ``recsys size``: a model and the sizes of data that need not exist yet."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from math import isqrt
from pathlib import Path

from apps.recsys.data.columns import Columns
from apps.recsys.models.old_names import renamed_pairs
from apps.recsys.planning.model_options import ModelOptions, kind_of
from apps.recsys.planning.train_request import DataOptions, TrainRequest
from common.errors import UsageError

NOWHERE = Path("model")
"""Stands for the model folder in requests that are priced and never run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRequest:
    """What a model of so much data needs.

    Attributes
    ----------
    items, users, interactions
        Their numbers; interactions are distinct pairs of user and item.
    longest
        Items of the user with most of them.
    model
        The model.
    split
        Interactions that the training holds out and evaluates on.
    id_letters, title_letters
        Mean length of ids and of titles in UTF-8; 0: whole numbers as ids, and no titles.
    k
        Number of items in a list.
    threads
        Threads of the commands.

    Raises
    ------
    UsageError
        More interactions than pairs, or a longest history that cannot be.
    """

    items: int
    users: int
    interactions: int
    longest: int
    model: ModelOptions
    split: str = "none"
    id_letters: int = 0
    title_letters: int = 0
    k: int = 10
    threads: int
    prints: bool = True
    """False if only the record is wanted."""

    def __post_init__(self) -> None:
        if self.interactions > self.items * self.users:
            raise UsageError(
                f"--interactions {self.interactions}: {self.users:,} users and {self.items:,} items have"
                f" {self.items * self.users:,} pairs"
            )
        if self.interactions < max(self.items, self.users):
            raise UsageError(f"--interactions {self.interactions}: every user and every item has at least one")
        if not -(-self.interactions // self.users) <= self.longest <= min(self.items, self.interactions):
            raise UsageError(
                f"--longest {self.longest}: expected at least the mean, {-(-self.interactions // self.users):,}, and at"
                f" most {min(self.items, self.interactions):,}"
            )

    @classmethod
    def of(cls, args: argparse.Namespace) -> SizeRequest:
        """Read the command line; raises as the constructor and ``ModelOptions.of``."""
        kind, _ = kind_of(args)  # the line of what is assumed names it
        pairs, _ = renamed_pairs(kind, args.set)
        return cls(
            items=args.items,
            users=args.users,
            interactions=args.interactions,
            longest=args.longest or longest_history(args.items, args.users, args.interactions),
            model=ModelOptions.of(kind, args, pairs),
            split=args.split,
            id_letters=args.id_letters,
            title_letters=args.title_letters,
            k=args.k,
            threads=args.threads,
            prints=not args.json,
        )

    @property
    def training(self) -> TrainRequest:
        """The training that is priced."""
        return TrainRequest(
            model=self.model,
            data=DataOptions(paths=(), columns=Columns(), needs_times=self.model.needs_times),
            output=NOWHERE,
            split=self.split,
            threads=self.threads,
        )


def longest_history(items: int, users: int, interactions: int) -> int:
    """A longest history for sizes of data: between a mean one and the catalogue, as far from each by factors.

    Real data sets have 0.05 to 3 times that; the rest is ``--longest``.

    Examples
    --------
    >>> longest_history(3706, 6040, 1_000_209)
    784
    """
    mean = -(-interactions // users)
    return min(items, max(mean, isqrt(items * mean)))
