"""A reader who follows what a command was asked opens few files."""

import json
import subprocess
import sys

import pytest

from tests import house, trip


@pytest.mark.parametrize("name", ["infer", "train"])
def test_the_way_of_a_request_is_short(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.trip", name], cwd=house.ROOT, capture_output=True, text=True, check=True
    )
    counted = json.loads(done.stdout.splitlines()[-1])
    assert counted["walk"][0] == "common/cli/main.py"
    assert counted["stays"] <= trip.MOST_STAYS and counted["files"] <= trip.MOST_FILES, counted["walk"]
