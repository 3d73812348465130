"""Which columns a person sees first, for each kind of object of ``types.proto``."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from vmrctl.output import Column, Shape, View
from vmrctl.values import shown_bytes, shown_duration
from vmreplica.v1 import types_pb2 as types
from vmreplica.wire.json_shapes import shape


def view_of(message: type[Message], *columns: Column) -> View:
    """A view of one message kind; ``wide`` and ``csv`` have all names of its JSON shape."""
    return View(message.DESCRIPTOR.name, columns, tuple(shape(message())))


def _seconds(time: Any) -> str:
    """RFC 3339 without its fraction: for people."""
    head, _, _ = str(time).partition(".")
    return f"{head}Z" if head != str(time) else head


def _initial(initial: Shape) -> str:
    done, total = initial.get("done_bytes") or 0, initial.get("total_bytes") or 0
    return f"{done * 100 // total} %" if total else "-"


def _cycle(cycle: Shape) -> str:
    wire = shown_bytes(cycle.get("wire_bytes") or 0)
    latency = shown_duration(cycle.get("latency_ms") or 0)
    return f"{cycle.get('kind') or '?'} {wire} in {latency}"


def _test(test: Shape) -> str:
    return str(test.get("domain_name")) if test.get("running") else "-"


def _placement(placement: Shape) -> str:
    return "; ".join([str(placement.get("node") or "-"), *(placement.get("reasons") or [])])


def _storage(storage: list[Shape]) -> str:
    return ", ".join(f"{s.get('path')} {shown_bytes(s.get('free_bytes') or 0)}" for s in storage)


REPLICATION = view_of(
    types.Replication,
    Column("VM", "vm_name"),
    Column("STATE", "state"),
    Column("HEALTH", "health"),
    Column("NODE", "primary_node"),
    Column("TO", "replica_access_point"),
    Column("EVERY", "frequency_ms", shown_duration, right=True),
    Column("SEQ", "acked_seq", right=True),
    Column("ACKED", "acked_time", _seconds),
    Column("INITIAL", "initial", _initial, right=True),
    Column("LAST CYCLE", "last_cycle", _cycle),
)
REPLICA = view_of(
    types.Replica,
    Column("VM", "vm_name"),
    Column("STATE", "state"),
    Column("HEALTH", "health"),
    Column("OWNER", "owner"),
    Column("EPOCH", "epoch", right=True),
    Column("FROM", "primary_access_point"),
    Column("SEQ", "acked_seq", right=True),
    Column("ACKED", "acked_time", _seconds),
    Column("POINTS", "point_count", right=True),
    Column("SIZE", "size_bytes", shown_bytes, right=True),
    Column("TEST", "test_failover", _test),
)
POINT = view_of(
    types.Point,
    Column("SEQ", "seq", right=True),
    Column("TIME", "time", _seconds),
    Column("KIND", "kind"),
    Column("STATE", "state"),
    Column("SIZE", "size_bytes", shown_bytes, right=True),
    Column("IN USE", "in_use"),
)
NODE = view_of(
    types.Node,
    Column("NODE", "name"),
    Column("STATE", "state"),
    Column("ADDRESS", "address"),
    Column("REPLICAS", "replicas", right=True),
    Column("FREE", "storage", _storage),
    Column("VERSION", "version"),
)
BROKER = view_of(
    types.Broker,
    Column("BROKER", "name"),
    Column("STATE", "state"),
    Column("LEADER", "leader"),
    Column("ADDRESS", "address"),
    Column("ACCESS POINT", "client_access_point"),
    Column("VERSION", "version"),
)
OPERATION = view_of(
    types.Operation,
    Column("OPERATION", "operation_id"),
    Column("VERB", "verb"),
    Column("TARGET", "target"),
    Column("STATE", "state"),
    Column("STEP", "step"),
    Column("DONE", "done", right=True),
    Column("TOTAL", "total", right=True),
    Column("UNIT", "unit"),
    Column("STARTED", "started", _seconds),
)
TEST_FAILOVER = view_of(
    types.TestFailover,
    Column("VM", "vm_name"),
    Column("RUNNING", "running"),
    Column("TEST VM", "domain_name"),
    Column("NODE", "node"),
    Column("SEQ", "seq", right=True),
    Column("LAST", "last_time", _seconds),
    Column("RESULT", "last_result"),
)
