"""Health and metrics over HTTP: ``/v2/health/live``, ``/v2/health/ready``, ``/metrics``. Inference is gRPC only."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable

from runtime.access import Access

LONGEST_REQUEST = 8192
PATIENCE_S = 5.0


class HttpApi:
    """Answers requests of one connection each.

    Parameters
    ----------
    ready : callable
        Whether requests can be served.
    metrics : callable
        Prometheus' text.
    access : Access
        The token is asked for metrics, not for health.
    """

    def __init__(self, ready: Callable[[], bool], metrics: Callable[[], Awaitable[bytes]], access: Access) -> None:
        self._ready = ready
        self._metrics = metrics
        self._access = access

    async def serve(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> asyncio.Server:
        """Listens."""
        return await asyncio.start_server(self._connected, host, port, limit=LONGEST_REQUEST, ssl=tls)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            ConnectionError, TimeoutError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        ):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            status, kind, body = await self._answer(head.decode("latin-1"))
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + body
            )
            await asyncio.wait_for(writer.drain(), PATIENCE_S)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            writer.close()
            await writer.wait_closed()

    async def _answer(self, head: str) -> tuple[str, str, bytes]:
        first, *rest = head.split("\r\n")
        method, _, target = first.partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        text = "text/plain; charset=utf-8"
        if method not in ("GET", "HEAD"):
            return "405 Method Not Allowed", text, b"only GET\n"
        if path == "/v2/health/live":
            return "200 OK", text, b""
        if path == "/v2/health/ready":
            return ("200 OK" if self._ready() else "503 Service Unavailable"), text, b""
        if path == "/metrics":
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
            if not self._access.allows(headers.get("authorization", "").encode("latin-1")):
                return "401 Unauthorized", text, b"a bearer token is needed\n"
            return "200 OK", "text/plain; version=0.0.4; charset=utf-8", await self._metrics()
        return "404 Not Found", text, b"there are /v2/health/live, /v2/health/ready and /metrics\n"
