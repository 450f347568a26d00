"""What ranks agree on, or refuse, before they train."""

from pathlib import Path

import pytest

from common.errors import UsageError
from common.memory.process.budget import MIB
from common.training.distributed.meeting import Arrival, check_alike, smallest_ceiling
from tests.messages import refused, says
from tests.ranks import over_ranks

ALIKE = {"peakline": "1.0", "torch": "2.13", "batch": 4, "patch": [16, 16, 16]}


@pytest.mark.parametrize(
    ("name", "value", "facts"),
    [("peakline", "1.1", ("1.1", "1.0")), ("torch", "2.12", ("2.12",)), ("batch", 8, ("8",))],
)
def test_ranks_that_differ_are_named(name: str, value: object, facts: tuple[str, ...]) -> None:
    arrivals = [Arrival(MIB, ALIKE), Arrival(MIB, ALIKE), Arrival(MIB, {**ALIKE, name: value})]
    check_alike(arrivals[:2])
    with refused(UsageError, "rank 2", name, *facts):
        check_alike(arrivals)


def test_the_smallest_ceiling_wins_and_is_told_unless_it_is_about_the_same() -> None:
    ceiling, line = smallest_ceiling([Arrival(900 * MIB, {}), Arrival(500 * MIB, {}), Arrival(600 * MIB, {})])
    assert ceiling == 500 * MIB
    says(line, "rank 1", "500.0 MiB")
    assert smallest_ceiling([Arrival(1000 * MIB, {}), Arrival(990 * MIB, {})]) == (990 * MIB, "")
    assert smallest_ceiling([Arrival(500 * MIB, {}), Arrival(900 * MIB, {})]) == (500 * MIB, "")


def test_ranks_meet_and_believe_no_word_of_an_earlier_start(tmp_path: Path) -> None:
    code = """
from common.training.distributed import meeting
from common.training.distributed.meeting import Arrival, Meeting

store = dist.FileStore(folder + "/second", size)
for attempt in range(2):
    meet, arrival = Meeting(group.world, store), Arrival(100 * attempt + rank, {"seed": 7})
    if rank == 0:
        arrivals = meet.gather(arrival)
        assert all(each.alike["seed"] == 7 and "torch" in each.alike for each in arrivals)
        meet.publish({"plan": [each.ceiling for each in arrivals]})
    else:
        print(meet.word(arrival)["plan"])
    dist.barrier()  # a launcher starts nobody before the others have ended
meeting.PLANNING_SECONDS = 0.2
try:
    Meeting(group.world, store).word(arrival)
except meeting.LostRank as error:
    print(error)
"""
    first, second = over_ranks(code, 2, tmp_path)
    assert second.splitlines()[:2] == ["[0, 1]", "[100, 101]"]
    for output in (first, second):
        says(output, "rank 0", "not planned")
