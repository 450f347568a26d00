"""The predicted memory of a command, as named terms in bytes.

A ``Footprint`` is a list of terms, each of which counts in one or more phases of the command. The predicted peak is the
largest sum over a phase. This is arithmetic only: nothing here allocates, measures or imports a framework.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Source = Literal["analytic", "replayed", "measured", "estimated"]

ALL = "*"
"""Phase name of a term that counts in all phases."""


@dataclass(frozen=True, slots=True)
class Term:
    """One named number of bytes."""

    name: str
    """Purpose of the bytes, as users see it: ``"activations"``, ``"item factors"``."""
    bytes: int
    """The term's own peak."""
    source: Source
    """Origin of the number, which decides its share of the reserve."""
    phases: tuple[str, ...] = (ALL,)
    """Phases in which the term counts."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """All terms of one command under one setting."""

    terms: tuple[Term, ...]

    @classmethod
    def of(cls, terms: Iterable[Term]) -> "Footprint":
        """Make a footprint of the terms that are not zero."""
        return cls(tuple(term for term in terms if term.bytes))

    def phases(self) -> dict[str, int]:
        """Return bytes by phase, in the order in which the phases first appear."""
        named = dict.fromkeys(phase for term in self.terms for phase in term.phases if phase != ALL) or {ALL: None}
        return {phase: sum(t.bytes for t in self.terms if phase in t.phases or ALL in t.phases) for phase in named}

    @property
    def peak_phase(self) -> str:
        """The phase with the largest sum."""
        sums = self.phases()
        return max(sums, key=sums.__getitem__)

    @property
    def peak_bytes(self) -> int:
        """The predicted peak: the largest sum over a phase."""
        return max(self.phases().values())

    def at_peak(self) -> tuple[Term, ...]:
        """Return the terms of the peak phase, the largest first."""
        peak = self.peak_phase
        return tuple(sorted((t for t in self.terms if peak in t.phases or ALL in t.phases), key=lambda t: -t.bytes))


@dataclass(frozen=True, slots=True)
class Price:
    """Bytes of a process in steps."""

    resident: int
    """Between steps."""
    transient: int
    """During a step, in addition."""

    @property
    def peak(self) -> int:
        """``resident`` plus ``transient``."""
        return self.resident + self.transient


def plain_model(
    *, parameters: int, parameter_bytes: int, samples: int, values_per_sample: int, value_bytes: int
) -> int:
    """The textbook estimate M = n*s + N*d*k: parameters, plus a batch of intermediate values, in bytes.

    It omits gradients, optimiser states, operator workspaces, the input pipeline and the process itself
    (``docs/memory-model.md``); the planner does not use it.

    Examples
    --------
    >>> plain_model(parameters=0, parameter_bytes=4, samples=1, values_per_sample=784, value_bytes=32)
    25088
    """
    return parameters * parameter_bytes + samples * values_per_sample * value_bytes
