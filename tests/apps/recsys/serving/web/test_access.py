"""Who may ask: names of this host, pages of this host, and who has the token."""

from pathlib import Path

import pytest

from apps.recsys.serving.web.access import Access, host_of, hosts_for, read_token
from common.errors import BadInput
from tests.messages import refused

TOKEN = b"0123456789abcdef"
NAMED = Access(None, hosts_for("127.0.0.1", ["Shop.example"]))


@pytest.mark.parametrize("host", [b"localhost", b"127.0.0.1:8000", b"[::1]:8000", b"LOCALHOST", b"shop.example:80"])
def test_names_of_this_host(host: bytes) -> None:
    assert NAMED.refusal([(b"host", host)], public=False) is None
    assert NAMED.refusal([(b"host", host), (b"origin", b"http://" + host)], public=False) is None


@pytest.mark.parametrize(
    "host", [b"evil.example", b"localhost.evil.example", b"127.0.0.1.evil.example:80", b"", b"[::2]"]
)
def test_names_of_others_that_lead_here(host: bytes) -> None:
    refusal = NAMED.refusal([(b"host", host)], public=True)
    assert refusal is not None and refusal[0] == 421
    assert Access().refusal([(b"host", host)], public=False) is None  # where it is open


@pytest.mark.parametrize("origin", [b"http://evil.example", b"null", b"https://evil.example:8000"])
def test_pages_of_others(origin: bytes) -> None:
    for access in (NAMED, Access(TOKEN)):
        refusal = access.refusal([(b"host", b"localhost:8000"), (b"origin", origin)], public=True)
        assert refusal is not None and refusal[0] == 403


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Bearer " + TOKEN, None),
        (b"bearer  " + TOKEN, None),
        (b"Bearer " + TOKEN[:-1], 401),
        (b"Bearer", 401),
        (b"Basic " + TOKEN, 401),
        (TOKEN, 401),
        (b"", 401),
    ],
)
def test_a_token(header: bytes, status: int | None) -> None:
    headers = [(b"host", b"x"), (b"authorization", header)]
    refusal = Access(TOKEN).refusal(headers, public=False)
    assert (refusal and refusal[0]) == status
    assert Access(TOKEN).refusal(headers[:1], public=True) is None


def test_tokens_are_read_without_white_space(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"  " + TOKEN + b"\n")
    assert read_token(path) == TOKEN
    for content in (b"", b"short\n", b"two lines of a token\nand another", b"\xff" * 20, b"a" * 1001):
        path.write_bytes(content)
        with refused(BadInput, "--token-file", str(path), "16"):
            read_token(path)
    with refused(BadInput, "--token-file", "none"):
        read_token(tmp_path / "none")


def test_hosts_of_headers() -> None:
    assert [host_of(text) for text in (b"[::1]", b"a.b:1", b"https://A.b", b"null")] == ["::1", "a.b", "a.b", "null"]
