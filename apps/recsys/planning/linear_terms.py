"""Memory terms of a linear model: its blocks of interactions, its spectrum, and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apps.recsys.models.linear import ease, readers
from apps.recsys.models.linear.log import BLOCK_INTERACTIONS, block_users
from apps.recsys.models.linear.options import chooses, sample_users
from apps.recsys.models.linear.spectrum import ROWS, vectors
from apps.recsys.models.manifest import spectrum_bits
from apps.recsys.planning.baselines import uses_interactions
from apps.recsys.planning.ranking_terms import PACKING_BYTES, WARM_FACTORS, ranking_terms
from common.compression import codes
from common.memory.footprint import Term

ARRAYS = 3
"""Arrays of items by users while histories are scored: questions, answers, and what a block or the spectrum adds."""

LEFT_BYTES = 10 << 20
"""Memory that BLAS and the heap keep after the spectrum was computed (measured 9 MiB while candidates
are compared and 12 while the split is evaluated, on Last.fm with 256 eigenvalues)."""


PLACED_BYTES = 56
"""Bytes of an interaction of a block that is put in the order of its items: both orders, its place, and copies."""
SHARED_BYTES, HISTORIES_BYTES, SPLIT_BYTES = 52, 12, 12
"""Bytes of a user who is looked at because of a shared item (measured 51): as it is read, sorted, its place and its
weight; of an interaction of those who are kept: as it is read, joined, with a one; and of its copy for explanations."""


def block_terms(
    *, users: int, items: int, interactions: int, longest: int, threads: int, phases: tuple[str, ...]
) -> list[Term]:
    """Terms of reading the interactions by blocks: their items in each thread, a one for each of them, row starts."""
    block = min(BLOCK_INTERACTIONS, interactions) + longest
    starts = 4 * 4 * min(block_users(items), users) * threads
    return [
        Term("block of interactions", 4 * block * (1 + threads) + starts, "analytic", phases),
        Term("history index", 8 * (users + 1), "analytic", phases),
        Term("counts of the items' users", 12 * items, "analytic", phases),
    ]


def spectrum_terms(*, users: int, items: int, factors: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of ``spectrum``: two blocks of vectors, what is added to one, the users' shares, Gramians in float64."""
    if not factors:
        return []
    width = vectors(items, factors)
    arrays = 4 * width * (3 * items + min(users, block_users(items)) + 2 * ROWS)
    return [Term("spectrum", arrays + 5 * 8 * width * width, "analytic", phases)]


def model_terms(*, items: int, factors: int, bits: int = 32, phases: tuple[str, ...]) -> list[Term]:
    """Terms of a spectrum that is loaded."""
    if not factors:
        return []
    row = 4 * factors if bits == 32 else codes.row_bytes(factors, bits)
    return [Term("spectrum", row * items + 4 * factors, "analytic", phases)]


