"""Unary gRPC calls as Envoy hands them on: HTTP/1.1 with trailers over a Unix socket, one call at a time a connection.

Envoy does what is the same for every server (HTTP/2, TLS, many clients); here a call is read, handed to its handler and
answered, all in the event loop. With gRPC's own server for Python, whose threads keep one another waiting, the front
end answered a quarter as many.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import struct
import urllib.parse
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httptools
from google.protobuf.message import DecodeError, Message

from preba.errors import ServerError
from runtime.access import Access
from runtime.errors import RequestError

__all__ = ["Call", "Method", "Service", "allow_files", "serve_calls"]

LOGGER = logging.getLogger("preba.serve")
FRAME_BYTES = 5
"""Whether the message is compressed, and its length, precede it."""
SPARE_FILES = 512
"""Open files for everything but calls."""
_ENCODINGS = {"gzip": 31, "deflate": 15}
"""zlib's window bits, by the name gRPC has for a compression."""
LONGEST_TEXT = 1000
"""Characters of an error's text: headers have room for little more."""
_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class Call:
    """A call under way. It is answered once, with a message or an error; whatever comes after that is ignored.

    Attributes
    ----------
    cancelled : callable
        Called if its client is gone before there is an answer.
    """

    def __init__(self, connection: _Connection) -> None:
        self.cancelled: Callable[[], object] = _nobody_cares
        self._connection: _Connection | None = connection

    def answer(self, message: Message) -> None:
        """Sends the result."""
        connection = self._leave()
        if connection is not None:
            content = message.SerializeToString()
            connection.send(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n"
                b"%x\r\n\0%b%b\r\n0\r\ngrpc-status: 0\r\n\r\n"
                % (len(content) + FRAME_BYTES, struct.pack(">I", len(content)), content)
            )

    def fail(self, error: RequestError) -> None:
        """Sends an error."""
        connection = self._leave()
        if connection is not None:
            connection.send(_failure(error))

    def _leave(self) -> _Connection | None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.call = None
            self.cancelled = _nobody_cares  # which knows the request, which knows the call: no garbage to search for
        return connection

    def lost(self) -> None:
        """The client is gone."""
        cancelled = self.cancelled
        if self._leave() is not None:
            cancelled()


@dataclass(frozen=True)
class Method:
    """What can be called.

    Attributes
    ----------
    read : callable
        Makes the request's message of its bytes.
    handle : callable
        Called with the message and the call, which it answers now or later; may raise ``RequestError``.
    """

    read: Callable[[bytes], Any]
    handle: Callable[[Any, Call], None]


@dataclass(frozen=True)
class Service:
    """All that connections have in common.

    Attributes
    ----------
    methods : mapping of str to Method
        By path.
    access : Access
    message_bytes_max : int
        Of a request.
    """

    methods: Mapping[str, Method]
    access: Access
    message_bytes_max: int


