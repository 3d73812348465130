"""The values of the cluster store's keys, and their JSON text.

Records are frozen; ``parse`` accepts what ``render`` wrote, ignores unknown keys (a newer version
wrote them) and raises ValueError for anything else.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from enum import StrEnum
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageRecord:
    """One storage location as its node last measured it."""

    path: str
    shared: bool
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """nodes/N/INCARNATION, leased: a live node process."""

    name: str
    incarnation: str
    address: str
    server_name: str
    version: str
    storage: tuple[StorageRecord, ...] = ()
    stalled: bool = False
    running_vms: int = 0
    memory_free_bytes: int = 0
    op_id: str = ""


class DrainState(StrEnum):
    """What people asked of a node. Values as in ``node list``'s state, Ready when not drained."""

    READY = "Ready"
    DRAINING = "Draining"
    DRAINED = "Drained"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfigRecord:
    """node-config/N: survives restarts of the node."""

    name: str
    drain: DrainState = DrainState.READY
    operation_id: str = ""
    op_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRecord:
    """A disk of the VM as created or last acknowledged."""

    target: str
    size_bytes: int
    excluded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRecord:
    """Replication policy; every field as in interfaces' Policy."""

    frequency_ms: int = 300_000
    compression: str = "zstd"
    route: str = "auto"
    disks: tuple[str, ...] = ()
    recovery_points: int = 0
    folder: str = ""
    bandwidth_limit_bytes_per_s: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TestFailoverRecord:
    """The one test failover a replica may have, and what came of the last."""

    running: bool = False
    operation_id: str = ""
    domain_name: str = ""
    node: str = ""
    seq: int = 0
    last_time_ms: int = 0
    last_result: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRecord:
    """replicas/ID. Changes when something is decided, never per cycle.

    ``folder_path`` is the absolute directory ``storage_location/FOLDER``; FOLDER ends with the
    incarnation of the node chosen at creation and never changes. ``established`` is set once the
    first manifest is committed; from then on an empty directory is damage, not a beginning.
    ``tombstoned`` is set once the tombstone is committed; from then on it may be gone.
    """

    replica_id: str
    vm_uuid: str
    vm_name: str
    domain_name: str
    trust_group: str
    primary_access_point: str
    storage_location: str
    folder_path: str
    disks: tuple[DiskRecord, ...]
    policy: PolicyRecord = PolicyRecord()
    placement_node: str = ""
    placement_reasons: tuple[str, ...] = ()
    created_time_ms: int = 0
    removing: bool = False
    delete_data: bool = False
    test_failover: TestFailoverRecord = TestFailoverRecord()
    established: bool = False
    tombstoned: bool = False
    op_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerRecord:
    """owners/ID. ``released``: the owner gave the replica up by itself (drain, clean stop)."""

    node: str
    incarnation: str
    epoch: int
    released: bool = False
    op_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerRecord:
    """election/LEASE: a broker candidate; the lowest create revision leads."""

    name: str
    address: str
    server_name: str
    version: str
    op_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationRecord:
    """replications/ID on the primary side: the intent, and what must survive a restart.

    ``acked_cycle_id`` and ``inflight_cycle_id`` are hex; checkpoints bear these ids.
    """

    replica_id: str
    vm_uuid: str
    vm_name: str
    node: str
    primary_access_point: str
    replica_access_point: str
    trust_group: str
    state: str
    policy: PolicyRecord
    disks: tuple[DiskRecord, ...]
    start_at_ms: int = 0
    acked_seq: int = 0
    acked_cycle_id: str = ""
    acked_digest: str = ""
    acked_time_ms: int = 0
    inflight_cycle_id: str = ""
    definition_digest: str = ""
    autostart: bool = False
    last_problem: str = ""
    suspended_from: str = ""
    operation_id: str = ""
    op_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRecord:
    """auth/PRIMARY: which primary may send, where its replicas go, which group it is in."""

    primary: str
    storage_location: str
    trust_group: str
    op_id: str = ""


class OperationState(StrEnum):
    """State of a long-running verb."""

    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRecord:
    """operations/ID: a long-running verb that can be watched, cancelled and resumed."""

    operation_id: str
    verb: str
    target: str
    state: OperationState = OperationState.RUNNING
    step: str = ""
    done: int = 0
    total: int = 0
    unit: str = ""
    started_ms: int = 0
    finished_ms: int = 0
    cancel_requested: bool = False
    problem: dict[str, str] | None = None
    result: dict[str, str] | None = None
    op_id: str = ""


_Builder = Callable[[Any, str], Any]


def render(record: Any) -> str:
    """A record as JSON text, keys in field order."""
    return json.dumps(asdict(record), separators=(",", ":"), ensure_ascii=False)


def parse(kind: type[T], text: str) -> T:
    """JSON text as a record. :raises ValueError: naming the key and what was expected."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{kind.__name__}: not JSON: {error}") from error
    return typing.cast(T, _build(kind, data, kind.__name__))


def _build(kind: Any, data: Any, where: str) -> Any:
    """One value of the kind that a field's annotation names."""
    return _builder(kind)(data, where)


@functools.cache
def _builder(kind: Any) -> _Builder:
    """Makes values of one kind. Records are parsed all the time, so annotations are read once."""
    if is_dataclass(kind):
        return _record_builder(kind)
    origin = get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        (arm,) = (arm for arm in get_args(kind) if arm is not type(None))
        inner = _builder(arm)
        return lambda data, where: None if data is None else inner(data, where)
    if origin is tuple:
        return functools.partial(_build_tuple, _builder(get_args(kind)[0]))
    if origin is dict:
        return functools.partial(_build_dict, _builder(get_args(kind)[1]))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return lambda data, _: kind(data)
    return lambda data, where: _expect(kind, data, where, kind.__name__)


def _build_tuple(inner: _Builder, data: Any, where: str) -> tuple[Any, ...]:
    items = _expect(list, data, where, "a list")
    return tuple(inner(item, f"{where}[{i}]") for i, item in enumerate(items))


def _build_dict(inner: _Builder, data: Any, where: str) -> dict[str, Any]:
    pairs = _expect(dict, data, where, "an object").items()
    return {str(k): inner(v, f"{where}.{k}") for k, v in pairs}


def _record_builder(kind: Any) -> _Builder:
    hints = get_type_hints(kind)
    builders = {f.name: _builder(hints[f.name]) for f in fields(kind)}

    def build(data: Any, where: str) -> Any:
        values = {
            name: builders[name](value, f"{where}.{name}")
            for name, value in _expect(dict, data, where, "an object").items()
            if name in builders
        }
        try:
            return kind(**values)
        except TypeError as error:
            raise ValueError(f"{where}: {error}") from error

    return build


def _expect(kind: Any, data: Any, where: str, name: str) -> Any:
    # type() and not isinstance: a boolean is no number here.
    if type(data) is not kind:
        raise ValueError(f"{where}: expected {name}, got {data!r}")
    return data
