"""Memory terms of the training of a linear model in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.recsys.models.linear import readers
from apps.recsys.models.linear.options import AUTO, chooses, sample_users
from apps.recsys.models.scan.stored import writing_bytes
from apps.recsys.planning.linear_terms import (
    block_terms,
    comparing_terms,
    decoding_terms,
    ease_terms,
    left_behind,
    model_terms,
    reader_scoring_terms,
    readers_terms,
    scoring_terms,
    spectrum_terms,
)
from apps.recsys.planning.ranking_terms import ranking_terms
from common.memory.footprint import Term


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSizes:
    """Sizes of the interactions that a linear model is made of."""

    users: int
    items: int
    interactions: int
    """All of them."""
    trained: int
    """Those that the split leaves."""
    longest: int
    """Items of the user with most of them."""
    scored_users: int
    """Users with held-out items."""
    scored_longest: int
    """Items of the one of them with most."""

    @property
    def large(self) -> bool:
        """True if a filter asks the users of single items."""
        return readers.uses_readers("filter", self.trained)


def training_terms(
    sizes: TrainingSizes, hyper: Mapping[str, Any], setting: Mapping[str, Any], *, threads: int, evaluates: bool
) -> list[Term]:
    """Terms of a training: the spectrum, then the comparison of candidates, or what orders the interactions by items,
    whichever is most; later the evaluation of what the split held out.

    Parameters
    ----------
    sizes
        Of the data.
    hyper
        Hyper-parameters as the command line gives them.
    setting
        Knobs of the plan: ``factors``, ``user_block``, and ``ease``: 1 if EASE is a candidate.
    threads
        Threads of the computation.
    evaluates
        True if a split holds something out.
    """
    factors, block = int(setting["factors"]), int(setting["user_block"])
    counted = {"users": sizes.users, "items": sizes.items, "interactions": sizes.trained}
    fit, bits = ("fit",), int(hyper["bits"])
    filters = hyper["form"] not in ("spectral", "ease")
    spectrum = spectrum_terms(**counted, factors=factors, threads=threads, phases=fit)
    ordered = []
    if filters and sizes.large:
        ordered = readers_terms(items=sizes.items, interactions=sizes.trained, phases=fit)
    compared = _compared_terms(sizes, hyper, factors, block, ease=bool(setting["ease"]), threads=threads, phases=fit)
    most = max(spectrum, compared, ordered, key=lambda terms: sum(term.bytes for term in terms))
    stored = {"items": sizes.items, "factors": factors, "bits": bits}
    terms = [
        *block_terms(**counted, longest=sizes.longest, threads=threads, phases=fit),
        *most,
        *_written_terms(**stored, form=hyper["form"]),
    ]
    return [*terms, *(evaluating_terms(sizes, hyper, setting, threads=threads) if evaluates else ())]


def evaluating_terms(
    sizes: TrainingSizes, hyper: Mapping[str, Any], setting: Mapping[str, Any], *, threads: int
) -> list[Term]:
    """Terms of evaluating what the split held out; parameters as in ``training_terms``."""
    factors, block = int(setting["factors"]), int(setting["user_block"])
    counted = {"users": sizes.users, "items": sizes.items, "interactions": sizes.trained}
    stored = {"items": sizes.items, "factors": factors, "bits": int(hyper["bits"])}
    filters, bits = hyper["form"] not in ("spectral", "ease"), stored["bits"]
    evaluating = ("evaluate",)
    terms = block_terms(**counted, longest=sizes.longest, threads=threads, phases=evaluating)
    terms += model_terms(**stored, phases=evaluating)
    terms += decoding_terms(factors=factors, bits=bits, threads=threads, phases=evaluating)
    if factors:
        terms.append(left_behind(items=sizes.items, factors=factors, phases=evaluating))
    some = min(block, sizes.scored_users)
    if filters and sizes.large:
        terms += _by_readers_terms(sizes, some, factors > 0, threads=threads, phases=evaluating)
    else:
        terms += scoring_terms(**counted, block=some, threads=threads, phases=evaluating)
    return terms + ranked_terms(
        sizes, sizes.scored_users, sizes.scored_longest, block, threads=threads, phases=evaluating, scores=False
    )


def _written_terms(*, items: int, factors: int, bits: int, form: str) -> list[Term]:
    """Terms of writing the spectrum, then perhaps the codes by which a large catalogue is scanned."""
    scanned = factors and form in (AUTO, "spectral") and bits == 32
    scan = Term("codes of the items", writing_bytes(items, factors) if scanned else 0, "analytic", ("write",))
    terms = [*model_terms(items=items, factors=factors, bits=bits, phases=("write",)), scan]
    return [max(terms, key=lambda term: term.bytes)]


def _compared_terms(
    sizes: TrainingSizes,
    hyper: Mapping[str, Any],
    factors: int,
    block: int,
    *,
    ease: bool,
    threads: int,
    phases: tuple[str, ...],
) -> list[Term]:
    """Terms of comparing candidates on hidden items; of EASE, or with it among them (``ease``), of its weights too."""
    filters = hyper["form"] not in ("spectral", "ease")
    large = sizes.large and filters
    scored = sample_users(sizes.items, sizes.users, large)
    some, counted = min(block, scored), {"users": sizes.users, "items": sizes.items, "interactions": sizes.trained}
    ranking = ranked_terms(sizes, scored, sizes.longest, some, threads=threads, phases=phases)
    of_ease = ease_terms(items=sizes.items, phases=phases)
    if hyper["form"] == "ease":
        return [*of_ease, *(ranking if chooses(hyper, factors) else ())]
    if not chooses(hyper, factors):
        return []
    asked = _by_readers_terms(sizes, threads, False, threads=threads, phases=phases) if large else []
    left = left_behind(items=sizes.items, factors=factors, phases=phases)
    compared = [
        *model_terms(items=sizes.items, factors=factors, phases=phases),
        *comparing_terms(**counted, block=threads if large else some, threads=threads, filters=filters, phases=phases),
        *asked,
        left,
    ]
    # Before that, items are hidden by what the interactions say of ``block`` users.
    hiding = [] if large else scoring_terms(**counted, block=min(block, scored), threads=1, phases=phases)
    with_ease = [*of_ease, *ranking, left] if ease else []
    return max(compared, hiding, with_ease, key=lambda terms: sum(one.bytes for one in terms))


def _by_readers_terms(
    sizes: TrainingSizes, block: int, spectral: bool, *, threads: int, phases: tuple[str, ...]
) -> list[Term]:
    counted = {name: getattr(sizes, name) for name in ("users", "items", "interactions", "longest")}
    return reader_scoring_terms(**counted, block=block, threads=threads, phases=phases, spectral=spectral)


def ranked_terms(
    sizes: TrainingSizes,
    scored: int,
    longest: int,
    block: int,
    *,
    threads: int,
    phases: tuple[str, ...],
    scores: bool = True,
) -> list[Term]:
    """Terms of ranking by a linear model, besides the model."""
    return ranking_terms(
        items=sizes.items,
        factors=0,
        scored=scored,
        longest=longest,
        mean=sizes.interactions / sizes.users,
        block=block,
        threads=threads,
        phases=phases,
        scores=scores,
    )
