"""Clients of a server, in another process than the server: keep-alive connections that ask without a pause."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """What clients saw."""

    per_second: float
    median_ms: float
    p99_ms: float
    failed: int
    """Answers other than 200, and broken connections."""
    server_errors: int
    """Answers of 500 and more."""


async def answer(reader: asyncio.StreamReader) -> int:
    """Read an answer; returns its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"transfer-encoding: chunked" in head:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
    return int(head.split()[1])


def request(path: str, body: bytes | None = None) -> bytes:
    """A request as it is sent."""
    method = "GET" if body is None else "POST"
    size = b"" if body is None else b"Content-Length: %d\r\n" % len(body)
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n".encode() + size + b"\r\n" + (body or b"")


async def asking(port: int, requests: Sequence[bytes], *, clients: int, seconds: float) -> Load:
    """Ask for some seconds, each client the requests in turn."""
    times: list[float] = []
    failed = errors = 0
    end = time.perf_counter() + seconds

    async def client(place: int) -> None:
        nonlocal failed, errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            began = time.perf_counter()
            writer.write(requests[place % len(requests)])
            place += clients
            try:
                status = await answer(reader)
            except (OSError, asyncio.IncompleteReadError):
                failed += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            times.append(time.perf_counter() - began)
            failed += status != 200
            errors += status >= 500
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client(place) for place in range(clients)))
    took = time.perf_counter() - began
    times.sort()
    return Load(
        len(times) / took,
        1e3 * statistics.median(times),
        1e3 * times[int(0.99 * len(times))],
        failed,
        errors,
    )


def main(port: int, clients: int, seconds: float, paths: Sequence[str]) -> None:
    """Print what clients saw."""
    load = asyncio.run(asking(port, [request(path) for path in paths], clients=clients, seconds=seconds))
    print(json.dumps({name: getattr(load, name) for name in Load.__slots__}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), json.loads(sys.stdin.read()))
