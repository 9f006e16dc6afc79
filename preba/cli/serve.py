"""``preba serve``: the scenario on real parts, until it is asked to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from preba.scenario.load import errors_located, load_scenario
from preba.scenario.resolve import ResolvedScenario, resolve
from runtime.access import Access
from runtime.serve import Listen, LiveServer

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    scenario: Annotated[Path, typer.Argument(help="Scenario file.")],
    *,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Override a field, e.g. live.slices.kind=emulated."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need --token.")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="Port of the KServe v2 service; 0 = any free one.")] = 8001,
    http_port: Annotated[int, typer.Option(help="Port of /metrics and /v2/health; 0 = any free one.")] = 8000,
    decisions: Annotated[
        Path | None, typer.Option(help="Log every input and decision of the batchers to this file.")
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="PREBA_TOKEN", help="Ask every call for this bearer token.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="PEM certificate: listen with TLS.")] = None,
    key: Annotated[Path | None, typer.Option(help="PEM key of the certificate.")] = None,
    ports_file: Annotated[
        Path | None, typer.Option(help="Write the ports there once ready, as 'gRPC HTTP', for scripts.")
    ] = None,
) -> None:
    """Serve a scenario on real parts: preprocessing, preba's batchers and one Triton server per slice.

    Stop it with Ctrl-C or SIGTERM: requests inside are finished first.
    """
    if (certificate is None) != (key is None):
        raise typer.BadParameter("give both --certificate and --key, or neither")
    token = token or None  # an empty variable is no token
    if host not in LOOPBACK and token is None:
        raise typer.BadParameter(f"--host {host} is reached from outside: give a --token as well")
    with errors_located(scenario):
        resolved = resolve(load_scenario(scenario, overrides or []), folder=scenario.parent)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    listen = Listen(host, grpc_port, http_port, Access(token), certificate, key)
    asyncio.run(_serve(resolved, listen, decisions, ports_file))


async def _serve(resolved: ResolvedScenario, listen: Listen, decisions: Path | None, ports_file: Path | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    began = time.monotonic()
    starting = asyncio.ensure_future(LiveServer(resolved, listen, decisions=decisions).__aenter__())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return
    stopping.cancel()
    server = starting.result()
    gc.collect()
    gc.freeze()  # else all that was imported is searched every few thousand requests, for 50 ms
    try:
        scheme = "grpcs" if listen.certificate is not None else "grpc"
        typer.echo(
            f"ready after {time.monotonic() - began:.1f} s: {scheme}://{listen.host}:{server.grpc_port}, "
            f"http://{listen.host}:{server.http_port}/metrics ({len(server.slices)} slices, process {os.getpid()})"
        )
        if ports_file is not None:
            temporary = ports_file.with_suffix(".tmp")
            temporary.write_text(f"{server.grpc_port} {server.http_port}\n", encoding="utf-8")
            temporary.replace(ports_file)
        await stop.wait()
        typer.echo("stopping: nothing more is taken in", err=True)
        given_up = await server.drain()
        if given_up:
            typer.echo(f"{given_up} requests were still inside and got UNAVAILABLE", err=True)
    finally:
        await server.__aexit__(None, None, None)
