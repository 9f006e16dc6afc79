"""What Envoy is told: how it listens (HTTP/2, TLS), and where calls go. Pure functions of plans.

In front of one Triton server per slice Envoy balances itself. Inference goes to all servers, everything else (metadata,
statistics) to the first, because clients that ask for statistics before and after expect the same server to answer. A
server that fails a health check, or a call, is left out; a call that failed is tried once more elsewhere.

In front of preba's own front end it turns gRPC into HTTP/1.1 with trailers over a Unix socket (``runtime/calls.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from preba.errors import UnsupportedError

INFER_PATH = "/inference.GRPCInferenceService/ModelInfer"
POLICIES: Mapping[str, Mapping[str, Any]] = {
    "round_robin": {"lb_policy": "ROUND_ROBIN"},
    "random": {"lb_policy": "RANDOM"},
    "power_of_two": {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 2}},
    "least_outstanding": {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"selection_method": "FULL_SCAN"}},
}
CONNECTIONS_MAX = 65536
REQUEST_S = 60
"""Within which a client must have sent a request."""
_EXTENSIONS = "type.googleapis.com/envoy.extensions"


@dataclass(frozen=True)
class Door:
    """How Envoy listens.

    Attributes
    ----------
    host : str
    port : int
    requests_max : int
        Calls under way at once; one more is refused with UNAVAILABLE.
    connections_max : int
        Of clients; one more is closed at once.
    certificate, key : Path or None
        PEM files; both or neither.
    """

    host: str
    port: int
    requests_max: int
    connections_max: int
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class Backend:
    """A Triton server behind Envoy, on the loopback interface."""

    grpc_port: int
    http_port: int


@dataclass(frozen=True)
class ToSlices:
    """Calls are spread over the slices' servers.

    Attributes
    ----------
    backends : sequence of Backend
    balancer : str
    token : str or None
        Bearer token to ask for.
    message_bytes_max : int
    retry : bool
        Try a call once more elsewhere whose server was lost.
    """

    backends: Sequence[Backend]
    balancer: str
    token: str | None = None
    message_bytes_max: int = 32 << 20
    retry: bool = True


@dataclass(frozen=True)
class ToSocket:
    """Calls go to one process that listens on a Unix socket."""

    path: Path


def envoy_config(door: Door, way: ToSlices | ToSocket, admin: Path) -> dict[str, Any]:
    """Envoy's configuration as JSON values.

    Parameters
    ----------
    door : Door
    way : ToSlices or ToSocket
    admin : Path
        Unix socket of its administration, which anybody who reaches it may use.

    Raises
    ------
    UnsupportedError
        Envoy has no such balancer.
    """
    if isinstance(way, ToSlices):
        filters, routes, clusters = _to_slices(door, way)
    else:
        filters, routes, clusters = _to_socket(door, way)
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_EXTENSIONS}.filters.http.router.v3.Router", "suppress_envoy_headers": True},
    }
    manager = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "kserve",
            "codec_type": "AUTO",
            "generate_request_id": False,
            "stream_idle_timeout": "0s",
            # Until a request is there as a whole; an answer may take longer.
            "request_timeout": f"{REQUEST_S}s",
            "request_headers_timeout": f"{REQUEST_S}s",
            "http2_protocol_options": {"max_concurrent_streams": CONNECTIONS_MAX},
            "http_filters": [*filters, router],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        },
    }
    chain: dict[str, Any] = {"filters": [manager]}
    if door.certificate is not None:
        chain["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{_EXTENSIONS}.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2"],
                    "tls_certificates": [
                        {
                            "certificate_chain": {"filename": str(door.certificate.resolve())},
                            "private_key": {"filename": str(door.key.resolve() if door.key else "")},
                        }
                    ],
                },
            },
        }
    listener = {
        "name": "kserve",
        "address": _address(door.host, door.port),
        # Two servers on one port would share its calls without a word.
        "enable_reuse_port": False,
        "filter_chains": [chain],
    }
    return {
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": f"{_EXTENSIONS}.resource_monitors.downstream_connections.v3."
                        "DownstreamConnectionsConfig",
                        "max_active_downstream_connections": door.connections_max,
                    },
                }
            ]
        },
        "admin": {"address": {"pipe": {"path": str(admin), "mode": 0o600}}},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


_Parts = tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]


def _to_socket(door: Door, way: ToSocket) -> _Parts:
    """Filters, routes and clusters in front of the front end."""
    route = {
        "match": {"prefix": "/"},
        # A client's deadline ends its call here as well, should the client itself be gone.
        "route": {"cluster": "front", "timeout": "0s", "max_stream_duration": {"grpc_timeout_header_max": "0s"}},
    }
    cluster = {
        "name": "front",
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": _protocol({"http_protocol_options": {"enable_trailers": True}}),
        "circuit_breakers": _limits(door.requests_max),
        "load_assignment": {
            "cluster_name": "front",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(way.path)}}}}]}],
        },
    }
    return [], [route], [cluster]


def _to_slices(door: Door, way: ToSlices) -> _Parts:
    """Filters, routes and clusters in front of the slices."""
    if way.balancer not in POLICIES:
        raise UnsupportedError(f"scenario.server.balancer: Envoy has no {way.balancer!r}; it has {', '.join(POLICIES)}")
    filters: list[dict[str, Any]] = []
    if way.token is not None:
        exact = {"header": {"name": "authorization", "string_match": {"exact": f"Bearer {way.token}"}}}
        filters.append(
            {
                "name": "envoy.filters.http.rbac",
                "typed_config": {
                    "@type": f"{_EXTENSIONS}.filters.http.rbac.v3.RBAC",
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
                "@type": f"{_EXTENSIONS}.filters.http.buffer.v3.Buffer",
                "max_request_bytes": way.message_bytes_max,
            },
        }
    )
    retry = {
        # Not "unavailable": Triton says so when a queue is full, and the load would double.
        "retry_on": "connect-failure,refused-stream,reset-before-request,reset,retriable-headers",
        # A server that is stopping says that the model has no versions (5), or that calls it has taken in are cancelled
        # (1), which a busy one was seen to say as well; a client that cancels is gone and gets no second try.
        "retriable_headers": [{"name": "grpc-status", "string_match": {"exact": status}} for status in ("1", "5")],
        "num_retries": 1,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": f"{_EXTENSIONS}.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
            }
        ],
        "host_selection_retry_max_attempts": 10,
    }
    routes: list[dict[str, Any]] = [
        {
            "match": {"path": INFER_PATH},
            "route": {"cluster": "slices", "timeout": "0s", **({"retry_policy": retry} if way.retry else {})},
        },
        {"match": {"prefix": "/"}, "route": {"cluster": "first", "timeout": "10s"}},
    ]
    clusters = [
        _cluster("slices", way.backends, POLICIES[way.balancer], door.requests_max),
        _cluster("first", way.backends[:1], POLICIES["round_robin"], door.requests_max),
    ]
    return filters, routes, clusters


def _address(host: str, port: int) -> dict[str, Any]:
    more = {"ipv4_compat": True} if host == "::" else {}
    return {"socket_address": {"address": host, "port_value": port, **more}}


def _protocol(options: dict[str, Any]) -> dict[str, Any]:
    """The protocol of a cluster's servers."""
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{_EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": options,
        }
    }


def _limits(requests_max: int) -> dict[str, Any]:
    """What a cluster's servers get at once, at most."""
    return {
        "thresholds": [
            {
                "max_connections": CONNECTIONS_MAX,
                "max_pending_requests": requests_max,
                "max_requests": requests_max,
                "max_retries": requests_max,
            }
        ]
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
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "0.5s",
        **policy,
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "typed_extension_protocol_options": _protocol({"http2_protocol_options": {}}),
        "circuit_breakers": _limits(requests_max),
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
