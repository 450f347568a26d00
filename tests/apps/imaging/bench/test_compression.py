"""The suite ``imaging-compression``: the commands of its cases are read, and later ones use what earlier ones make."""

from pathlib import Path

from apps.imaging.bench.compression import suite
from apps.imaging.cli import parser


def test_every_variant_is_a_command(tmp_path: Path) -> None:
    made = {suite.MODEL}
    variants = suite.variants(tmp_path)
    assert set(suite.TARGETS) <= set(variants)
    for name, (source, options) in variants.items():
        assert source in made
        parser().parse_args(list(map(str, ["compress", source, "-o", suite.WORK / name, *options])))
        made.add(suite.WORK / name)
    words = list(map(str, suite.tied_tuned(tmp_path)))
    assert words[:2] == ["-m", "apps.imaging"]
    parser().parse_args(words[2:])
