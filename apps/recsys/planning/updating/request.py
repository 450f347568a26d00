"""The request of ``recsys update``: one immutable value, checked when it is made, before anything is read."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.recsys.data.columns import Columns, Layout
from apps.recsys.data.staging import Filters
from apps.recsys.models.coded.stored import is_coded
from apps.recsys.models.popularity import ALL, window_of
from apps.recsys.planning.model_options import DEFAULTS, ModelOptions
from apps.recsys.planning.requests import layout_of
from apps.recsys.planning.train_request import DataOptions, TrainRequest
from common.errors import BadInput, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRequest:
    """New interactions for a model, and users whose interactions leave it.

    Attributes
    ----------
    model
        The model folder.
    paths
        Files of new interactions.
    output
        The model folder to make; it may be ``model``.
    feedback
        A server's log of feedback, of which the events are added that the model does not contain.
    forget
        Ids of users to leave out.
    columns, layout
        Of the files, as far as the command line says so; the model's own columns otherwise.
    items
        A table with titles of items.
    keep_spectrum
        True to keep the spectrum of a linear filter as it is, and only add the interactions.
    threads
        Threads of the computation.

    Raises
    ------
    UsageError
        Neither files nor users to forget.
    """

    model: Path
    paths: tuple[Path, ...] = ()
    output: Path
    feedback: Path | None = None
    forget: tuple[str, ...] = ()
    columns: Columns = field(default_factory=Columns)
    layout: Layout = field(default_factory=Layout)
    items: Path | None = None
    keep_spectrum: bool = False
    threads: int

    def __post_init__(self) -> None:
        if not self.paths and not self.forget and self.feedback is None:
            raise UsageError("expected files of new interactions, --feedback LOG or --forget USER")
        if not self.paths and (self.columns, self.layout) != (Columns(), Layout()):
            raise UsageError("--user-col, --item-col, --value-col, --delimiter, --decimal, --no-header: for files only")

    @classmethod
    def of(cls, args: argparse.Namespace) -> UpdateRequest:
        """Read the command line; raises as the constructor."""
        return cls(
            model=args.model,
            paths=tuple(args.interactions),
            output=args.output,
            feedback=args.feedback,
            forget=tuple(args.forget),
            columns=Columns(args.user_col, args.item_col, args.value_col, args.time_col),
            layout=layout_of(args),
            items=args.items,
            keep_spectrum=args.keep_spectrum,
            threads=args.threads,
        )

    def training(self, manifest: Mapping[str, Any]) -> TrainRequest:
        """The training of the same kind with the settings of a model, by its ``model.json``.

        Raises
        ------
        UsageError
            A spectrum is to be kept, and the model is no filter with one.
        BadInput
            The model counts a window of time, and keeps no times.
        """
        kind = manifest["kind"]
        factors = int(manifest["factors"])
        if (window := window_of(kind, manifest["hyper"])) != ALL:
            raise BadInput(
                f"{self.model}: counts a window of {window}, for which all times are needed, and a model keeps none:"
                " train again on all files",
                public="model of a window",
            )
        if self.keep_spectrum:
            is_filter = kind == "linear" and factors and manifest["hyper"]["form"] == "filter"
            if not is_filter or is_coded(manifest) or manifest["hyper"].get("bits", 32) != 32:
                raise UsageError(
                    "--keep-spectrum: for linear models of form filter with a spectrum of 32 bits;"
                    f" {self.model} is another"
                )
            factors = 0
        return TrainRequest(
            model=ModelOptions(
                kind=kind, factors=factors, hyper={**DEFAULTS[kind], **manifest["hyper"]}, ranks=(factors,)
            ),
            data=DataOptions(
                paths=self.paths,
                columns=self.columns,
                items=self.items,
                filters=Filters(manifest.get("min_value")),
                layout=self.layout,
                duplicates=manifest.get("duplicates", "sum"),
            ),
            output=self.output,
            split=manifest["split"],
            seed=manifest["seed"],
            threads=self.threads,
        )
