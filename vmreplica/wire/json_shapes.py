"""Messages as the JSON that people and scripts see (``vmrctl -o json``).

snake_case names of the proto; 64-bit integers as numbers; bytes as lower hex; times RFC 3339 UTC
with milliseconds; enums in CamelCase without prefix; absent = null. A few messages are shaped
otherwise: the tables below say how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableSequence
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from vmreplica.core.problems import REASONS, Problem, Reason
from vmreplica.wire.enums import spellings
from vmreplica.wire.times import milliseconds, rfc3339

Json = dict[str, Any]

_NULL_WHEN_EMPTY = frozenset(
    {
        "last_problem",
        "operation_id",
        "last_result",
        "node",
        "owner",
        "ticket",
        "domain_name",
        "placement_node",
        "acked_digest",
        "acked_cycle_id",
        "cycle_digest",
        "client_access_point",
    }
)
"""Text and bytes for which "" means that there is none."""


def shape(message: Message) -> Json:
    """Any message as JSON values; known types in the shape that interfaces promise."""
    reshape = _SHAPES.get(message.DESCRIPTOR.full_name)
    plain = _plain(message)
    return plain if reshape is None else reshape(plain)


def problem_shape(problem: Problem) -> Json:
    """A problem, as it stands under ``problem`` on stderr and in operations."""
    return {
        "reason": problem.reason.value,
        "message": problem.message,
        "field": problem.field or None,
        "value": problem.value or None,
        "remedy": problem.remedy or None,
        "retryable": problem.retryable,
        "grpc_code": problem.grpc_code,
    }


def list_shape(items: list[Json], next_page_token: str = "") -> Json:
    """A list's envelope."""
    return {"items": items, "next_page_token": next_page_token}


def _plain(message: Message) -> Json:
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if isinstance(value, MutableSequence):
        return [_value(field, item) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    if field.containing_oneof is not None and not message.HasField(field.name):
        return None
    if not value and field.name in _NULL_WHEN_EMPTY:
        return None
    return _value(field, value)


def _value(field: Any, value: Any) -> Any:
    match value:
        case Timestamp():
            return rfc3339(milliseconds(value, field.name))
        case Message():
            return shape(value)
        case bytes():
            return value.hex()
        case _ if field.enum_type is not None:
            return spellings(field.enum_type).get(value)
        case _:
            return value


def _replication(plain: Json) -> Json:
    policy = plain.pop("policy") or {}
    done, total = plain.pop("initial_done_bytes"), plain.pop("initial_total_bytes")
    for key in ("frequency_ms", "compression"):
        plain[key] = policy.get(key) or None
    plain["route"] = policy.get("route") or None
    plain["initial"] = {"done_bytes": done, "total_bytes": total}
    plain["policy"] = policy or None
    return plain


def _replica(plain: Json) -> Json:
    plain["placement"] = {
        "node": plain.pop("placement_node"),
        "reasons": plain.pop("placement_reasons"),
    }
    test = plain["test_failover"] or {}
    plain["test_failover"] = {
        key: test.get(key) for key in ("running", "domain_name", "last_time", "last_result")
    }
    plain["test_failover"]["running"] = bool(test.get("running"))
    plain["test_failover"]["node"] = test.get("node")
    return plain


def _point(plain: Json) -> Json:
    chains = plain.pop("chains")
    plain["chain"] = {chain["target"]: chain["files"] for chain in chains}
    plain["qemu_json"] = {
        chain["target"]: chain["qemu_json"] for chain in chains if chain["qemu_json"]
    }
    return plain


def _operation(plain: Json) -> Json:
    reason = plain.pop("problem_reason")
    message = plain.pop("problem_message")
    details: Mapping[str, str] = plain.pop("problem_details")
    plain["problem"] = None
    if reason:
        known = REASONS.get(Reason(reason)) if reason in Reason.__members__ else None
        retryable = details.get("retryable")
        plain["problem"] = {
            "reason": reason,
            "message": message,
            "field": details.get("field") or None,
            "value": details.get("value") or None,
            "remedy": details.get("remedy") or None,
            "retryable": bool(known and known.retryable)
            if retryable is None
            else retryable == "true",
            "grpc_code": known.grpc_code if known else None,
        }
    return plain


_SHAPES: dict[str, Callable[[Json], Json]] = {
    "vmreplica.v1.Replication": _replication,
    "vmreplica.v1.Replica": _replica,
    "vmreplica.v1.Point": _point,
    "vmreplica.v1.Operation": _operation,
}
