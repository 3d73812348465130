"""A bare grpc.aio server with mutual TLS that takes a Replicate stream and throws it away.

Usage: python -m bench.sink PORT CERTIFICATE KEY CA, until standard input ends.

The first message is answered at once; a short one ends the stream and is answered with the count of
bytes. Nothing is parsed: what is measured is the way here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import vmreplica  # noqa: F401 - sets what gRPC reads when it is imported

import grpc  # isort: skip

from vmreplica.adapters.grpc_options import server_options

END_BYTES = 1_000


async def _replicate(incoming: AsyncIterator[bytes], _context: Any) -> AsyncIterator[bytes]:
    total = 0
    async for message in incoming:
        if total == 0:
            yield b"\x12\x00"  # any message will do
        total += len(message)
        if total > END_BYTES and len(message) < END_BYTES:
            yield str(total).encode()
            return


async def _locate(request: bytes, _context: Any) -> bytes:
    return request


async def _serve(port: str, certificate: str, key: str, ca: str) -> None:
    server = grpc.aio.server(options=server_options())
    handlers = {
        "Replicate": grpc.stream_stream_rpc_method_handler(_replicate),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("vmreplica.v1.CycleService", handlers),)
    )
    unary = {"Locate": grpc.unary_unary_rpc_method_handler(_locate)}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("vmreplica.v1.LocationService", unary),)
    )
    pair = (Path(key).read_bytes(), Path(certificate).read_bytes())
    credentials = grpc.ssl_server_credentials([pair], Path(ca).read_bytes(), True)
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(_serve(*sys.argv[1:5]))
