"""Sends the same Replicate stream over whatever way an address leads to, and times it."""

from __future__ import annotations

import time
from typing import Any

from vmreplica.adapters.grpc_channels import ChannelPool, write_raw
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.tls import TlsFiles
from vmreplica.v1 import cycle_pb2

REPLICATE = "/vmreplica.v1.CycleService/Replicate"
_CLUSTERS = 16


def frame(payload: bytes) -> bytes:
    """A whole frame as it travels: 16 clusters, 1 MiB."""
    clusters = cycle_pb2.ClusterFrame(
        indexes=range(_CLUSTERS),
        stored_bytes=[len(payload) // _CLUSTERS] * _CLUSTERS,
        digests=bytes(16 * _CLUSTERS),
        stored_digests=bytes(16 * _CLUSTERS),
        payload=payload,
    )
    return cycle_pb2.ReplicateRequest(clusters=clusters).SerializeToString()


async def stream(
    files: TlsFiles, address: str, replica_id: str, message: bytes, count: int
) -> float:
    """Seconds from the first frame to the answer to the end, over a connection of its own."""
    pool = ChannelPool(files, SystemClock())
    try:
        call: Any = pool.channel(address, "localhost").stream_stream(REPLICATE)(
            metadata=(("vmreplica-replica-id", replica_id),)
        )
        opening = cycle_pb2.ReplicateRequest(open=cycle_pb2.CycleOpen(replica_id=replica_id))
        await write_raw(call, opening.SerializeToString())
        await call.read()
        began = time.monotonic()
        for _ in range(count):
            await write_raw(call, message)
        end = cycle_pb2.ReplicateRequest(close=cycle_pb2.CycleClose()).SerializeToString()
        await write_raw(call, end)
        total = await call.read()
        took = time.monotonic() - began
        if not isinstance(total, bytes) or int(total) < count * len(message):
            raise RuntimeError(f"{address}: {total!r} is not the whole stream")
        call.cancel()
        return took
    finally:
        await pool.close()
