"""Messages are one printable line, whatever names are in them."""

import pytest

from common.errors import BadInput, UsageError
from common.terminal import escaped


@pytest.mark.parametrize("kind", [BadInput, UsageError])
def test_a_message_shows_control_characters_escaped(kind: type[Exception]) -> None:
    message = str(kind("a\x1b[31m\nb\udce9\u202e é: no"))
    assert message.isprintable() and message.encode("utf-8")
    assert message == "a\\x1b[31m\\nb\\udce9\\u202e é: no"


def test_a_plain_text_stays_as_it_is() -> None:
    assert escaped("scan 1.nii: größer") == "scan 1.nii: größer"
