"""Compressed variants in place of a model that does not fit (``imaging infer --allow-quality-loss``)."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from apps.imaging.inference.request import InferRequest
from apps.imaging.models.variants import FOLDER, Variant, find_variants
from apps.imaging.planning.infer import InferWorkload
from common.errors import BadInput, UsageError
from common.memory.plan.plan import Setting
from common.memory.plan.planner import Workload

log = logging.getLogger("peakline")


@dataclass(frozen=True, slots=True)
class VariantWorkload(InferWorkload):
    """``imaging infer`` with a variant of the model that was asked for."""

    variant: str = ""
    """Its name, a knob of the plan."""
    note: str = ""
    """What it loses, in one line."""

    def settings(self) -> Iterator[Setting]:
        """Those of any model, with the variant's name."""
        for setting in InferWorkload.settings(self):
            yield {**setting, "variant": self.variant}


@dataclass(frozen=True, slots=True)
class ReplaceableWorkload(InferWorkload):
    """``imaging infer`` with a model that may have variants.

    They are looked for only where the model itself does not fit.
    """

    folder: Path | None = None
    """Where its variants are; ``None``: in its own folder."""

    def substitutes(self) -> Iterator[VariantWorkload]:
        """The variants whose loss the user allows, the smallest first."""
        allowed, variants = self.request.options.quality_loss, self._variants()
        if allowed and not variants:
            log.warning(
                "--allow-quality-loss: %s has no measured variant of this model that is as fast; imaging compress"
                " --measure makes one",
                self._folder,
            )
        for variant in variants:
            if variant.is_within(allowed) and (work := self._with(variant)) is not None:
                yield work

    def remedies(self) -> Iterator[tuple[str, Workload]]:
        """The variants whose loss is more than the user allows, and smaller tiles."""
        for variant in self._variants():
            if not variant.is_within(self.request.options.quality_loss) and (work := self._with(variant)) is not None:
                yield f"--allow-quality-loss {variant.percent} takes {variant}", work
        yield from InferWorkload.remedies(self)

    @property
    def _folder(self) -> Path:
        return self.folder or self.request.model.model.directory / FOLDER

    def _variants(self) -> list[Variant]:
        """The variants that were not slower than the model. One that is heavier does not fit where that does not."""
        found = find_variants(self._folder, self.request.model.model)
        return [variant for variant in found if not variant.is_slower]

    def _with(self, variant: Variant) -> VariantWorkload | None:
        """The same work with a variant; ``None`` where it would run otherwise than it was measured."""
        options = replace(self.request.options, model=variant.directory)
        try:
            request = InferRequest.of(options, variant.directory)
        except (BadInput, UsageError):
            return None  # options that this variant does not have
        if request.model.precision != variant.measured["precision"]:
            return None
        note = f"{variant}, instead of the model, which does not fit"
        return VariantWorkload(request, variant=variant.name, note=note)