def decoding_terms(*, factors: int, bits: int, threads: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of codes while they are decoded: a block of rows in each thread, its codes, and what BLAS packs of it."""
    if not factors or bits == 32:
        return []
    each = codes.BLOCK_ROWS * (4 * (factors + 8) + 9 * codes.row_bytes(factors, bits))
    packing = PACKING_BYTES * max(0, factors - WARM_FACTORS)
    return [Term("decoded rows", threads * (each + packing), "analytic", phases)]


def scoring_terms(*, users: int, items: int, block: int, threads: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of scoring all items for ``block`` users in all, shared by the threads."""
    columns = -(-block // threads) * threads
    return [Term("scores", 4 * columns * (ARRAYS * items + min(users, block_users(items))), "analytic", phases)]


def comparing_terms(*, users: int, items: int, block: int, threads: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of comparing candidates: their scores, a mask of the large ones, and what the spectrum left behind."""
    columns = -(-block // threads) * threads
    return [
        *scoring_terms(users=users, items=items, block=block, threads=threads, phases=phases),
        Term("mask of large scores", columns * items, "analytic", phases),
        Term("left behind by the spectrum", LEFT_BYTES, "measured", phases),
    ]


def coded_terms(manifest: Mapping[str, Any], *, phases: tuple[str, ...]) -> list[Term]:
    """Terms of a model's spectrum as codes, besides the decoded one."""
    sizes = {"factors": manifest["factors"], "bits": spectrum_bits(manifest), "phases": phases}
    return decoding_terms(**sizes, threads=1) + (
        model_terms(items=manifest["items"], **sizes) if sizes["bits"] < 32 else []
    )


def readers_terms(*, items: int, interactions: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of writing the users of each item: a chunk, a block in both orders with its places, and starts."""
    block, chunk = min(BLOCK_INTERACTIONS, interactions), min(readers.CHUNK, interactions)
    # Of a block about as large a part as the chunk is of all, here twice that.
    arrays = 4 * chunk + int(PLACED_BYTES * block * min(1.0, 2 * chunk / interactions)) + 24 * items
    return [Term("users of the items", arrays, "analytic", phases)]


def reader_scoring_terms(
    *,
    users: int,
    items: int,
    interactions: int,
    longest: int,
    block: int,
    threads: int,
    phases: tuple[str, ...],
    spectral: bool = False,
    explained: bool = False,
) -> list[Term]:
    """Terms of a filter that scores ``block`` histories one by one, by the users of their items."""
    looked_at = SHARED_BYTES * min(readers.READ, interactions) + 4 * min(users, interactions)
    each = HISTORIES_BYTES + SPLIT_BYTES * explained
    histories = each * min(readers.PRODUCTS + longest, interactions)
    columns = -(-block // threads) * threads
    return [
        # Starts of the users, weights of both sides, and what orders the rest.
        Term("users of the items", 8 * (items + 1) + 12 * items, "analytic", phases),
        Term("users with the same items", threads * (looked_at + histories), "analytic", phases),
        Term("scores", 4 * items * (threads + columns * (1 + 2 * spectral)), "analytic", phases),
    ]


def ease_terms(*, items: int, phases: tuple[str, ...]) -> list[Term]:
    """Terms of making EASE's weights: items squared, and three panels of rows."""
    panels = 3 * 4 * ease.PANEL * items + 32 * ease.PANEL**2
    return [
        Term("weights of items by items", 4 * items * items, "analytic", phases),
        Term("rows being eliminated", panels, "analytic", phases),
    ]


def readers_file(manifest: Mapping[str, Any]) -> bool:
    """True for a filter that scores single users by the users of their items."""
    return f"{readers.NAME}.users.npy" in manifest.get("files", {})


def scores_all(manifest: Mapping[str, Any]) -> bool:
    """True for a linear model that scores all items at a time: a filter, a spectrum that is codes, or EASE."""
    is_ease = manifest["kind"] == "linear" and manifest["hyper"]["form"] == "ease"
    return uses_interactions(manifest) or spectrum_bits(manifest) < 32 or is_ease


def scorer_terms(
    manifest: Mapping[str, Any],
    *,
    block: int,
    threads: int,
    phases: tuple[str, ...],
    scoring: tuple[str, ...] = (),
    explains: bool = False,
    by_readers: bool = True,
) -> list[Term]:
    """Terms of a loaded model (``scores_all``) that scores for ``block`` users at a time, in the phases ``scoring``.

    With ``explains`` it scores for one user, and explains ``block`` scores at a time. A large filter scores
    ``by_readers``, unless interactions are added to it (``FilterScorer.add``).
    """
    sizes = {"users": manifest["users"], "items": manifest["items"]}
    factors, bits, scoring = manifest["factors"], spectrum_bits(manifest), scoring or phases
    spectrum = [
        *model_terms(items=manifest["items"], factors=factors, bits=bits, phases=phases),
        *decoding_terms(factors=factors, bits=bits, threads=threads, phases=scoring),
    ]
    if not uses_interactions(manifest):
        columns = -(-block // threads) * threads
        return [
            *spectrum,  # EASE has none, and a row of weights in each thread
            Term("row of weights", 8 * threads * manifest["items"], "analytic", scoring),
            Term("weights of the items", 12 * manifest["items"], "analytic", phases),
            Term("scores", 4 * columns * (manifest["items"] + factors), "analytic", scoring),
        ]
    longest = manifest.get("longest", manifest["longest_history"])
    ranking = scoring_terms(**sizes, block=block, threads=threads, phases=scoring)
    if by_readers and readers_file(manifest):
        counts = {"interactions": manifest["interactions"], "longest": longest}
        ranking = reader_scoring_terms(
            **sizes,
            **counts,
            block=1 if explains else block,
            threads=threads,
            phases=scoring,
            spectral=factors > 0,
            explained=explains,
        )
    return [
        *block_terms(**sizes, interactions=manifest["interactions"], longest=longest, threads=threads, phases=phases),
        *spectrum,
        *ranking,
    ]


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
    counted, fit, bits = {"users": sizes.users, "items": sizes.items}, ("fit",), int(hyper["bits"])
    filters = hyper["form"] not in ("spectral", "ease")
    spectrum = spectrum_terms(**counted, factors=factors, phases=fit)
    ordered = []
    if filters and sizes.large:
        ordered = readers_terms(items=sizes.items, interactions=sizes.trained, phases=fit)
    compared = _compared_terms(sizes, hyper, factors, block, ease=bool(setting["ease"]), threads=threads, phases=fit)
    most = max(spectrum, compared, ordered, key=lambda terms: sum(term.bytes for term in terms))
    stored = {"items": sizes.items, "factors": factors, "bits": bits}
    during = ("fit", "evaluate") if evaluates else fit
    terms = [
        *block_terms(**counted, interactions=sizes.interactions, longest=sizes.longest, threads=threads, phases=during),
        *most,
        *model_terms(**stored, phases=("write",)),
    ]
    if not evaluates:
        return terms
    evaluating = ("evaluate",)
    terms += model_terms(**stored, phases=evaluating)
    terms += decoding_terms(factors=factors, bits=bits, threads=threads, phases=evaluating)
    if factors:
        terms.append(Term("left behind by the spectrum", LEFT_BYTES, "measured", evaluating))
    some = min(block, sizes.scored_users)
    if filters and sizes.large:
        terms += _by_readers_terms(sizes, some, factors > 0, threads=threads, phases=evaluating)
    else:
        terms += scoring_terms(**counted, block=some, threads=threads, phases=evaluating)
    return terms + _ranked_terms(
        sizes, sizes.scored_users, sizes.scored_longest, block, threads=threads, phases=evaluating, scores=False
    )


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
    large = sizes.large and hyper["form"] not in ("spectral", "ease")
    scored = sample_users(sizes.items, sizes.users, large)
    some, counted = min(block, scored), {"users": sizes.users, "items": sizes.items}
    ranking = _ranked_terms(sizes, scored, sizes.longest, some, threads=threads, phases=phases)
    of_ease = ease_terms(items=sizes.items, phases=phases)
    if hyper["form"] == "ease":
        return [*of_ease, *(ranking if chooses(hyper, factors) else ())]
    if not chooses(hyper, factors):
        return []
    asked = _by_readers_terms(sizes, threads, False, threads=threads, phases=phases) if large else []
    compared = [
        *model_terms(items=sizes.items, factors=factors, phases=phases),
        *comparing_terms(**counted, block=threads if large else some, threads=threads, phases=phases),
        *asked,
    ]
    left = Term("left behind by the spectrum", LEFT_BYTES, "measured", phases)
    return max(compared, [*of_ease, *ranking, left] if ease else [], key=lambda terms: sum(one.bytes for one in terms))


def _by_readers_terms(
    sizes: TrainingSizes, block: int, spectral: bool, *, threads: int, phases: tuple[str, ...]
) -> list[Term]:
    return reader_scoring_terms(
        users=sizes.users,
        items=sizes.items,
        interactions=sizes.interactions,
        longest=sizes.longest,
        block=block,
        threads=threads,
        phases=phases,
        spectral=spectral,
    )


def _ranked_terms(
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
