"""The suite ``compression``: its cases are those that its modules have, and their commands are read."""

from apps.recsys.bench import compression
from apps.recsys.bench.quality import compressed, structured
from apps.recsys.cli import parser


def test_every_case_can_be_run() -> None:
    cases = compression.suite().cases
    assert len({case.name for case in cases}) == len(cases) > 20
    modules = {each.__name__: each for each in (compressed, structured)}
    for case in cases:
        _, _, module, _, name, *words = case.argv
        sources = compressed.CASES[name]
        for source in sources:
            parser().parse_args(["train", "data", "-o", "model", *source.options, "--factors", str(source.factors)])
        if modules[module] is structured:
            assert words[0] in structured.FORMS and int(words[1]) > 0 and len(sources) == 1
        else:
            parser().parse_args(["compress", "model", "-o", "out", "--target-bytes", *words])
