"""Options of every gRPC channel and server of ours, with the reason for each."""

from __future__ import annotations

from typing import Any

MAX_MESSAGE_BYTES = 4 << 20
"""A frame's payload is at most 1 MiB, a close holds two states of at most 1 MiB each."""
MAX_METADATA_BYTES = 32 << 10
MAX_STREAMS_PER_CONNECTION = 1_024
MAX_CALLS = 8_192
LOOKAHEAD_BYTES = 4 << 20

Options = list[tuple[str, Any]]

_COMMON: Options = [
    # The bandwidth probe grows windows without limit: hundreds of MiB for one slow receiver.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", LOOKAHEAD_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]


def server_options() -> Options:
    """For grpc.aio.server."""
    return [
        *_COMMON,
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
        # Two daemons on one port must be an error, not a lottery.
        ("grpc.so_reuseport", 0),
        ("grpc.server_handshake_timeout_ms", 10_000),
    ]


def channel_options(server_name: str) -> Options:
    """For grpc.aio channels; ``server_name`` is what the certificate must show ("" on unix:)."""
    options: Options = [
        *_COMMON,
        # A dead host must not hold an attempt longer than this: its address may just have moved.
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # One pool of ours, not the process-wide one: a rebuilt channel is a new connection.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ]
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options
