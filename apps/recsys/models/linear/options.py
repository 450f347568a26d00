"""Hyper-parameters of ``--model linear``, as the command line gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apps.recsys.models.linear.readers import uses_readers
from common.compression.codes import STEPS
from common.errors import UsageError

AUTO = "auto"
"""Value of a hyper-parameter that is chosen on hidden items."""
FORMS = ("filter", "spectral", "ease")
"""Values of ``form``: the interactions, with a spectrum or without; a spectrum alone; EASE, which ``AUTO`` compares
where its numbers, items squared, fit (``may_be_ease``)."""
OVER_RANKS = ("spectral", "ease")
"""Forms whose numbers several ranks share out: items by eigenvalues, and items squared."""
EASE_ITEMS, WORTH = 5000, 1.01
"""Most items of which ``AUTO`` tries EASE: each ridge takes items cubed, 2 s for MovieLens-1M's 3,500. And how much
better than the others it must be on hidden items, because it takes 10 to 30 times their bytes."""
BITS = (32, *STEPS)
"""Values of ``bits``: float32, or codes of so many bits a number of the spectrum."""
HYPER: Mapping[str, Any] = {
    "form": AUTO,
    "degree_power": AUTO,
    "user_power": AUTO,
    "item_power": AUTO,
    "saturation": AUTO,
    "ridge": AUTO,
    "bits": 32,
}
"""Hyper-parameters with their defaults."""
USUAL = {"user_power": 1.0, "item_power": 0.5}
"""Powers of P unless they are given or chosen: those of a random walk. They are chosen with the degree power."""
FACTORS = (512, 256, 128, 64, 32, 0)
"""Eigenvalues unless ``--factors`` says otherwise: as many of these as fit."""
FILTER_FACTORS = 256
"""Most eigenvalues of a filter unless ``--factors`` says otherwise. With 512 it read R@20 .1897 on Gowalla, with 256
.1900; a spectrum alone gains from them (MovieLens-1M: NDCG@20 .988 of EASE's instead of .980)."""
SEARCHED_NUMBERS, ASKED_NUMBERS = 1 << 26, 1 << 24
"""Most numbers of a spectrum, items times eigenvalues, where single users are answered by readers and ``--factors``
does not say otherwise: of one that is compared, since each candidate multiplies them for each user; and of a filter's,
since each question does (7 ms)."""
SHARE = 0.5
"""Share of the users that may be in the sample; other shares were not compared."""
MOST_USERS = 4000
"""Most users of the sample. With 2,000 a worse degree power and saturation were chosen on Gowalla (.1567 instead of
.1590), but together with a coarser grid."""
SCORED = 200_000_000
"""Most scores per candidate: the users of the sample times the items. 4,000 users of Gowalla are 164 million."""
LEAST_USERS, BY_READERS = 100, 400
"""Users of the sample, however many items there are; and where each is ranked for by the readers of his items."""
_NUMBERS = {
    "degree_power": (0.0, 1.0),
    "user_power": (0.0, 1.0),
    "item_power": (0.0, 1.0),
    "saturation": (1e-9, 1e9),
    "ridge": (1e-3, 1e9),
}


def ranks(form: str) -> tuple[int, ...]:
    """Numbers of eigenvalues that the planner may choose, the best first; ``form`` as in ``HYPER``."""
    most = {"ease": 0, "filter": FILTER_FACTORS}.get(form, FACTORS[0])
    return tuple(factors for factors in FACTORS if factors <= most)


def open_factors(form: str, items: int, interactions: int) -> int:
    """Most eigenvalues of a model of a form, or ``AUTO``, where ``--factors`` leaves their number open.

    Examples
    --------
    >>> open_factors("filter", 40981, 810_128)
    256
    >>> open_factors("filter", 10**6, 6 * 10**7), open_factors(AUTO, 10**6, 6 * 10**7)
    (16, 67)
    """
    most = ranks(form)[0]
    if not uses_readers("filter", interactions):
        return most
    return min(most, (ASKED_NUMBERS if form == "filter" else SEARCHED_NUMBERS) // items)


def sample_users(items: int, users: int, by_readers: bool = False) -> int:
    """Most users for whom items are hidden, to choose hyper-parameters."""
    most = BY_READERS if by_readers else max(LEAST_USERS, SCORED // items)
    return max(1, min(MOST_USERS, int(SHARE * users), most))


def may_be_ease(hyper: Mapping[str, Any], items: int, ranks: tuple[int, ...]) -> bool:
    """True if all is open that EASE does not have, and there are few items.

    Examples
    --------
    >>> may_be_ease(HYPER, 3533, FACTORS), may_be_ease(HYPER, 40981, FACTORS), may_be_ease(HYPER, 3533, (64,))
    (True, False, False)
    """
    return items <= EASE_ITEMS and len(ranks) > 1 and dict(hyper) == dict(HYPER)


def chooses(hyper: Mapping[str, Any], factors: int) -> bool:
    """True if something is left to choose on hidden items; without a spectrum those are the powers alone, of EASE
    the ridge."""
    if hyper["form"] == "ease":
        return bool(hyper["ridge"] == AUTO)
    powers = (hyper["degree_power"], hyper["user_power"], hyper["item_power"])
    return AUTO in (*powers, *((hyper["form"], hyper["saturation"]) if factors else ()))


def checked(hyper: Mapping[str, Any], factors: int) -> dict[str, Any]:
    """Check hyper-parameters and convert their numbers.

    Parameters
    ----------
    hyper
        As ``HYPER``.
    factors
        Eigenvalues; 0: none.

    Raises
    ------
    UsageError
        In one line, if one is out of range, or a spectral model has no spectrum.

    Examples
    --------
    >>> given = checked({**HYPER, "degree_power": "0.4", "bits": 2}, 256)
    >>> given["degree_power"], given["item_power"], given["saturation"]
    (0.4, 0.5, 'auto')
    """
    chosen = dict(hyper)
    if hyper["form"] != "ease" and hyper["degree_power"] != AUTO:
        chosen |= {name: power for name, power in USUAL.items() if hyper[name] == AUTO}
    if hyper["form"] not in (AUTO, *FORMS):
        raise UsageError(f"--set form={hyper['form']}: expected {AUTO}, {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    if hyper["form"] == "spectral" and not factors:
        raise UsageError("--set form=spectral: needs --factors 1 or more")
    _check_ease(hyper, factors)
    if hyper["bits"] not in BITS:
        raise UsageError(f"--set bits={hyper['bits']}: expected {', '.join(map(str, BITS[:-1]))} or {BITS[-1]}")
    for name, (low, high) in _NUMBERS.items():
        if hyper[name] == AUTO:
            continue
        try:
            number = float(hyper[name])
        except ValueError:
            raise UsageError(f"--set {name}={hyper[name]}: expected {AUTO} or a number") from None
        if not low <= number <= high:
            raise UsageError(f"--set {name}={hyper[name]}: expected a number from {low:g} to {high:g}")
        chosen[name] = number
    return chosen


def _check_ease(hyper: Mapping[str, Any], factors: int) -> None:
    """Refuse settings that EASE does not have, and its own with other forms."""
    if hyper["form"] == "ease":
        if factors:
            raise UsageError(f"--factors {factors}: form=ease has no eigenvalues")
        for name in ("degree_power", *USUAL, "saturation", "bits"):
            if hyper[name] != HYPER[name]:
                raise UsageError(f"--set {name}={hyper[name]}: form=ease has only the setting ridge")
    elif hyper["ridge"] != AUTO:
        raise UsageError(f"--set ridge={hyper['ridge']}: is for --set form=ease")


def check_over_ranks(hyper: Mapping[str, Any]) -> None:
    """Refuse, in one line, what several ranks do not train; parameters and errors as ``checked``."""
    if hyper["form"] not in OVER_RANKS:
        raise UsageError(
            "--model linear: several ranks train --set form=spectral or form=ease; a filter is the interactions "
            "themselves, which one process reads block by block, so there is nothing to share out"
        )
    if hyper["bits"] != HYPER["bits"]:
        raise UsageError(f"--set bits={hyper['bits']}: several ranks write float32; use recsys compress afterwards")
