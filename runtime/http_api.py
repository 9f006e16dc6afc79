"""Health and metrics over HTTP: ``/v2/health/live``, ``/v2/health/ready``, ``/metrics``. Inference is gRPC only."""

from __future__ import annotations

import asyncio
import contextlib

from runtime.front_end import FrontEnd
from runtime.kserve import Access
from runtime.metrics import render

LONGEST_REQUEST = 8192
PATIENCE_S = 5.0


class HttpApi:
    """Answers requests of one connection each.

    Parameters
    ----------
    front_end : FrontEnd
    access : Access
        The token is asked for metrics, not for health.
    """

    def __init__(self, front_end: FrontEnd, access: Access) -> None:
        self._front_end = front_end
        self._access = access

    async def serve(self, host: str, port: int) -> asyncio.Server:
        """Listens."""
        return await asyncio.start_server(self._connected, host, port, limit=LONGEST_REQUEST)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            status, kind, body = self._answer(head.decode("latin-1"))
            writer.write(
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n".encode()
                + body
            )
            await asyncio.wait_for(writer.drain(), PATIENCE_S)
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    def _answer(self, head: str) -> tuple[str, str, bytes]:
        first, *rest = head.split("\r\n")
        method, _, target = first.partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        text = "text/plain; charset=utf-8"
        if method not in ("GET", "HEAD"):
            return "405 Method Not Allowed", text, b"only GET\n"
        if path == "/v2/health/live":
            return "200 OK", text, b""
        if path == "/v2/health/ready":
            return ("200 OK" if self._front_end.ready else "503 Service Unavailable"), text, b""
        if path == "/metrics":
            headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in rest)]
            if not self._access.allows(headers):
                return "401 Unauthorized", text, b"a bearer token is needed\n"
            return "200 OK", "text/plain; version=0.0.4; charset=utf-8", render(self._front_end)
        return "404 Not Found", text, b"there are /v2/health/live, /v2/health/ready and /metrics\n"
