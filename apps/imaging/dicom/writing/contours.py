"""Exact outlines of a mask along voxel edges: a voxel is in the mask if and only if its centre is inside an outline.

NumPy finds all corners at once. Outlines alternate between horizontal and vertical edges, which join neighbouring
corners of a row or a column in pairs. Voxels that touch only at a corner belong to different outlines. A hole is joined
to the outline around it by a channel without width (a keyhole, DICOM PS3.3 C.8.8.6.3).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Points = npt.NDArray[np.int64]

MOST_CORNERS = 50_000
"""Most corners of one mask: a mask with more is noise, not a structure."""
CORNER_BYTES = 300
"""Bytes of finding and joining outlines for each corner (measured 192)."""


class TooRagged(ValueError):
    """A mask with more than ``MOST_CORNERS`` corners."""


@dataclass(slots=True)
class _Corners:
    """Corners in the order of rows; of two corners at one point the left one comes first."""

    rows: Points
    columns: Points
    filled: Mask
    """True if the voxel to the lower right of a corner is in the mask."""
    across: list[int]
    """Index of the other end of each corner's vertical edge; that of its horizontal edge is ``index ^ 1``."""
    upward: Points
    """Corners in the order of columns, in which vertical edges join them in pairs."""
    keys: Points
    """Their positions, ascending: column x ``step`` + row."""
    step: int

    @classmethod
    def of(cls, mask: Mask) -> "_Corners":
        """Raises ``TooRagged``."""
        around = np.pad(mask, 1)
        above_left, above_right, below_left, below_right = (
            around[:-1, :-1], around[:-1, 1:], around[1:, :-1], around[1:, 1:]
        )  # fmt: skip
        single = above_left ^ above_right ^ below_left ^ below_right
        double = (above_left == below_right) & (above_right == below_left) & (above_left != above_right)
        rows, columns = np.nonzero(single | double)
        twice = double[rows, columns]
        if len(rows) + int(twice.sum()) > MOST_CORNERS:
            raise TooRagged(f"{len(rows) + int(twice.sum())} corners")
        index = np.repeat(np.arange(len(rows)), 1 + twice)
        second = np.concatenate([[False], index[1:] == index[:-1]]) if len(index) else np.empty(0, bool)
        rows, columns, twice = rows[index], columns[index], twice[index]
        # At a double corner the left edge belongs to the upper left voxel, and so goes up, if that is in the mask.
        below = second == above_left[rows, columns]
        upward = np.lexsort((below & twice, rows, columns))
        across = np.empty_like(rows)
        across[upward[::2]], across[upward[1::2]] = upward[1::2], upward[::2]
        keys = columns[upward] * (len(around) + 1) + rows[upward]  # more than the largest row
        return cls(rows, columns, below_right[rows, columns], across.tolist(), upward, keys, len(around) + 1)

    def edge_at(self, row: int, column: int) -> int:
        """Index of the upper end of the vertical edge at ``column`` along the voxels of ``row``."""
        index = np.searchsorted(self.keys, column * self.step + row, side="right") - 1
        return int(self.upward[index])


def outlines(mask: Mask) -> list[Points]:
    """Closed outlines of a mask (rows, columns).

    Returns
    -------
    list of (n, 2)
        Corners as (column, row) of voxel edges: voxel (row, column) spans ``column ... column + 1``. The first point is
        not repeated at the end. Each outline is one component, its holes joined by keyholes.

    Raises
    ------
    TooRagged
        If the mask has more than ``MOST_CORNERS`` corners.
    """
    corners = _Corners.of(mask)
    rings = _rings(corners.across)
    joined = _Joined(corners)
    outer = [ring for ring in rings if corners.filled[ring[0]]]
    for ring in rings:
        joined.add(ring, hole=not corners.filled[ring[0]])
    for ring in reversed(rings):  # a hole's outline begins after the one that it is joined to
        if not corners.filled[ring[0]]:
            joined.join(ring, mask)
    return [joined.walk(ring[0]) for ring in outer]


def _rings(across: list[int]) -> list[list[int]]:
    """Closed rings of corners, each from its uppermost, leftmost corner to the right."""
    seen = bytearray(len(across))
    rings = []
    for start in range(len(across)):
        if seen[start]:
            continue
        ring, at = [], start
        while not seen[at]:
            seen[at] = seen[at ^ 1] = 1
            ring += [at, at ^ 1]
            at = across[at ^ 1]
        rings.append(ring)
    return rings


class _Joined:
    """Outlines as linked lists, so that joining a hole moves no corner."""

    def __init__(self, corners: _Corners) -> None:
        self._corners = corners
        self._rows, self._columns = corners.rows.tolist(), corners.columns.tolist()
        self._next = [0] * len(self._rows)
        self._begin: dict[int, int] = {}
        """By the upper end of a vertical edge: the corner from which further holes may be joined to it."""
        self._downward: set[int] = set()
        """Upper ends of the vertical edges along which the outline goes down."""

    def add(self, ring: list[int], *, hole: bool) -> None:
        """Link a ring; a hole's has the opposite direction."""
        order = ring[:1] + ring[:0:-1] if hole else ring
        for here, there in zip(order, [*order[1:], order[0]], strict=True):
            self._next[here] = there
            if self._columns[here] == self._columns[there]:
                down = self._rows[here] < self._rows[there]
                upper = here if down else there
                self._begin[upper] = here
                if down:
                    self._downward.add(upper)

    def join(self, hole: list[int], mask: Mask) -> None:
        """Join a hole by a channel to the left, along its upper edge, up to the first vertical edge in the way."""
        start = hole[0]
        row, column = self._rows[start], self._columns[start]
        outside = np.flatnonzero(~mask[row, :column])
        edge = int(outside[-1]) + 1 if len(outside) else 0
        upper = self._corners.edge_at(row, edge)
        begin = self._begin[upper]
        leave, back, again = self._node(row, edge), self._node(row, edge), self._node(row, column)
        self._next[back], self._next[begin] = self._next[begin], leave
        self._next[leave] = start
        self._next[hole[1]], self._next[again] = again, back
        # The next hole at this edge is higher: before the channel if the edge goes down, after it if it goes up.
        self._begin[upper] = begin if upper in self._downward else back

    def _node(self, row: int, column: int) -> int:
        self._rows.append(row)
        self._columns.append(column)
        self._next.append(0)
        return len(self._rows) - 1

    def walk(self, start: int) -> Points:
        """The corners of an outline."""
        points, at = [], start
        while True:
            points.append((self._columns[at], self._rows[at]))
            at = self._next[at]
            if at == start:
                return np.array(points)
