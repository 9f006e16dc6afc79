"""Calls as Envoy hands them on: what is answered to whole, broken, packed, huge and forsaken ones."""

from __future__ import annotations

import asyncio
import gzip
import struct
import urllib.parse
import zlib
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tritonclient.grpc import service_pb2 as pb

from preba.errors import ServerError
from runtime.access import Access
from runtime.calls import Call, Method, Service, allow_files, serve_calls
from runtime.errors import RequestError

LIMIT = 10_000
ECHO = "/test/Echo"
T = TypeVar("T")


class Kept:
    """Handlers of a test, and what they saw."""

    def __init__(self) -> None:
        self.waiting: list[Call] = []
        self.cancelled = 0

    def echo(self, request: Any, call: Call) -> None:
        """Says what was said."""
        call.answer(pb.ServerMetadataResponse(name=request.name))

    def keep(self, _: Any, call: Call) -> None:
        """Answers later, if ever."""
        call.cancelled = self._gone
        self.waiting.append(call)

    def _gone(self) -> None:
        self.cancelled += 1

    def refuse(self, _: Any, __: Call) -> None:
        """Says no, in words that no header may hold as they are."""
        raise RequestError("NOT_FOUND", "no 100 % \n größer")

    def fall(self, _: Any, __: Call) -> None:
        """Has a bug."""
        raise ZeroDivisionError

    def service(self, token: str | None = None) -> Service:
        """All of them."""
        read = pb.ModelReadyRequest.FromString
        methods = {"Echo": self.echo, "Keep": self.keep, "Refuse": self.refuse, "Fall": self.fall}
        return Service(
            {f"/test/{name}": Method(read, handle) for name, handle in methods.items()}, Access(token), LIMIT
        )


class Client:
    """One connection, written to by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer

    async def call(self, path: str, frame: bytes, *headers: str) -> tuple[int, str, bytes]:
        """Status, message and answer of one call."""
        self.send(path, frame, *headers)
        return await self.answer()

    def send(self, path: str, frame: bytes, *headers: str) -> None:
        """Sends a call in two pieces."""
        kind = "" if any(one.startswith("content-type") for one in headers) else "content-type: application/grpc\r\n"
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{kind}" + "".join(f"{one}\r\n" for one in headers)
        self.writer.write(f"{head}content-length: {len(frame)}\r\n\r\n".encode() + frame[:3])
        self.writer.write(frame[3:])

    async def answer(self) -> tuple[int, str, bytes]:
        """Reads one answer, whose status is in its head or in its trailers."""
        head = _fields(await self._reader.readuntil(b"\r\n\r\n"))
        body = b""
        if head.get("transfer-encoding") == "chunked":
            size = int(await self._reader.readuntil(b"\r\n"), 16)
            body = (await self._reader.readexactly(size + 2))[:-2]
            assert await self._reader.readexactly(3) == b"0\r\n"
            head |= _fields(await self._reader.readuntil(b"\r\n\r\n"))
            assert struct.unpack_from(">BI", body) == (0, size - 5)
        return int(head["grpc-status"]), urllib.parse.unquote(head.get("grpc-message", "")), body[5:]


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode().split("\r\n")
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


def framed(content: bytes, *, packed: bool = False) -> bytes:
    """A message as gRPC frames it."""
    return struct.pack(">BI", packed, len(content)) + content


def asking(name: str) -> bytes:
    """A request's bytes."""
    return bytes(pb.ModelReadyRequest(name=name).SerializeToString())


