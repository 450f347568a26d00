"""Text from data on a terminal or in a spreadsheet: control characters and formulas are shown, not obeyed."""

import re

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, breaks of lines, changes of direction, and bytes that are not UTF-8 (``surrogateescape``)."""


def escaped(text: str) -> str:
    r"""The text with each control character in the form of a Python literal.

    Examples
    --------
    >>> escaped("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def cell(text: str) -> str:
    """The text as a cell of a table: behind an apostrophe where a spreadsheet would compute it as a formula.

    Examples
    --------
    >>> cell("=1+2"), cell("liver")
    ("'=1+2", 'liver')
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
