"""Values of the cluster store port as etcd's messages, and back: the only such tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aetcd import rpc

from vmreplica.ports.cluster_store import (
    Compare,
    CompareTarget,
    Delete,
    Get,
    KeyValue,
    Operation,
    Put,
    StoreRefused,
    TransactionResult,
    WatchEvent,
)

_OPERATORS = {
    "=": rpc.Compare.EQUAL,
    "!=": rpc.Compare.NOT_EQUAL,
    ">": rpc.Compare.GREATER,
    "<": rpc.Compare.LESS,
}
# target -> (etcd's enum, the field that holds the operand)
_TARGETS = {
    CompareTarget.CREATE: (rpc.Compare.CREATE, "create_revision"),
    CompareTarget.MOD: (rpc.Compare.MOD, "mod_revision"),
    CompareTarget.VERSION: (rpc.Compare.VERSION, "version"),
    CompareTarget.LEASE: (rpc.Compare.LEASE, "lease"),
    CompareTarget.VALUE: (rpc.Compare.VALUE, "value"),
}


def range_bounds(prefix: str, after_key: str = "") -> tuple[bytes, bytes]:
    """First key (inclusive) and end (exclusive) of all keys under a prefix, beyond a key."""
    first = prefix.encode() or b"\0"
    if after_key and after_key >= prefix:
        first = after_key.encode() + b"\0"
    return first, prefix_end(prefix.encode())


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all keys with this prefix; NUL = there is none (etcd's way)."""
    for index in range(len(prefix) - 1, -1, -1):
        if prefix[index] < 0xFF:
            return prefix[:index] + bytes([prefix[index] + 1])
    return b"\0"


def key_value(message: Any) -> KeyValue:
    """One key as etcd answered it."""
    return KeyValue(
        key=message.key.decode(),
        value=message.value.decode(),
        create_revision=message.create_revision,
        mod_revision=message.mod_revision,
        version=message.version,
        lease_id=message.lease,
    )


def watch_event(message: Any) -> WatchEvent:
    """One event of a watch."""
    return WatchEvent(key_value(message.kv), deleted=message.type == rpc.Event.DELETE)


def compare_message(compare: Compare) -> Any:
    """One guard. :raises StoreRefused: unknown operator or operand of the wrong kind."""
    if compare.operator not in _OPERATORS:
        raise StoreRefused(f"no such operator: {compare.operator!r}")
    target, field = _TARGETS[compare.target]
    is_text = isinstance(compare.operand, str)
    if is_text != (compare.target is CompareTarget.VALUE):
        raise StoreRefused(f"cannot compare {compare.target} with {compare.operand!r}")
    operand = compare.operand.encode() if isinstance(compare.operand, str) else compare.operand
    return rpc.Compare(
        result=_OPERATORS[compare.operator],
        target=target,
        key=compare.key.encode(),
        **{field: operand},
    )


def operation_message(operation: Operation) -> Any:
    """One operation of a transaction."""
    match operation:
        case Put(key=key, value=value, lease_id=lease_id):
            put = rpc.PutRequest(key=key.encode(), value=value.encode(), lease=lease_id)
            return rpc.RequestOp(request_put=put)
        case Delete(key=key):
            delete = rpc.DeleteRangeRequest(key=key.encode())
            return rpc.RequestOp(request_delete_range=delete)
        case Get(key=key):
            return rpc.RequestOp(request_range=rpc.RangeRequest(key=key.encode()))


def transaction_message(
    compares: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation]
) -> Any:
    """A whole transaction."""
    return rpc.TxnRequest(
        compare=[compare_message(c) for c in compares],
        success=[operation_message(o) for o in success],
        failure=[operation_message(o) for o in failure],
    )


def transaction_result(answer: Any) -> TransactionResult:
    """The answer to a transaction."""
    reads: list[KeyValue | None] = []
    for response in answer.responses:
        if response.WhichOneof("response") == "response_range":
            found = response.response_range.kvs
            reads.append(key_value(found[0]) if found else None)
    return TransactionResult(answer.succeeded, answer.header.revision, tuple(reads))
