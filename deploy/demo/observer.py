"""A process of its own that watches through the public API alone and writes JSON lines.

Usage: observer.py replication|locate CONTEXT-FILE CONTEXT SUBJECT OUT PERIOD_MS

``replication``: GetReplication of VM SUBJECT at the primary. ``locate``: Locate of replica SUBJECT
at the client access point. One line an answer: {"asked": wall s, "answered": wall s, "ok": …}.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import yaml

from vmreplica.v1 import (
    location_pb2,
    location_pb2_grpc,
    replication_pb2,
    replication_pb2_grpc,
    types_pb2,
)

_DEADLINE_S = {"replication": 1.0, "locate": 0.25}


def main() -> int:
    """Poll until killed."""
    kind, file, context, subject, out, period_ms = sys.argv[1:7]
    settings = yaml.safe_load(Path(file).read_text("utf-8"))["contexts"][context]
    credentials = grpc.ssl_channel_credentials(
        Path(settings["ca"]).read_bytes(),
        Path(settings["key"]).read_bytes(),
        Path(settings["certificate"]).read_bytes(),
    )
    options = [
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    ask = {"replication": _replication, "locate": _locate}[kind]
    channel = grpc.secure_channel(settings["endpoint"], credentials, options)
    with Path(out).open("a", encoding="utf-8") as sink:
        while True:
            asked = time.time()
            try:
                answer = {"ok": True, **ask(channel, subject)}
            except grpc.RpcError as error:
                answer = {"ok": False, "code": error.code().name, "detail": error.details()}
                channel.close()  # a dead leader's connection would keep the next one waiting
                channel = grpc.secure_channel(settings["endpoint"], credentials, options)
            answered = time.time()
            sink.write(json.dumps({"asked": asked, "answered": answered, **answer}) + "\n")
            sink.flush()
            time.sleep(max(0.0, int(period_ms) / 1000 - (answered - asked)))


def _replication(channel: grpc.Channel, vm: str) -> dict[str, Any]:
    stub = replication_pb2_grpc.ReplicationServiceStub(channel)
    request = replication_pb2.GetReplicationRequest(vm=vm)
    seen = stub.GetReplication(request, timeout=_DEADLINE_S["replication"]).replication
    last = seen.last_cycle
    return {
        "state": types_pb2.ReplicationState.Name(seen.state),
        "replica_id": seen.replica_id,
        "node": seen.replica_node,
        "epoch": seen.epoch,
        "acked_seq": seen.acked_seq,
        "acked_time": seen.acked_time.ToMilliseconds() / 1000,
        "done_bytes": seen.initial_done_bytes,
        "total_bytes": seen.initial_total_bytes,
        "cycle": {
            "seq": last.seq,
            "kind": types_pb2.CycleKind.Name(last.kind),
            "begin": last.begin_time.ToMilliseconds() / 1000,
            "acked": last.acked_time.ToMilliseconds() / 1000,
            "changed_bytes": last.changed_bytes,
            "wire_bytes": last.wire_bytes,
            "latency_ms": last.latency_ms,
        },
    }


def _locate(channel: grpc.Channel, replica_id: str) -> dict[str, Any]:
    stub = location_pb2_grpc.LocationServiceStub(channel)
    answer = stub.Locate(
        location_pb2.LocateRequest(replica_id=replica_id), timeout=_DEADLINE_S["locate"]
    )
    return {"node": answer.node, "epoch": answer.epoch, "address": answer.address}


if __name__ == "__main__":
    sys.exit(main())
