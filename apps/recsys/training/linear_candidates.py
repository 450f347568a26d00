"""Settings of a linear model that are compared, and the order in which they are.

Filters are compared first, because one product with the interactions serves several of them; then spectra of few
powers, because they are computed anew for others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from apps.recsys.models.linear.options import AUTO, USUAL

FINER_POWER, FINER_SATURATION = 0.05, 2**0.5
"""Steps from the best candidate to those that are compared after it."""
SHIFT = 0.1
"""How far a filter's degree power is moved with a spectrum."""
POWERS, ITEMS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5), (0.25, 0.5)
"""Degree powers where the item power is given, and item powers where the degree power is."""
ASKING, ANSWERING = (0.25, 0.5, 0.75, 1.0), (0.0, 0.25, 0.5, 0.75)
"""Powers of the numbers of users of the items of a history, ``item_power + degree_power``, and of those that are
scored, ``item_power - degree_power``: one product for each of the first."""
USERS_FIRST, USERS = 0.5, (0.25, 0.75, 1.0)
"""User powers: the one with which all pairs are compared, and those that are tried with the best pair."""
OTHER_POWERS = 1.1
"""How much better on hidden items filters with other than the usual powers must be: on Gowalla they were 1.05 times as
good there, and .94 times on the test file; on Epinions 1.5 times on both."""
SATURATIONS: Mapping[str, tuple[float, ...]] = {
    "filter": (8.0, 4.0, 2.0, 1.0, 0.5),
    "spectral": (1.0, 0.3, 0.1, 0.03, 0.01),
}
"""Candidates for the saturation by form. A filter changes little of the spectrum; a spectral model of dense data cuts
off most of its first eigenvalues (``docs/recsys.md``)."""
SPECTRAL_ITEM, SPECTRAL_POWERS = 0.25, (0.0, 0.15, 0.3)
"""Item power and degree powers of spectral models: with an item power of one half a spectrum of sparse data has those
first whose items nobody else had."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A form of the model with its numbers."""

    form: str
    degree_power: float
    saturation: float
    """Infinite for a filter without a spectrum."""
    item_power: float = USUAL["item_power"]
    user_power: float = USUAL["user_power"]

    @property
    def spectral(self) -> bool:
        """True if it has a spectrum."""
        return math.isfinite(self.saturation)

    @property
    def usual(self) -> bool:
        """True if its powers of P are the usual ones."""
        return self.item_power == USUAL["item_power"] and self.user_power == USUAL["user_power"]

    @property
    def asking(self) -> float:
        """The power of the numbers of users of a history's items."""
        return round(self.item_power + self.degree_power, 4)

    @property
    def settings(self) -> dict[str, Any]:
        """Its hyper-parameters; without a spectrum the saturation has no meaning, and is 1, as the ridge of EASE."""
        powers = {name: getattr(self, name) for name in ("degree_power", "user_power", "item_power")}
        return {"form": self.form, **powers, "saturation": self.saturation if self.spectral else 1.0, "ridge": 1.0}

    def __str__(self) -> str:
        powers = f"degree_power={self.degree_power:g} user_power={self.user_power:g} item_power={self.item_power:g}"
        return f"form={self.form} {powers} saturation={self.saturation:g}"


