"""etcd as a pure function: ``step(state, request) -> (state, response, events)``.

No clock, no I/O: that a lease runs out is a request like any other (``Expire``). States are
values; an old one stays as it was. What is copied from etcd is listed in the contract suite,
which compares this model with the real thing.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vmreplica.ports.cluster_store import (
    MAX_OPERATIONS_PER_TRANSACTION,
    Compacted,
    Compare,
    CompareTarget,
    Delete,
    Get,
    KeyValue,
    Lease,
    Operation,
    Put,
    RangeResult,
    StoreRefused,
    TransactionResult,
    WatchEvent,
)


@dataclass(frozen=True, slots=True)
class Change:
    """All events of one revision."""

    revision: int
    events: tuple[WatchEvent, ...]


@dataclass(frozen=True, slots=True)
class EtcdState:
    """Everything etcd knows. ``order`` = the live keys, sorted; ``leases`` = id -> TTL in s."""

    revision: int = 1
    compact_revision: int = 0
    live: Mapping[str, KeyValue] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    leases: Mapping[int, int] = field(default_factory=dict)
    history: tuple[Change, ...] = ()
    compacted_live: Mapping[str, KeyValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Range:
    """ports.cluster_store.ClusterStore.range as a value."""

    prefix: str
    limit: int = 0
    after_key: str = ""
    revision: int = 0
    min_mod_revision: int = 0
    count_only: bool = False


@dataclass(frozen=True, slots=True)
class Transaction:
    """ClusterStore.transaction as a value."""

    compares: tuple[Compare, ...]
    success: tuple[Operation, ...]
    failure: tuple[Operation, ...] = ()


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease with a chosen id."""

    lease_id: int
    ttl_s: int


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The response is the TTL in seconds, 0 when the lease is gone."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class Revoke:
    """End a lease by hand; an unknown one is refused."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class Expire:
    """A lease ran out; an unknown one is no error."""

    lease_id: int


@dataclass(frozen=True, slots=True)
class Compact:
    """Forget history below ``revision``."""

    revision: int


Request = Range | Transaction | Grant | Keepalive | Revoke | Expire | Compact
Response = RangeResult | TransactionResult | Lease | int | None
Step = tuple[EtcdState, Response, tuple[WatchEvent, ...]]


def step(state: EtcdState, request: Request, *, min_ttl_s: int = 2) -> Step:
    """What one request does.

    :param min_ttl_s: shorter leases are granted as this (etcd: 1.5 election timeouts, rounded up).
    :raises StoreRefused: malformed, unknown lease, future revision.
    :raises Compacted: the revision asked for is gone.
    """
    match request:
        case Range():
            return state, _range(state, request), ()
        case Transaction():
            return _transaction(state, request)
        case Grant(lease_id=lease_id, ttl_s=ttl_s):
            if lease_id in state.leases:
                raise StoreRefused("lease already exists")
            ttl_s = max(ttl_s, min_ttl_s)
            state = replace(state, leases={**state.leases, lease_id: ttl_s})
            return state, Lease(lease_id, ttl_s * 1000), ()
        case Keepalive(lease_id=lease_id):
            return state, state.leases.get(lease_id, 0), ()
        case Revoke(lease_id=lease_id):
            if lease_id not in state.leases:
                raise StoreRefused("requested lease not found")
            return _end_lease(state, lease_id)
        case Expire(lease_id=lease_id):
            return _end_lease(state, lease_id) if lease_id in state.leases else (state, None, ())
        case Compact(revision=revision):
            return _compact(state, revision), None, ()


def events_since(state: EtcdState, prefix: str, revision: int) -> list[Change]:
    """The changes under ``prefix`` from ``revision`` on. :raises Compacted:"""
    if revision < state.compact_revision:
        raise Compacted(state.compact_revision)
    start = bisect.bisect_left(state.history, revision, key=lambda change: change.revision)
    found = []
    for change in state.history[start:]:
        events = tuple(e for e in change.events if e.kv.key.startswith(prefix))
        if events:
            found.append(Change(change.revision, events))
    return found


def _range(state: EtcdState, request: Range) -> RangeResult:
    if request.revision > state.revision:
        raise StoreRefused("required revision is a future revision")
    if 0 < request.revision < state.compact_revision:
        raise Compacted(state.compact_revision)
    if request.revision and request.revision != state.revision:
        live: Mapping[str, KeyValue] = _live_at(state, request.revision)
        order: Sequence[str] = sorted(live)
    else:
        live, order = state.live, state.order
    keys = _keys_under(order, request.prefix, request.after_key)
    revision = request.revision or state.revision
    if request.count_only:
        return RangeResult(revision, (), len(keys))
    items = [live[key] for key in keys if live[key].mod_revision >= request.min_mod_revision]
    more = bool(request.limit) and len(items) > request.limit
    if request.limit:
        items = items[: request.limit]
    return RangeResult(revision, tuple(items), len(keys), more)


def _keys_under(order: Sequence[str], prefix: str, after_key: str) -> Sequence[str]:
    if after_key >= prefix and after_key:
        first = bisect.bisect_right(order, after_key)
    else:
        first = bisect.bisect_left(order, prefix)
    last = first
    if prefix:
        # Keys with one prefix stand together: count on from the first that has it.
        last = bisect.bisect_left(order, True, lo=first, key=lambda k: not k.startswith(prefix))
    else:
        last = len(order)
    return order[first:last]


def _live_at(state: EtcdState, revision: int) -> dict[str, KeyValue]:
    live = dict(state.compacted_live)
    for change in state.history:
        if change.revision > revision:
            break
        for event in change.events:
            if event.deleted:
                live.pop(event.kv.key, None)
            else:
                live[event.kv.key] = event.kv
    return live


def _check_branch(operations: Sequence[Operation]) -> None:
    put: set[str] = set()
    deleted: set[str] = set()
    for operation in operations:
        if not operation.key:
            raise StoreRefused("key is not provided")
        match operation:
            case Put(key=key):
                if key in put:
                    raise StoreRefused("duplicate key given in txn request")
                put.add(key)
            case Delete(key=key):
                deleted.add(key)
            case Get():
                pass
    if put & deleted:
        raise StoreRefused("duplicate key given in txn request")


def check_transaction(request: Transaction) -> None:
    """What is refused before looking at any key; also in the branch not taken."""
    longest = max(len(request.compares), len(request.success), len(request.failure))
    if longest > MAX_OPERATIONS_PER_TRANSACTION:
        raise StoreRefused("too many operations in txn request")
    if any(not compare.key for compare in request.compares):
        raise StoreRefused("key is not provided")
    _check_branch(request.success)
    _check_branch(request.failure)


def holds(compare: Compare, kv: KeyValue | None) -> bool:
    """One guard. A missing key counts as 0 by number; by value nothing is true of it."""
    have: int | str
    if compare.target is CompareTarget.VALUE:
        if kv is None:
            return False
        have = kv.value
    elif kv is None:
        have = 0
    else:
        have = {
            CompareTarget.CREATE: kv.create_revision,
            CompareTarget.MOD: kv.mod_revision,
            CompareTarget.VERSION: kv.version,
            CompareTarget.LEASE: kv.lease_id,
        }[compare.target]
    want = compare.operand
    if type(have) is not type(want):
        raise StoreRefused(f"cannot compare {compare.target} with {want!r}")
    match compare.operator:
        case "=":
            return have == want
        case "!=":
            return have != want
        case ">":
            return have > want  # type: ignore[operator]
        case "<":
            return have < want  # type: ignore[operator]
        case _:
            raise StoreRefused(f"no such operator: {compare.operator!r}")


def _transaction(state: EtcdState, request: Transaction) -> Step:
    check_transaction(request)
    succeeded = all(holds(c, state.live.get(c.key)) for c in request.compares)
    operations = request.success if succeeded else request.failure
    for operation in operations:
        unknown = isinstance(operation, Put) and operation.lease_id not in {0, *state.leases}
        if unknown:
            raise StoreRefused("requested lease not found")
    revision = state.revision + 1
    live = dict(state.live)
    reads: list[KeyValue | None] = []
    events: list[WatchEvent] = []
    for operation in operations:
        match operation:
            case Get(key=key):
                reads.append(live.get(key))
            case Put():
                kv = _written(live.get(operation.key), operation, revision)
                live[kv.key] = kv
                events.append(WatchEvent(kv, deleted=False))
            case Delete(key=key):
                if key in live:
                    del live[key]
                    events.append(_deletion(key, revision))
    state = _commit(state, live, tuple(events))
    return state, TransactionResult(succeeded, state.revision, tuple(reads)), tuple(events)


def _written(old: KeyValue | None, put: Put, revision: int) -> KeyValue:
    return KeyValue(
        key=put.key,
        value=put.value,
        create_revision=old.create_revision if old else revision,
        mod_revision=revision,
        version=old.version + 1 if old else 1,
        lease_id=put.lease_id,
    )


def _deletion(key: str, revision: int) -> WatchEvent:
    return WatchEvent(KeyValue(key, "", 0, revision, 0), deleted=True)


def _commit(
    state: EtcdState, live: Mapping[str, KeyValue], events: tuple[WatchEvent, ...]
) -> EtcdState:
    if not events:
        return state
    revision = state.revision + 1
    gone = {event.kv.key for event in events if event.deleted}
    order = [key for key in state.order if key not in gone] if gone else list(state.order)
    for event in events:
        if not event.deleted and event.kv.version == 1:
            bisect.insort(order, event.kv.key)
    return replace(
        state,
        revision=revision,
        live=live,
        order=tuple(order),
        history=(*state.history, Change(revision, events)),
    )


def _end_lease(state: EtcdState, lease_id: int) -> Step:
    leases = {key: ttl for key, ttl in state.leases.items() if key != lease_id}
    doomed = [key for key in state.order if state.live[key].lease_id == lease_id]
    events = tuple(_deletion(key, state.revision + 1) for key in doomed)
    live = {key: kv for key, kv in state.live.items() if kv.lease_id != lease_id}
    return _commit(replace(state, leases=leases), live, events), None, events


def _compact(state: EtcdState, revision: int) -> EtcdState:
    if revision > state.revision:
        raise StoreRefused("required revision is a future revision")
    if revision <= state.compact_revision:
        raise Compacted(state.compact_revision)
    return replace(
        state,
        compact_revision=revision,
        # The events of the compact revision itself can still be watched.
        compacted_live=_live_at(state, revision - 1),
        history=tuple(c for c in state.history if c.revision >= revision),
    )