def allow_files(calls_max: int) -> None:
    """Lets this process, and Envoy after it, open the files that so many calls at once need.

    Envoy has one to the client and one to the front end for each call, if every client has a connection of its own.

    Raises
    ------
    ServerError
        So many files may not be open here.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * calls_max + SPARE_FILES
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise ServerError(
            f"scenario.live.requests_max: {calls_max} calls at once need {wanted} open files, and {hard} are allowed "
            "here (ulimit -Hn)"
        )
    if soft not in (resource.RLIM_INFINITY, hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve_calls(path: Path, service: Service, calls_max: int) -> asyncio.Server:
    """Listens on a Unix socket.

    Parameters
    ----------
    path : Path
    service : Service
    calls_max : int
        Calls at once, which is connections at once.
    """
    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(lambda: _Connection(service), path, backlog=calls_max)


class _Connection(asyncio.Protocol):
    """One connection of Envoy's; also what the HTTP parser calls."""

    def __init__(self, service: Service) -> None:
        self.call: Call | None = None
        self._service = service
        self._transport: asyncio.Transport | None = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._begin()

    def _begin(self) -> None:
        self._path = b""
        self._encoding = b"identity"
        self._authorization = b""
        self._kind = b""
        self._parts: list[bytes] = []
        self._length = 0
        self._method: Method | None = None

    # -- asyncio's protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Envoy connects."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """A piece of a request."""
        if self._parser is None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            LOGGER.warning("a call that is no HTTP/1.1: %s", error)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Envoy closes a connection whose client has gone away."""
        self._transport = None
        self._parser = None  # the two know each other
        if self.call is not None:
            self.call.lost()

    def send(self, content: bytes) -> None:
        """Sends a whole answer."""
        if self._transport is not None:
            self._transport.write(content)

    # -- what the parser calls ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begin()

    def on_url(self, url: bytes) -> None:
        """Its path, perhaps in pieces."""
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers; names are in lower case from HTTP/2."""
        if name == b"grpc-encoding":
            self._encoding = value
        elif name == b"authorization":
            self._authorization = value
        elif name == b"content-type":
            self._kind = value

    def on_headers_complete(self) -> None:
        """Whoever may not call, or calls what is not there, is told before anything is read."""
        path = self._path.decode("latin-1")
        method = self._method = self._service.methods.get(path)
        if self._parser.get_method() != b"POST" or not self._kind.startswith(b"application/grpc"):
            self._refuse(RequestError("INVALID_ARGUMENT", "this is a gRPC service: POST application/grpc"))
        elif not self._service.access.allows(self._authorization):
            self._refuse(RequestError("UNAUTHENTICATED", "a bearer token is needed"))
        elif method is None:
            self._refuse(RequestError("UNIMPLEMENTED", f"there is no {path}"))

    def _refuse(self, error: RequestError) -> None:
        """Answers before the end of the request; what comes of it is ignored, and Envoy ends the connection."""
        self.call = Call(self)
        self.call.fail(error)
        self._method = None
        self._parts.clear()

    def on_body(self, body: bytes) -> None:
        """A piece of its frame."""
        if self._method is None:
            return
        self._length += len(body)
        limit = self._service.message_bytes_max
        if self._length <= limit + FRAME_BYTES:
            self._parts.append(body)
        else:
            self._refuse(_too_large(limit))

    def on_message_complete(self) -> None:
        """All of it is there."""
        method = self._method
        if method is None:
            return
        call = self.call = Call(self)
        try:
            frame = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            content = _message(frame, self._encoding, self._service.message_bytes_max)
            self._parts.clear()
            try:
                message = method.read(content)
            except DecodeError:
                raise RequestError("INTERNAL", "the request is no message of its kind") from None
            method.handle(message, call)
        except RequestError as error:
            call.fail(error)
        except Exception:  # one call's mistake must not end the connection, nor be silent
            LOGGER.exception("%s failed", self._path.decode("latin-1"))
            call.fail(RequestError("INTERNAL", "the server made a mistake; its log says which"))


def _message(frame: bytes, encoding: bytes, limit: int) -> bytes:
    """The bytes of the one message in a frame."""
    if len(frame) < FRAME_BYTES:
        raise RequestError("INTERNAL", "the request has no message")
    compressed, length = struct.unpack_from(">BI", frame)
    if length != len(frame) - FRAME_BYTES:
        raise RequestError(
            "INTERNAL", f"the request is not one whole message: {length} bytes said, {len(frame) - FRAME_BYTES} sent"
        )
    content = frame[FRAME_BYTES:]
    if not compressed:
        return content
    name = encoding.decode("latin-1")
    if name not in _ENCODINGS:
        raise RequestError("UNIMPLEMENTED", f"grpc-encoding {name!r}: there are {', '.join(_ENCODINGS)} and identity")
    packed = zlib.decompressobj(_ENCODINGS[name])
    try:
        content = packed.decompress(content, limit + 1)
    except zlib.error as error:
        raise RequestError("INTERNAL", f"the request does not decompress: {error}") from None
    if len(content) > limit:
        raise _too_large(limit)
    if not packed.eof or packed.unused_data:
        raise RequestError("INTERNAL", "the request is not one whole compressed message")
    return content


def _too_large(limit: int) -> RequestError:
    return RequestError("RESOURCE_EXHAUSTED", f"the request is larger than {limit} bytes (live.payload_max_mib)")


def _failure(error: RequestError) -> bytes:
    """An answer that is only an error."""
    status = grpc.StatusCode[error.code].value[0]
    text = str(error)
    said = urllib.parse.quote(text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}...", safe=_PRINTABLE)
    return (
        "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n"
        f"grpc-accept-encoding: identity,{','.join(_ENCODINGS)}\r\n"
        f"grpc-status: {status}\r\ngrpc-message: {said}\r\n\r\n"
    ).encode("latin-1")


def _nobody_cares() -> None:
    pass
