"""Generate a seeded data set, for the demo and for tests if real data is not there.

Users and items belong to clusters, and the popularity of items follows a power law.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

WORDS = (
    "Amber", "Birch", "Cobalt", "Dune", "Ember", "Fjord", "Garnet", "Harbour",
    "Iris", "Juniper", "Kelp", "Lagoon", "Marble", "Nimbus", "Opal", "Prairie",
)  # fmt: skip
"""Word in the titles of a cluster's items, so that recommendations can be judged by eye."""
LOYALTY = 0.75
"""Share of a user's items that come from its own cluster."""
LIVE, FIRST_YEAR, YEARS = 5, 1960, 60
"""Every fifth item is of a second genre; years begin again after sixty items."""


def write(
    directory: Path, *, users: int = 600, items: int = 400, mean: float = 30.0, clusters: int = 8, seed: int = 0
) -> tuple[Path, Path]:
    """Write ``interactions.csv`` (user, item, count, time) and ``items.csv`` (item, title, genre, year).

    Parameters
    ----------
    directory
        Folder of the two files.
    users, items
        Their numbers.
    mean
        Average number of items of a user.
    clusters
        Number of clusters, at most 16.
    seed
        Seed of the random numbers.

    Returns
    -------
    tuple
        Paths of the two files.
    """
    import numpy as np

    random = np.random.default_rng(seed)
    cluster = np.arange(items) % clusters
    weight = 1 / (1 + random.permutation(items)) ** 0.8  # Zipf-like
    pairs, names = directory / "interactions.csv", directory / "items.csv"
    with pairs.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["user", "item", "count", "time"])
        for user in range(users):
            preference = weight * np.where(cluster == user % clusters, LOYALTY * clusters, 1 - LOYALTY)
            count = int(np.clip(random.geometric(1 / mean), 2, items // 2))
            chosen = random.choice(items, count, replace=False, p=preference / preference.sum())
            plays = random.geometric(0.2, count)
            rows.writerows(
                [f"u{user:05}", int(item), int(n), time]
                for time, (item, n) in enumerate(zip(chosen, plays, strict=True))
            )
    with names.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["item", "title", "genre", "year"])
        for item in range(items):
            word = WORDS[cluster[item]]
            live = "|live" if item % LIVE == 0 else ""
            rows.writerow([item, f"{word} No. {item // clusters + 1}", word + live, FIRST_YEAR + item % YEARS])
    return pairs, names


def main() -> None:
    """``python -m apps.recsys.data.synthetic DIRECTORY``."""
    parser = argparse.ArgumentParser(prog="python -m apps.recsys.data.synthetic", description=__doc__)
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    directory.mkdir(parents=True, exist_ok=True)
    write(directory)


if __name__ == "__main__":
    main()
