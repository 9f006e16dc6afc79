"""A live server as a child process, started and stopped as a user would; its log is shown when it fails."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from preba.errors import ServerError
from preba.scenario.dump import scenario_yaml
from preba.scenario.resolve import ResolvedScenario

__all__ = ["served"]

COMMAND = "from preba.cli.main import run; run()"
STOP_S = 30.0


@contextlib.contextmanager
def served(resolved: ResolvedScenario, options: Sequence[str] = ()) -> Iterator[str]:
    """Runs ``preba serve`` on free loopback ports until the end of the block.

    Parameters
    ----------
    resolved : ResolvedScenario
    options : sequence of str
        More options of ``preba serve``.

    Yields
    ------
    str
        Address of its gRPC service.

    Raises
    ------
    ServerError
        It does not get ready; the message has what it printed.
    """
    patience_s = resolved.scenario.live.ready_timeout_s + 30.0
    with tempfile.TemporaryDirectory(prefix="preba-served-") as name:
        folder = Path(name)
        scenario, ports, log = folder / "scenario.yaml", folder / "ports", folder / "log"
        scenario.write_text(scenario_yaml(resolved.scenario), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name != "PREBA_TOKEN"}
        command = [sys.executable, "-c", COMMAND, "serve", str(scenario), "--grpc-port", "0", "--http-port", "0"]
        with log.open("w", encoding="utf-8") as sink:
            process = subprocess.Popen(  # noqa: S603 - this very program
                [*command, "--ports-file", str(ports), *options], stdout=sink, stderr=subprocess.STDOUT, env=environment
            )
        try:
            until = time.monotonic() + patience_s
            while not ports.exists():
                if process.poll() is not None or time.monotonic() > until:
                    said = log.read_text(encoding="utf-8", errors="replace").strip() or "nothing"
                    raise ServerError(f"preba serve did not get ready; it said: {said[-2000:]}")
                time.sleep(0.02)
            yield f"127.0.0.1:{ports.read_text(encoding='utf-8').split()[0]}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
