"""Every name is in one part, the same everywhere, and options that are no part are refused."""

import argparse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.parts import Part
from tests.messages import says


@given(name=st.text(), of=st.integers(1, 40))
def test_a_name_is_in_one_part(name: str, of: int) -> None:
    assert sum(Part(number, of).holds(name) for number in range(1, of + 1)) == 1


def test_parts_are_the_same_on_every_machine() -> None:
    # the first eight bytes of ``printf NAME | sha256sum``, modulo 7, from a shell
    assert [next(n for n in range(1, 8) if Part(n, 7).holds(name)) for name in ("a", "b", "CASE_0001.nii.gz")] == [
        1 + int("ca978112ca1bbdca", 16) % 7,
        1 + int("3e23e8160039594a", 16) % 7,
        1 + int("e6fbc7acfc2178f1", 16) % 7,
    ]


def test_parts_are_about_equal() -> None:
    sizes = [sum(Part(number, 16).holds(str(user)) for user in range(3000)) for number in range(1, 17)]
    assert sum(sizes) == 3000 and min(sizes) > 140 and max(sizes) < 240


def test_names_of_parts_sort_by_number() -> None:
    names = [Part(number, 12).name for number in range(1, 13)]
    assert names == sorted(names) and names[1] == "part-02-of-12"
    assert Part(2, 12).folder(Path("out")) == Path("out/part-02-of-12")
    assert Part(1, 2).file(Path("a/lists.parquet")) == Path("a/lists.part-1-of-2.parquet")


@pytest.mark.parametrize("text", ["4/3", "0/3", "-1/3", "1", "1/", "/3", "a/b", "1/0", "1.0/2", "²/3", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        Part.parse(text)
    says(str(caught.value), "/")
