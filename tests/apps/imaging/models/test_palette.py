import numpy as np

from apps.imaging.models.palette import FIRST, color_of


def test_no_two_of_many_colours_are_near() -> None:
    """TotalSegmentator's task has 117 classes; none is black, the background's."""
    colors = np.array([(0, 0, 0), *map(color_of, range(117))])
    apart = np.abs(colors[:, None] - colors[None]).sum(2) + 999 * np.eye(len(colors), dtype=int)
    assert apart.min() >= 22
    assert tuple(map(tuple, colors[1 : 1 + len(FIRST)].tolist())) == FIRST
    few = apart[:20, :20]
    assert few.min() >= 77
