"""Connections have bounds: too many get 503, half a request is cut off in time, and a response waits for nothing."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from apps.recsys.planning.service.limits import BODY_BYTES, HEADER_BYTES, PIECE_BYTES
from apps.recsys.serving import connections
from apps.recsys.serving.connections import BoundedProtocol
from tests.machine import patience

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\n"


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answer ``hi`` to everything."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"hi"})


def serve(asked: Callable[[Callable[[], Coroutine[Any, Any, Client]]], Coroutine[Any, Any, None]]) -> None:
    """Call ``asked`` with a function that connects to a server."""

    async def main() -> None:
        config = uvicorn.Config(hello, log_level="critical", lifespan="off", ws="none", http=BoundedProtocol)
        config.load()
        state, loop = ServerState(), asyncio.get_running_loop()
        server = await loop.create_server(lambda: BoundedProtocol(config, state, {}), "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()

        async def connect() -> Client:
            return await asyncio.open_connection(host, port)

        async with server:
            await asyncio.wait_for(asked(connect), patience(30))

    asyncio.run(main())


async def status(client: Client) -> int:
    """Ask and return the status, 0 if the connection is closed."""
    reader, writer = client
    writer.write(GET)
    line = await reader.readline()
    if not line:
        return 0
    while (await reader.readline()).strip():
        pass
    await reader.readexactly(2)
    return int(line.split()[1])


def test_more_connections_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BoundedProtocol, "most", 3)

    async def asked(connect: Callable[[], Coroutine[Any, Any, Client]]) -> None:
        some = [await connect() for _ in range(3)]
        assert [await status(client) for client in some] == [200] * 3
        reader, _ = await connect()
        assert b" 503 " in await reader.readline()
        assert (await reader.read()).endswith(b'{"detail":"too many connections"}')
        assert await status(some[0]) == 200
        some[1][1].close()
        await asyncio.sleep(0.1)
        assert await status(await connect()) == 200

    serve(asked)


@pytest.mark.parametrize("half", [b"", b"G", GET[:-2], b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nab"])
def test_half_a_request_is_cut_off(monkeypatch: pytest.MonkeyPatch, half: bytes) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.2)

    async def asked(connect: Callable[[], Coroutine[Any, Any, Client]]) -> None:
        reader, writer = await connect()
        writer.write(half)
        began = time.monotonic()
        try:
            rest = await reader.read()
        except ConnectionResetError:
            rest = b""
        assert time.monotonic() - began > 0.15 and (not rest or half.startswith(b"POST"))
        assert await status(await connect()) == 200

    serve(asked)


def test_a_connection_is_kept_between_whole_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.3)

    async def asked(connect: Callable[[], Coroutine[Any, Any, Client]]) -> None:
        client = await connect()
        for _ in range(3):
            assert await status(client) == 200
            await asyncio.sleep(0.2)

    serve(asked)


def test_a_response_in_two_parts_is_not_held_back() -> None:
    async def asked(connect: Callable[[], Coroutine[Any, Any, Client]]) -> None:
        client, times = await connect(), []
        for _ in range(20):
            began = time.monotonic()
            assert await status(client) == 200
            times.append(time.monotonic() - began)
        assert sorted(times)[5] < 0.03

    serve(asked)


@pytest.mark.parametrize(
    ("asked_for", "status_line"),
    [
        (b"\x16\x03\x01\x00P nonsense\r\n\r\n", b"400"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * (HEADER_BYTES + PIECE_BYTES), b"431"),
        (POST + b"Content-Length: 100000000\r\n\r\nab", b"413"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"%x\r\n" % (2 * BODY_BYTES) + b"b" * 2 * BODY_BYTES, b"413"),
    ],
    ids=["no HTTP", "a size that is no number", "an upgrade", "a long header", "a long body", "a long body in parts"],
)
def test_what_is_refused_closes_its_connection_only(asked_for: bytes, status_line: bytes) -> None:
    async def asked(connect: Callable[[], Coroutine[Any, Any, Client]]) -> None:
        reader, writer = await connect()
        writer.write(asked_for)
        with suppress(ConnectionError):  # what was not read resets the connection, at times before the answer is there
            assert status_line in await reader.readline()
        with suppress(ConnectionError):
            await reader.read()
        assert await status(await connect()) == 200

    serve(asked)


def test_more_requests_ahead_than_there_may_be() -> None:
    async def asked(connect: Callable[[], Coroutine[Any, Any, Client]]) -> None:
        reader, writer = await connect()
        writer.write(GET * 3)
        assert [await status((reader, writer)) for _ in range(3)] == [200] * 3  # each asks once more
        reader, writer = await connect()
        writer.write(GET * 500)
        with suppress(ConnectionError):
            assert (await reader.read()).count(b" 200 ") < 20
        assert await status(await connect()) == 200

    serve(asked)