@dataclass(frozen=True, slots=True)
class Search:
    """What the command line leaves open.

    Attributes
    ----------
    hyper
        Hyper-parameters, each of which may be ``AUTO``.
    factors
        Eigenvalues; 0: none.
    """

    hyper: Mapping[str, Any]
    factors: int

    @property
    def first(self) -> list[Candidate]:
        """The candidates of the first round: filters without a spectrum, unless the form is ``spectral``."""
        if self.hyper["form"] == "spectral":
            return self._spectral
        return [Candidate("filter", b, math.inf, a, self._user) for a, b in self._pairs()]

    def rounds(self, means: Mapping[Candidate, float]) -> Iterator[list[Candidate]]:
        """Yield candidates to compare; ``means`` has the metric of all earlier ones when the next round is made."""

        def best(form: str) -> Candidate:
            return max((one for one in self.eligible(means) if one.form == form), key=means.__getitem__)

        form = self.hyper["form"]
        if form != "spectral":
            yield self.first
            if self.hyper["user_power"] == AUTO:
                yield [replace(best("filter"), user_power=power) for power in USERS]
            if self._open:
                yield [Candidate("filter", b, math.inf) for b in POWERS]
            yield self._nearby(best("filter"))
        if self.factors and form != "filter":
            yield self._spectral
            yield self._nearby(best("spectral"))
        if self.factors and form != "spectral":
            filters = [one for one in self.eligible(means, powers_only=True) if one.form == "filter"]
            found = max(filters, key=means.__getitem__)
            shifts = (0.0, -SHIFT, SHIFT) if self.hyper["degree_power"] == AUTO else (0.0,)
            powers = [power for shift in shifts if 0 <= (power := round(found.degree_power + shift, 4)) <= 1]
            saturations = self._saturations("filter")
            yield [replace(found, degree_power=b, saturation=c) for b in powers for c in saturations]
            if best("filter").spectral:
                yield self._nearby(best("filter"))

    @property
    def _open(self) -> bool:
        """True if all powers are."""
        return all(self.hyper[name] == AUTO for name in ("degree_power", *USUAL))

    def eligible(self, means: Mapping[Candidate, float], *, powers_only: bool = False) -> list[Candidate]:
        """Candidates that may be chosen.

        Filters with other than the usual powers must be ``OTHER_POWERS`` times as good as the best with these. Where a
        saturation is given, a filter without a spectrum is only compared for its powers (``powers_only``).
        """
        usual = [mean for one, mean in means.items() if one.form == "filter" and one.usual]
        others = [mean for one, mean in means.items() if one.form == "filter" and not one.usual]
        left_out = self._open and bool(usual) and max(others, default=0.0) < OTHER_POWERS * max(usual)
        kept = [one for one in means if not (left_out and one.form == "filter" and not one.usual)]
        if not powers_only and self.factors and self.hyper["saturation"] != AUTO:
            with_spectrum = [one for one in kept if one.spectral]
            return with_spectrum or kept
        return kept

    @property
    def _user(self) -> float:
        given = self.hyper["user_power"]
        return USERS_FIRST if given == AUTO else float(given)

    def _saturations(self, form: str) -> tuple[float, ...]:
        given = self.hyper["saturation"]
        return SATURATIONS[form] if given == AUTO else (given,)

    def _pairs(self) -> list[tuple[float, float]]:
        """Item powers with degree powers."""
        hyper = self.hyper
        if hyper["item_power"] == AUTO and hyper["degree_power"] == AUTO:
            return [((q + p) / 2, (q - p) / 2) for q in ASKING for p in ANSWERING if p <= q]
        items = ITEMS if hyper["item_power"] == AUTO else (hyper["item_power"],)
        return [(a, b) for a in items for b in (POWERS if hyper["degree_power"] == AUTO else (hyper["degree_power"],))]

    @property
    def _spectral(self) -> list[Candidate]:
        """Spectral candidates, of one spectrum, or with open powers of that with the usual ones too."""
        hyper = self.hyper
        item = SPECTRAL_ITEM if hyper["item_power"] == AUTO else hyper["item_power"]
        powers = SPECTRAL_POWERS if hyper["degree_power"] == AUTO else (hyper["degree_power"],)
        saturations = self._saturations("spectral")
        made = [Candidate("spectral", b, c, item, self._user) for b in powers for c in saturations]
        if self._open:
            made += [replace(one, item_power=USUAL["item_power"], user_power=USUAL["user_power"]) for one in made]
        return made

    def _nearby(self, one: Candidate) -> list[Candidate]:
        """Candidates between this one and those of the grid, along the numbers that are open; without this one."""
        hyper = self.hyper
        step, moves = FINER_POWER, [(0.0, 0.0)]
        if hyper["degree_power"] == AUTO:
            open_items = hyper["item_power"] == AUTO and not one.spectral and not (self._open and one.usual)
            # Of the two powers of items, or with an open item power of their sum and their difference.
            moves += (
                [(step, step), (-step, -step), (step, -step), (-step, step)] if open_items else [(0, step), (0, -step)]
            )
        steps: tuple[float, ...] = (1.0,)
        if one.spectral and hyper["saturation"] == AUTO:
            steps = (1 / FINER_SATURATION, 1.0, FINER_SATURATION)
        made = [
            replace(
                one,
                item_power=round(one.item_power + a, 4),
                degree_power=round(one.degree_power + b, 4),
                saturation=round(one.saturation * step, 4) if one.spectral else one.saturation,
            )
            for a, b in moves
            for step in steps
        ]
        return [each for each in made if each != one and 0 <= each.degree_power <= 1 and 0 <= each.item_power <= 1]
