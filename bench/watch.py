"""A process inside a host that asks the public API in a loop and writes one line an answer.

Usage: python -m bench.watch KIND CONTEXTS-FILE CONTEXT SUBJECT PERIOD_MS --out FILE

``locate``       Locate of replica SUBJECT at the context's address, until standard input ends
``replication``  GetReplication of VM SUBJECT, until standard input ends
``start``        StartReplication of VM SUBJECT, then GetReplication until cycle 1 is acknowledged;
                 one line: {"asked", "begin", "acked", "changed_bytes", "wire_bytes", "node"}
``tcp``          connect to SUBJECT (HOST:PORT) and read one line, until standard input ends

Times are wall clock seconds of this machine, on which all hosts of a lab are.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import vmreplica  # noqa: F401 - sets what gRPC reads when it is imported

import grpc  # isort: skip
import yaml

from vmreplica.v1 import location_pb2, replication_pb2

DEADLINE_S = 0.3
_QUICK_RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.use_local_subchannel_pool", 1),
]

Answer = dict[str, Any]


class Client:
    """One context of the contexts file; connects anew after each failure."""

    def __init__(self, contexts: Path, context: str) -> None:
        self._settings = yaml.safe_load(contexts.read_text("utf-8"))["contexts"][context]
        self.channel = self._connect()

    def renew(self) -> None:
        """A dead leader's connection would keep the next one waiting."""
        self.channel.close()
        self.channel = self._connect()

    def _connect(self) -> grpc.Channel:
        read = {key: Path(self._settings[key]).read_bytes() for key in ("ca", "key", "certificate")}
        credentials = grpc.ssl_channel_credentials(read["ca"], read["key"], read["certificate"])
        return grpc.secure_channel(self._settings["endpoint"], credentials, _QUICK_RECONNECT)

    def _ask(self, method: str, request: Any, response: Any, timeout_s: float = DEADLINE_S) -> Any:
        call = self.channel.unary_unary(
            f"/vmreplica.v1.{method}", type(request).SerializeToString, response.FromString
        )
        return call(request, timeout=timeout_s)

    def locate(self, replica_id: str) -> Answer:
        """Where the owner is."""
        request = location_pb2.LocateRequest(replica_id=replica_id)
        answer = self._ask("LocationService/Locate", request, location_pb2.LocateResponse)
        return {"node": answer.node, "epoch": answer.epoch}

    def replication(self, vm: str, timeout_s: float = DEADLINE_S) -> Answer:
        """How a VM's replication stands."""
        request = replication_pb2.GetReplicationRequest(vm=vm)
        response = replication_pb2.GetReplicationResponse
        method = "ReplicationService/GetReplication"
        seen = self._ask(method, request, response, timeout_s).replication
        last = seen.last_cycle
        return {
            "node": seen.replica_node,
            "epoch": seen.epoch,
            "acked_seq": seen.acked_seq,
            "seq": last.seq,
            "begin": last.begin_time.ToMilliseconds() / 1000,
            "acked": last.acked_time.ToMilliseconds() / 1000,
            "changed_bytes": last.changed_bytes,
            "wire_bytes": last.wire_bytes,
        }

    def start(self, vm: str) -> Answer:
        """Begin the initial replication and see it through."""
        grpc.channel_ready_future(self.channel).result(timeout=10)
        asked = time.time()
        request = replication_pb2.StartReplicationRequest(vm=vm)
        response = replication_pb2.StartReplicationResponse
        self._ask("ReplicationService/StartReplication", request, response, 30)
        while True:
            seen = self.replication(vm, 10)
            if seen["acked_seq"] >= 1 and seen["acked"] > asked:
                return {"asked": asked, **seen}
            time.sleep(0.05)


def _tcp(address: str) -> Answer:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=0.1) as connection:
        connection.settimeout(0.1)
        line = connection.recv(64)
    if not line:
        raise OSError("closed without an answer")
    return {"node": line.decode().strip()}


def _loop(
    sink: TextIO, period_s: float, ask: Callable[[], Answer], renew: Callable[[], None]
) -> None:
    while not select.select([sys.stdin], [], [], 0)[0]:
        asked = time.time()
        try:
            answer = {"ok": True, **ask()}
        except grpc.RpcError as error:
            answer = {"ok": False, "why": str(error.code())}
            renew()
        except OSError as error:
            answer = {"ok": False, "why": str(error)}
        answered = time.time()
        sink.write(json.dumps({"asked": asked, "answered": answered, **answer}) + "\n")
        sink.flush()
        time.sleep(max(0.0, period_s - (answered - asked)))


def main() -> int:
    """See above."""
    kind, contexts, context, subject, period_ms, _, out = sys.argv[1:8]
    period_s = int(period_ms) / 1000
    with Path(out).open("a", encoding="utf-8") as sink:
        if kind == "tcp":
            _loop(sink, period_s, lambda: _tcp(subject), lambda: None)
            return 0
        client = Client(Path(contexts), context)
        if kind == "start":
            sink.write(json.dumps(client.start(subject)) + "\n")
        else:
            ask = client.locate if kind == "locate" else client.replication
            _loop(sink, period_s, lambda: ask(subject), client.renew)
    return 0


if __name__ == "__main__":
    sys.exit(main())
