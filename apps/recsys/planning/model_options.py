"""Model and hyper-parameters of ``recsys train``, checked when they are made."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from apps.recsys.models import bpr, popularity
from apps.recsys.models.als import ials
from apps.recsys.models.als.confidence import WEIGHTS
from apps.recsys.models.embedding import embedding_config
from apps.recsys.models.embedding.embedding_config import EmbeddingConfig
from apps.recsys.models.linear import options as linear
from apps.recsys.models.old_names import renamed_pairs
from apps.recsys.planning.resume_settings import DECIDES
from common.cli.main import parse_settings
from common.compression import layouts
from common.errors import UsageError

KINDS = ("linear", "ials", "bpr", "embedding", "popularity")
DEFAULT = "linear"
"""Kind of model unless ``--model`` names one: with nothing given it ranks best on three of four data sets
(``docs/recsys.md``)."""
FORMER_DEFAULT = "ials"
"""The default of 0.1: what command lines mean that have its options and no ``--model``."""
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "ials": ials.HYPER,
    "bpr": bpr.HYPER,
    "embedding": embedding_config.HYPER,
    "linear": linear.HYPER,
    "popularity": popularity.HYPER,
}
"""Kind of model -> its hyper-parameters with their defaults."""
FACTORS = 64
"""Numbers per item, unless ``--factors`` says otherwise."""
EPOCHS = 20
"""Epochs of an embedding, unless ``--epochs`` says otherwise."""
MICRO_BATCHES = (512, 256, 128, 64, 32, 16)
"""Numbers of windows that may go through the network together, the fastest first."""
EMBEDDING_ONLY = ("loss", "table", "micro_batch", "accumulate", "amp")
"""Options that only ``--model embedding`` has."""
IN_PASSES = ("ials", "bpr", "embedding")
"""Kinds that are trained in passes over the data: ``--epochs``, ``--tune`` and ``--resume`` are for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """A kind of model and its hyper-parameters.

    Attributes
    ----------
    kind
        One of ``KINDS``.
    factors
        Numbers per item.
    hyper
        All hyper-parameters of the kind by name, as ``model.json`` holds them.
    amp
        ``"bf16"`` or ``"off"``: products of an embedding with its negatives.
    micro_batches
        Windows that an embedding may send through the network together: the planner's choices, the fastest first.
    ranks
        Numbers of eigenvalues that a linear model may have: the planner's choices, the best first.

    Raises
    ------
    UsageError
        A hyper-parameter is out of range, or the factors do not suit the table.
    """

    kind: str = field(metadata=DECIDES)
    factors: int = field(metadata=DECIDES)
    hyper: Mapping[str, Any] = field(metadata={**DECIDES, "except": ("patience",)})
    amp: str = "off"
    micro_batches: tuple[int, ...] = ()
    ranks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "ials":
            _check_ials(self.hyper)
        elif self.kind == "bpr":
            _check_bpr(self.hyper, self.factors)
        elif self.kind == "popularity":
            popularity.window_seconds(self.hyper["window"])
        elif self.kind == "embedding":
            _check_embedding(self.hyper, self.factors)

    @classmethod
    def of(cls, kind: str, args: argparse.Namespace, pairs: list[str]) -> ModelOptions:
        """Read the options of the command line.

        Parameters
        ----------
        kind
            One of ``KINDS`` (``kind_of``).
        args
            Parsed options.
        pairs
            The pairs of ``--set``, with present names.

        Raises
        ------
        UsageError
            An option or hyper-parameter that the kind does not have, or as the constructor.
        """
        for pair in pairs:
            _check_owner(kind, pair)
        hyper = parse_settings(pairs, DEFAULTS[kind])
        if args.factors == 0 and kind != "linear":
            raise UsageError("--factors 0: expected a positive number; 0 is for --model linear")
        if kind == "embedding":
            return cls._embedding(args, hyper)
        for name in EMBEDDING_ONLY:
            if getattr(args, name) is not None:
                raise not_for(f"--{name.replace('_', '-')}", ("embedding",), kind)
        if args.epochs is not None and kind not in IN_PASSES:
            raise not_for("--epochs", IN_PASSES, kind)
        if kind == "popularity":
            return cls(kind=kind, factors=1, hyper=hyper)
        if kind == "linear":
            ranks = linear.ranks(hyper["form"]) if args.factors is None else (args.factors,)
            return cls(kind=kind, factors=ranks[0], hyper=linear.checked(hyper, ranks[0]), ranks=ranks)
        if args.epochs is not None:
            hyper["iterations"] = args.epochs
        return cls(kind=kind, factors=args.factors or FACTORS, hyper=hyper)

    @classmethod
    def popularity(cls) -> ModelOptions:
        """The smallest model, with its defaults."""
        return cls(kind="popularity", factors=1, hyper=popularity.HYPER)

    @classmethod
    def _embedding(cls, args: argparse.Namespace, hyper: dict[str, Any]) -> ModelOptions:
        hyper["loss"] = args.loss or "softmax"
        if hyper["prior"] > 0 and (hyper["user_vectors"] != "learned" or hyper["loss"] != "softmax"):
            hyper["prior"] = 0.0  # a prior has no meaning there
        hyper["learning_rate"] = hyper["learning_rate"] or embedding_config.RATES.get(hyper["user_vectors"], 0.0)
        hyper |= {"table": args.table or "full", "epochs": args.epochs or EPOCHS}
        sizes = [size for size in MICRO_BATCHES if size <= hyper["batch"]] or [hyper["batch"]]
        if args.micro_batch or args.accumulate:
            sizes = [args.micro_batch or -(-hyper["batch"] // args.accumulate)]
        factors = args.factors or FACTORS
        return cls(kind="embedding", factors=factors, hyper=hyper, amp=args.amp or "off", micro_batches=tuple(sizes))

    @property
    def iterations(self) -> int:
        """Passes over the data that training makes at most."""
        return int(self.hyper.get("iterations", self.hyper.get("epochs", 1)))

    @property
    def needs_times(self) -> str:
        """The setting that needs times of interactions, as the command line has it; empty if none does."""
        window = popularity.window_of(self.kind, self.hyper)
        return "" if window == popularity.ALL else f"--set window={window}"

    def embedding_config(self, *, items: int, users: int) -> EmbeddingConfig:
        """The network of an embedding for a data set of this size."""
        named = {name: self.hyper[name] for name in EmbeddingConfig.__dataclass_fields__ if name in self.hyper}
        learned = self.hyper["user_vectors"] == "learned"
        return EmbeddingConfig(items=items, factors=self.factors, users=users if learned else 0, **named)

    def with_settings(self, settings: Mapping[str, Any]) -> ModelOptions:
        """The same model with other values of some hyper-parameters or of ``factors``."""
        hyper = {**self.hyper, **{name: value for name, value in settings.items() if name != "factors"}}
        return replace(self, factors=int(settings.get("factors", self.factors)), hyper=hyper)


def kind_of(args: argparse.Namespace) -> tuple[str, list[str]]:
    """The kind of model of a command line, and a sentence for the user where that is not said and not the default.

    Without ``--model`` it is ``DEFAULT``, but ``FORMER_DEFAULT`` where an option or setting is given that only that has
    of the two.

    Examples
    --------
    >>> kind_of(argparse.Namespace(model=None, set=[], epochs=3))
    ('ials', ['--epochs is not for linear, the default: the model is ials; --model ials says so'])
    >>> kind_of(argparse.Namespace(model=None, set=["degree_power=0.4"], epochs=None))
    ('linear', [])
    """
    if args.model is not None:
        return args.model, []
    given = [f"--{name}" for name in ("epochs", "tune", "resume") if getattr(args, name, None)]
    names = (pair.partition("=")[0] for pair in renamed_pairs(FORMER_DEFAULT, args.set)[0])
    given += [f"--set {name}" for name in names if name in DEFAULTS[FORMER_DEFAULT] and name not in DEFAULTS[DEFAULT]]
    if not given:
        return DEFAULT, []
    what = f"{given[0]} is not for {DEFAULT}, the default: the model is {FORMER_DEFAULT}"
    return FORMER_DEFAULT, [f"{what}; --model {FORMER_DEFAULT} says so"]


def not_for(option: str, kinds: Sequence[str], kind: str) -> UsageError:
    """The error of an option that other kinds have, in one line that names them.

    Examples
    --------
    >>> str(not_for("--epochs", IN_PASSES, "linear"))
    '--epochs is for --model ials, bpr or embedding; linear, the default, does not have it'
    """
    named = " or ".join(filter(None, (", ".join(kinds[:-1]), kinds[-1])))
    which = f"{kind}, the default," if kind == DEFAULT else kind
    return UsageError(f"{option} is for --model {named}; {which} does not have it")


def _check_owner(kind: str, pair: str) -> None:
    """Refuse a hyper-parameter that only other kinds have."""
    name = pair.partition("=")[0]
    owners = [other for other in KINDS if renamed_pairs(other, [name])[0][0] in DEFAULTS[other]]
    if owners and kind not in owners:
        raise not_for(f"--set {pair}", owners, kind)


def _check_ials(hyper: Mapping[str, Any]) -> None:
    if hyper["weight"] not in WEIGHTS:
        raise UsageError(f"--set weight={hyper['weight']}: expected one of {', '.join(WEIGHTS)}")
    if not (hyper["alpha"] > 0 and hyper["regularization"] > 0 and hyper["iterations"] >= 1):
        raise UsageError("--set: alpha and regularization must be above 0, iterations at least 1")
    if not 0 <= hyper["frequency_scaling"] <= 2:
        raise UsageError("--set: frequency_scaling must be from 0 (one regularisation for all) to 2")


def _check_bpr(hyper: Mapping[str, Any], factors: int) -> None:
    if min(hyper["learning_rate"], hyper["user_regularization"]) <= 0 or hyper["regularization"] < 0:
        raise UsageError("--set: learning_rate and user_regularization must be above 0, regularization not below")
    if hyper["iterations"] < 1 or factors < 2:
        raise UsageError("--model bpr: takes an iteration at least, and 2 factors, one of which is an item's bias")


def _check_embedding(hyper: Mapping[str, Any], factors: int) -> None:
    user_vectors, expected = hyper["user_vectors"], embedding_config.USER_VECTORS
    if user_vectors not in expected:
        raise UsageError(f"--set user_vectors={user_vectors}: expected one of {', '.join(expected)}")
    if user_vectors == "learned" and (hyper["loss"] == "bpr" or hyper["tables"] != 1):
        raise UsageError("--set user_vectors=learned: takes --loss softmax or ccl, and tables=1")
    if hyper["tables"] not in (1, 2) or min(hyper["batch"], hyper["negatives"], hyper["window"] - 1) < 1:
        raise UsageError("--set: tables is 1 or 2; batch and negatives are at least 1, window at least 2")
    if hyper["row_bytes"] < 1:
        raise UsageError("--set row_bytes: at least 1")
    if hyper["prior"] < 0:
        raise UsageError("--set prior: not below 0")
    if min(hyper["learning_rate"], hyper["temperature"]) <= 0:
        raise UsageError("--set: learning_rate and temperature must be above 0")
    try:
        layouts.layout(hyper["table"], rows=2, width=factors, row_bytes=hyper["row_bytes"])
    except ValueError as error:
        raise UsageError(f"--factors {factors}: {error}") from None
