"""A bundle's references and expressions: what Python would say, or a refusal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.imaging.importers.monai_expressions import LONGEST, Configuration
from common.errors import BadInput

NUMBERS = st.integers(-99, 99).map(str) | st.sampled_from(["True", "0.5", "2.25"])
EXPRESSIONS = st.recursive(
    NUMBERS,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", "-", "*", "<", "==", "and", "or"]), inner).map(
            lambda parts: f"({' '.join(parts)})"
        )
        | st.tuples(inner, inner, inner).map(lambda parts: f"({parts[0]} if {parts[1]} else {parts[2]})")
    ),
    max_leaves=12,
)


@given(EXPRESSIONS)
def test_arithmetic_is_pythons(text: str) -> None:
    expected = eval(text, {"__builtins__": {}})
    found = Configuration({"value": f"${text}"})["value"]
    assert found == expected


def test_references_reach_into_what_they_name() -> None:
    content = {
        "a": {"b": [1, {"c": "@size"}]},
        "size": "$[2 * @a#b#0, 96]",
        "path": "$@root + '/models/' + ('x.pt' if @a::b::0 == 1 else 'y.pt')",
        "root": ".",
    }
    found = Configuration(content)
    assert found["size"] == [2, 96] and found.plain("@a#b#1") == {"c": [2, 96]} and found["path"] == "./models/x.pt"
    assert found.get("nothing", None) is None


@pytest.mark.parametrize(
    "text",
    [
        "$open('x')",
        "$().__class__",
        "$lambda: 1",
        "$[x for x in (1, 2) if x]",
        "$f'{1}'",
        "$9 ** 9 ** 9",
        "$'a' * 999999999",
        "$[1] * 3",
        "$1 / 0",
        "$1 +",
        "$" + "-" * LONGEST + "1",
        "$" + "(" * 400 + "1" + ")" * 400,
        "@none",
        "%file#key",
        "@self",
    ],
)
def test_all_else_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        Configuration({"value": text, "self": "@value" if text == "@self" else 1, "x": "@self"}).plain(
            "@value" if text != "@self" else "@circle"
        )
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


def test_references_that_double_do_not_run_away() -> None:
    content: dict[str, object] = {f"v{n}": f"$@v{n + 1} + @v{n + 1}" for n in range(30)}
    for leaf in (1, [1.5], "text"):
        with pytest.raises(BadInput, match=r"more than [\d,]+ (values|elements)"):
            Configuration(content | {"v30": leaf})["v0"]
