"""What a job needs, as named terms in bytes.

A ``Footprint`` is a list of terms, each alive in one or more phases of the job; the predicted peak is the largest
phase's sum. Pricing is arithmetic only: nothing here allocates, measures or imports a framework.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Source = Literal["analytic", "replayed", "measured", "estimated"]

ALL = "*"
"""A term with this phase is alive during the whole job."""


@dataclass(frozen=True, slots=True)
class Term:
    """One named cost."""

    name: str
    """What the bytes are for, in the user's words: "activations", "item factors"."""
    bytes: int
    """How many, at the term's own peak."""
    source: Source
    """Where the number comes from; the planner's reserve depends on it."""
    phases: tuple[str, ...] = (ALL,)
    """The phases in which the term is alive."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """All terms of one job under one setting."""

    terms: tuple[Term, ...]

    @classmethod
    def of(cls, terms: Iterable[Term]) -> "Footprint":
        """A footprint of the terms that are not zero."""
        return cls(tuple(term for term in terms if term.bytes))

    def phases(self) -> dict[str, int]:
        """Bytes by phase, in the order in which the phases first appear."""
        named = dict.fromkeys(phase for term in self.terms for phase in term.phases if phase != ALL) or {ALL: None}
        return {phase: sum(t.bytes for t in self.terms if phase in t.phases or ALL in t.phases) for phase in named}

    @property
    def peak_phase(self) -> str:
        """The phase that decides the peak."""
        sums = self.phases()
        return max(sums, key=sums.__getitem__)

    @property
    def peak_bytes(self) -> int:
        """Predicted peak: the largest phase's sum of terms."""
        return max(self.phases().values())

    def at_peak(self) -> tuple[Term, ...]:
        """The terms alive in the peak phase, the largest first."""
        peak = self.peak_phase
        return tuple(sorted((t for t in self.terms if peak in t.phases or ALL in t.phases), key=lambda t: -t.bytes))


@dataclass(frozen=True, slots=True)
class Price:
    """Bytes of something that goes step by step."""

    resident: int
    """From step to step."""
    transient: int
    """During a step, beside that."""

    @property
    def peak(self) -> int:
        """Both."""
        return self.resident + self.transient


def plain_model(
    *, parameters: int, parameter_bytes: int, samples: int, values_per_sample: int, value_bytes: int
) -> int:
    """The textbook estimate M = n*s + N*d*k: parameters, plus a batch of intermediate values, in bytes.

    It leaves out gradients, optimiser states, operator workspaces, the input pipeline and the process itself
    (``docs/memory-model.md``); the planner does not use it.

    Examples
    --------
    >>> plain_model(parameters=0, parameter_bytes=4, samples=1, values_per_sample=784, value_bytes=32)
    25088
    """
    return parameters * parameter_bytes + samples * values_per_sample * value_bytes
