"""What the local store refuses before it touches a key, and when a guard holds."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from vmreplica.ports.cluster_store import (
    MAX_OPERATIONS_PER_TRANSACTION,
    Compare,
    CompareTarget,
    Delete,
    KeyValue,
    Operation,
    Put,
    StoreRefused,
)

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
_NUMBERS: dict[CompareTarget, Callable[[KeyValue], int]] = {
    CompareTarget.CREATE: lambda kv: kv.create_revision,
    CompareTarget.MOD: lambda kv: kv.mod_revision,
    CompareTarget.VERSION: lambda kv: kv.version,
    CompareTarget.LEASE: lambda kv: kv.lease_id,
}


def check_compares(compares: Sequence[Compare]) -> None:
    """:raises StoreRefused: too many, no key, unknown operator, operand of the wrong kind."""
    if len(compares) > MAX_OPERATIONS_PER_TRANSACTION:
        raise StoreRefused("too many operations in txn request")
    for compare in compares:
        if not compare.key:
            raise StoreRefused("key is not provided")
        if compare.operator not in _OPERATORS:
            raise StoreRefused(f"no such operator: {compare.operator!r}")
        is_text = isinstance(compare.operand, str)
        if is_text != (compare.target is CompareTarget.VALUE):
            raise StoreRefused(f"cannot compare {compare.target} with {compare.operand!r}")


def check_branch(operations: Sequence[Operation]) -> None:
    """:raises StoreRefused: too many, no key, a key put twice, or put and deleted."""
    if len(operations) > MAX_OPERATIONS_PER_TRANSACTION:
        raise StoreRefused("too many operations in txn request")
    if any(not operation.key for operation in operations):
        raise StoreRefused("key is not provided")
    put = [operation.key for operation in operations if isinstance(operation, Put)]
    deleted = {operation.key for operation in operations if isinstance(operation, Delete)}
    if len(put) != len(set(put)) or deleted & set(put):
        raise StoreRefused("duplicate key given in txn request")


def holds(compare: Compare, kv: KeyValue | None) -> bool:
    """A missing key counts as 0 by number; by value nothing is true of it."""
    have: int | str
    if compare.target is CompareTarget.VALUE:
        if kv is None:
            return False
        have = kv.value
    else:
        have = _NUMBERS[compare.target](kv) if kv is not None else 0
    return _OPERATORS[compare.operator](have, compare.operand)