def served(tmp_path: Path, service: Service, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """Runs ``work`` with a connection to a service."""

    async def run() -> T:
        server = await serve_calls(tmp_path / "socket", service, 8)
        reader, writer = await asyncio.open_unix_connection(tmp_path / "socket")
        try:
            return await asyncio.wait_for(work(Client(reader, writer)), 10)
        finally:
            writer.close()
            server.close()

    return asyncio.run(run())


def name_of(answer: bytes) -> str:
    """What an echo says."""
    return str(pb.ServerMetadataResponse.FromString(answer).name)


def test_calls_on_one_connection_are_answered_one_after_another(tmp_path: Path) -> None:
    """Whole, packed, unknown, broken, refused and failing ones: each has its status, and the next is served."""

    async def work(client: Client) -> list[tuple[int, str, bytes]]:
        small = asking("a")
        calls: list[tuple[Any, ...]] = [
            (ECHO, framed(small)),
            (ECHO, framed(gzip.compress(small), packed=True), "grpc-encoding: gzip"),
            (ECHO, framed(zlib.compress(small), packed=True), "grpc-encoding: deflate"),
            (ECHO, framed(small, packed=True), "grpc-encoding: snappy"),
            (ECHO, framed(b"no gzip", packed=True), "grpc-encoding: gzip"),
            (ECHO, framed(gzip.compress(bytes(10 * LIMIT)), packed=True), "grpc-encoding: gzip"),
            (ECHO, framed(gzip.compress(small)[:-9], packed=True), "grpc-encoding: gzip"),
            ("/test/Nothing", framed(small)),
            (ECHO, framed(small)[:-1]),
            (ECHO, b""),
            (ECHO, framed(b"\xff\xff\xff")),
            ("/test/Refuse", framed(small)),
            ("/test/Fall", framed(small)),
            (ECHO, framed(asking("last"))),
        ]
        return [await client.call(*one) for one in calls]

    answers = served(tmp_path, Kept().service(), work)
    assert [status for status, _, _ in answers] == [0, 0, 0, 12, 13, 8, 13, 12, 13, 13, 13, 5, 13, 0]
    assert [name_of(answers[place][2]) for place in (0, 1, 2, -1)] == ["a", "a", "a", "last"]
    assert answers[11][1] == "no 100 % \n größer"
    assert "gzip, deflate and identity" in answers[3][1]
    assert "live.payload_max_mib" in answers[5][1]


def test_a_token_is_compared_whole(tmp_path: Path) -> None:
    """Only the bearer of the token is heard; that a method exists is said to anybody's face."""

    async def work(client: Client) -> list[int]:
        frame = framed(asking("a"))
        headers = ("authorization: Bearer sesame", "authorization: Bearer sesam", "authorization: sesame", "x: y")
        return [(await client.call(ECHO, frame, one))[0] for one in headers]

    assert served(tmp_path, Kept().service("sesame"), work) == [0, 16, 16, 16]


def test_a_call_that_is_too_large_is_refused_before_its_end(tmp_path: Path) -> None:
    """A message of a gigabyte is not waited for."""

    async def work(client: Client) -> tuple[int, str, bytes]:
        head = f"POST {ECHO} HTTP/1.1\r\ncontent-type: application/grpc\r\ncontent-length: {1 << 30}\r\n\r\n"
        client.writer.write(head.encode() + bytes(LIMIT + 6))
        return await client.answer()

    status, said, _ = served(tmp_path, Kept().service(), work)
    assert status == 8
    assert str(LIMIT) in said


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (f"POST {ECHO} HTTP/1.1\r\ncontent-type: application/grpc\r\n", 16),
        ("POST /test/Stream HTTP/1.1\r\ncontent-type: application/grpc\r\nauthorization: Bearer sesame\r\n", 12),
        (f"POST {ECHO} HTTP/1.1\r\ncontent-type: text/plain\r\nauthorization: Bearer sesame\r\n", 3),
        (f"GET {ECHO} HTTP/1.1\r\ncontent-type: application/grpc\r\nauthorization: Bearer sesame\r\n", 3),
    ],
)
def test_who_may_not_call_is_told_before_the_message_is_there(tmp_path: Path, head: str, status: int) -> None:
    """No token, no such method, no gRPC: nobody waits for, or keeps, what follows."""

    async def work(client: Client) -> int:
        client.writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        return (await client.answer())[0]

    assert served(tmp_path, Kept().service("sesame"), work) == status


def test_long_errors_are_cut(tmp_path: Path) -> None:
    """Headers hold some kilobytes, and a path may be longer."""

    async def work(client: Client) -> str:
        return (await client.call("/" + "x" * 20_000, framed(b"")))[1]

    assert 1000 < len(served(tmp_path, Kept().service(), work)) < 1100


def test_the_largest_call_is_served(tmp_path: Path) -> None:
    """The limit itself is allowed."""
    name = "x" * (LIMIT - 3)
    assert len(asking(name)) == LIMIT

    async def work(client: Client) -> bytes:
        return (await client.call(ECHO, framed(asking(name))))[2]

    assert name_of(served(tmp_path, Kept().service(), work)) == name


def test_a_client_that_goes_away_is_noticed_and_not_answered(tmp_path: Path) -> None:
    """Its call is cancelled once; an answer that comes too late hurts nobody, nor does a second one."""
    kept = Kept()

    async def work(client: Client) -> tuple[int, int]:
        client.send("/test/Keep", framed(asking("a")))
        while not kept.waiting:
            await asyncio.sleep(0.01)
        kept.waiting[0].answer(pb.ServerMetadataResponse(name="first"))
        kept.waiting[0].fail(RequestError("INTERNAL", "second"))
        status, _, answer = await client.answer()
        assert name_of(answer) == "first"
        client.send("/test/Keep", framed(asking("b")))
        while len(kept.waiting) < 2:
            await asyncio.sleep(0.01)
        client.writer.close()
        while not kept.cancelled:
            await asyncio.sleep(0.01)
        kept.waiting[1].answer(pb.ServerMetadataResponse(name="late"))
        return status, kept.cancelled

    assert served(tmp_path, kept.service(), work) == (0, 1)


def test_what_is_no_http_is_hung_up_on(tmp_path: Path) -> None:
    """Nobody but Envoy should be there."""

    async def work(client: Client) -> None:
        client.writer.write(b"\x16\x03\x01 hello\r\n\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.answer()

    served(tmp_path, Kept().service(), work)


def test_more_calls_than_open_files_are_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anybody is served, with the field and the limit."""
    monkeypatch.setattr("runtime.calls.resource.getrlimit", lambda _: (1024, 4096))
    with pytest.raises(ServerError, match=r"live\.requests_max: 4000 calls .* 8512 open files, and 4096"):
        allow_files(4000)
