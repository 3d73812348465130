from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CycleKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CYCLE_KIND_UNSPECIFIED: _ClassVar[CycleKind]
    CYCLE_KIND_FULL: _ClassVar[CycleKind]
    CYCLE_KIND_DELTA: _ClassVar[CycleKind]
    CYCLE_KIND_RESYNC: _ClassVar[CycleKind]

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_NONE: _ClassVar[Mode]
    MODE_PRIMARY: _ClassVar[Mode]
    MODE_REPLICA: _ClassVar[Mode]
    MODE_TEST_REPLICA: _ClassVar[Mode]
    MODE_EXTENDED_REPLICA: _ClassVar[Mode]

class Health(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEALTH_UNSPECIFIED: _ClassVar[Health]
    HEALTH_NOT_APPLICABLE: _ClassVar[Health]
    HEALTH_NORMAL: _ClassVar[Health]
    HEALTH_WARNING: _ClassVar[Health]
    HEALTH_CRITICAL: _ClassVar[Health]

class PointKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POINT_KIND_UNSPECIFIED: _ClassVar[PointKind]
    POINT_KIND_CRASH_CONSISTENT: _ClassVar[PointKind]
    POINT_KIND_APPLICATION_CONSISTENT: _ClassVar[PointKind]

class PointState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    POINT_STATE_UNSPECIFIED: _ClassVar[PointState]
    POINT_STATE_GOOD: _ClassVar[PointState]
    POINT_STATE_DAMAGED: _ClassVar[PointState]
    POINT_STATE_UNVERIFIED: _ClassVar[PointState]

class ReplicationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICATION_STATE_UNSPECIFIED: _ClassVar[ReplicationState]
    REPLICATION_STATE_NOT_ENABLED: _ClassVar[ReplicationState]
    REPLICATION_STATE_READY_FOR_INITIAL_REPLICATION: _ClassVar[ReplicationState]
    REPLICATION_STATE_WAITING_FOR_INITIAL_REPLICATION: _ClassVar[ReplicationState]
    REPLICATION_STATE_REPLICATING: _ClassVar[ReplicationState]
    REPLICATION_STATE_SYNCED_REPLICATION_COMPLETE: _ClassVar[ReplicationState]
    REPLICATION_STATE_FAIL_OVER_WAITING_COMPLETION: _ClassVar[ReplicationState]
    REPLICATION_STATE_FAILED_OVER: _ClassVar[ReplicationState]
    REPLICATION_STATE_SUSPENDED: _ClassVar[ReplicationState]
    REPLICATION_STATE_ERROR: _ClassVar[ReplicationState]
    REPLICATION_STATE_WAITING_FOR_START_RESYNCHRONIZE: _ClassVar[ReplicationState]
    REPLICATION_STATE_RESYNCHRONIZING: _ClassVar[ReplicationState]
    REPLICATION_STATE_RESYNCHRONIZE_SUSPENDED: _ClassVar[ReplicationState]
CYCLE_KIND_UNSPECIFIED: CycleKind
CYCLE_KIND_FULL: CycleKind
CYCLE_KIND_DELTA: CycleKind
CYCLE_KIND_RESYNC: CycleKind
MODE_UNSPECIFIED: Mode
MODE_NONE: Mode
MODE_PRIMARY: Mode
MODE_REPLICA: Mode
MODE_TEST_REPLICA: Mode
MODE_EXTENDED_REPLICA: Mode
HEALTH_UNSPECIFIED: Health
HEALTH_NOT_APPLICABLE: Health
HEALTH_NORMAL: Health
HEALTH_WARNING: Health
HEALTH_CRITICAL: Health
POINT_KIND_UNSPECIFIED: PointKind
POINT_KIND_CRASH_CONSISTENT: PointKind
POINT_KIND_APPLICATION_CONSISTENT: PointKind
POINT_STATE_UNSPECIFIED: PointState
POINT_STATE_GOOD: PointState
POINT_STATE_DAMAGED: PointState
POINT_STATE_UNVERIFIED: PointState
REPLICATION_STATE_UNSPECIFIED: ReplicationState
REPLICATION_STATE_NOT_ENABLED: ReplicationState
REPLICATION_STATE_READY_FOR_INITIAL_REPLICATION: ReplicationState
REPLICATION_STATE_WAITING_FOR_INITIAL_REPLICATION: ReplicationState
REPLICATION_STATE_REPLICATING: ReplicationState
REPLICATION_STATE_SYNCED_REPLICATION_COMPLETE: ReplicationState
REPLICATION_STATE_FAIL_OVER_WAITING_COMPLETION: ReplicationState
REPLICATION_STATE_FAILED_OVER: ReplicationState
REPLICATION_STATE_SUSPENDED: ReplicationState
REPLICATION_STATE_ERROR: ReplicationState
REPLICATION_STATE_WAITING_FOR_START_RESYNCHRONIZE: ReplicationState
REPLICATION_STATE_RESYNCHRONIZING: ReplicationState
REPLICATION_STATE_RESYNCHRONIZE_SUSPENDED: ReplicationState

class Disk(_message.Message):
    __slots__ = ("target", "size_bytes", "excluded")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    target: str
    size_bytes: int
    excluded: bool
    def __init__(self, target: _Optional[str] = ..., size_bytes: _Optional[int] = ..., excluded: bool = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("frequency_ms", "compression", "route", "disks", "recovery_points", "folder", "bandwidth_limit_bytes_per_s")
    FREQUENCY_MS_FIELD_NUMBER: _ClassVar[int]
    COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_POINTS_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_LIMIT_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    frequency_ms: int
    compression: str
    route: str
    disks: _containers.RepeatedScalarFieldContainer[str]
    recovery_points: int
    folder: str
    bandwidth_limit_bytes_per_s: int
    def __init__(self, frequency_ms: _Optional[int] = ..., compression: _Optional[str] = ..., route: _Optional[str] = ..., disks: _Optional[_Iterable[str]] = ..., recovery_points: _Optional[int] = ..., folder: _Optional[str] = ..., bandwidth_limit_bytes_per_s: _Optional[int] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("seq", "time", "kind", "state", "size_bytes", "in_use", "chains")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    CHAINS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    time: _timestamp_pb2.Timestamp
    kind: PointKind
    state: PointState
    size_bytes: int
    in_use: bool
    chains: _containers.RepeatedCompositeFieldContainer[Chain]
    def __init__(self, seq: _Optional[int] = ..., time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[_Union[PointKind, str]] = ..., state: _Optional[_Union[PointState, str]] = ..., size_bytes: _Optional[int] = ..., in_use: bool = ..., chains: _Optional[_Iterable[_Union[Chain, _Mapping]]] = ...) -> None: ...

class Chain(_message.Message):
    __slots__ = ("target", "files", "qemu_json")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    QEMU_JSON_FIELD_NUMBER: _ClassVar[int]
    target: str
    files: _containers.RepeatedScalarFieldContainer[str]
    qemu_json: str
    def __init__(self, target: _Optional[str] = ..., files: _Optional[_Iterable[str]] = ..., qemu_json: _Optional[str] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("replica_id", "vm_uuid", "vm_name", "owner", "epoch", "trust_group", "state", "acked_seq", "acked_digest", "disks", "storage_path", "acked_time", "domain_name", "primary_access_point", "placement_reasons", "size_bytes", "point_count", "health", "acked_cycle_id", "test_failover", "placement_node", "folder", "policy", "replica_access_point")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    VM_UUID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TRUST_GROUP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ACKED_SEQ_FIELD_NUMBER: _ClassVar[int]
    ACKED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    STORAGE_PATH_FIELD_NUMBER: _ClassVar[int]
    ACKED_TIME_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_NAME_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_ACCESS_POINT_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_REASONS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    POINT_COUNT_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    ACKED_CYCLE_ID_FIELD_NUMBER: _ClassVar[int]
    TEST_FAILOVER_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_NODE_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ACCESS_POINT_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    vm_uuid: str
    vm_name: str
    owner: str
    epoch: int
    trust_group: str
    state: ReplicationState
    acked_seq: int
    acked_digest: bytes
    disks: _containers.RepeatedCompositeFieldContainer[Disk]
    storage_path: str
    acked_time: _timestamp_pb2.Timestamp
    domain_name: str
    primary_access_point: str
    placement_reasons: _containers.RepeatedScalarFieldContainer[str]
    size_bytes: int
    point_count: int
    health: Health
    acked_cycle_id: bytes
    test_failover: TestFailover
    placement_node: str
    folder: str
    policy: Policy
    replica_access_point: str
    def __init__(self, replica_id: _Optional[str] = ..., vm_uuid: _Optional[str] = ..., vm_name: _Optional[str] = ..., owner: _Optional[str] = ..., epoch: _Optional[int] = ..., trust_group: _Optional[str] = ..., state: _Optional[_Union[ReplicationState, str]] = ..., acked_seq: _Optional[int] = ..., acked_digest: _Optional[bytes] = ..., disks: _Optional[_Iterable[_Union[Disk, _Mapping]]] = ..., storage_path: _Optional[str] = ..., acked_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., domain_name: _Optional[str] = ..., primary_access_point: _Optional[str] = ..., placement_reasons: _Optional[_Iterable[str]] = ..., size_bytes: _Optional[int] = ..., point_count: _Optional[int] = ..., health: _Optional[_Union[Health, str]] = ..., acked_cycle_id: _Optional[bytes] = ..., test_failover: _Optional[_Union[TestFailover, _Mapping]] = ..., placement_node: _Optional[str] = ..., folder: _Optional[str] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., replica_access_point: _Optional[str] = ...) -> None: ...

class Replication(_message.Message):
    __slots__ = ("replica_id", "vm_uuid", "vm_name", "mode", "state", "health", "health_reasons", "primary_access_point", "primary_node", "replica_access_point", "replica_node", "epoch", "policy", "acked_seq", "acked_time", "pending_bytes", "initial_done_bytes", "initial_total_bytes", "last_cycle", "trust_group", "last_problem", "disks")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    VM_UUID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    HEALTH_REASONS_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_ACCESS_POINT_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_NODE_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ACCESS_POINT_FIELD_NUMBER: _ClassVar[int]
    REPLICA_NODE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ACKED_SEQ_FIELD_NUMBER: _ClassVar[int]
    ACKED_TIME_FIELD_NUMBER: _ClassVar[int]
    PENDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    INITIAL_DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    INITIAL_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_CYCLE_FIELD_NUMBER: _ClassVar[int]
    TRUST_GROUP_FIELD_NUMBER: _ClassVar[int]
    LAST_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    vm_uuid: str
    vm_name: str
    mode: Mode
    state: ReplicationState
    health: Health
    health_reasons: _containers.RepeatedScalarFieldContainer[str]
    primary_access_point: str
    primary_node: str
    replica_access_point: str
    replica_node: str
    epoch: int
    policy: Policy
    acked_seq: int
    acked_time: _timestamp_pb2.Timestamp
    pending_bytes: int
    initial_done_bytes: int
    initial_total_bytes: int
    last_cycle: CycleSummary
    trust_group: str
    last_problem: str
    disks: _containers.RepeatedCompositeFieldContainer[Disk]
    def __init__(self, replica_id: _Optional[str] = ..., vm_uuid: _Optional[str] = ..., vm_name: _Optional[str] = ..., mode: _Optional[_Union[Mode, str]] = ..., state: _Optional[_Union[ReplicationState, str]] = ..., health: _Optional[_Union[Health, str]] = ..., health_reasons: _Optional[_Iterable[str]] = ..., primary_access_point: _Optional[str] = ..., primary_node: _Optional[str] = ..., replica_access_point: _Optional[str] = ..., replica_node: _Optional[str] = ..., epoch: _Optional[int] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., acked_seq: _Optional[int] = ..., acked_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., pending_bytes: _Optional[int] = ..., initial_done_bytes: _Optional[int] = ..., initial_total_bytes: _Optional[int] = ..., last_cycle: _Optional[_Union[CycleSummary, _Mapping]] = ..., trust_group: _Optional[str] = ..., last_problem: _Optional[str] = ..., disks: _Optional[_Iterable[_Union[Disk, _Mapping]]] = ...) -> None: ...

class CycleSummary(_message.Message):
    __slots__ = ("seq", "kind", "begin_time", "acked_time", "changed_bytes", "wire_bytes", "latency_ms")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    BEGIN_TIME_FIELD_NUMBER: _ClassVar[int]
    ACKED_TIME_FIELD_NUMBER: _ClassVar[int]
    CHANGED_BYTES_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    seq: int
    kind: CycleKind
    begin_time: _timestamp_pb2.Timestamp
    acked_time: _timestamp_pb2.Timestamp
    changed_bytes: int
    wire_bytes: int
    latency_ms: int
    def __init__(self, seq: _Optional[int] = ..., kind: _Optional[_Union[CycleKind, str]] = ..., begin_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., acked_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., changed_bytes: _Optional[int] = ..., wire_bytes: _Optional[int] = ..., latency_ms: _Optional[int] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("name", "address", "state", "replicas", "version", "storage")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STORAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    state: str
    replicas: int
    version: str
    storage: _containers.RepeatedCompositeFieldContainer[Storage]
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[str] = ..., replicas: _Optional[int] = ..., version: _Optional[str] = ..., storage: _Optional[_Iterable[_Union[Storage, _Mapping]]] = ...) -> None: ...

class Storage(_message.Message):
    __slots__ = ("path", "shared", "total_bytes", "free_bytes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    path: str
    shared: bool
    total_bytes: int
    free_bytes: int
    def __init__(self, path: _Optional[str] = ..., shared: bool = ..., total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("operation_id", "verb", "target", "state", "step", "done", "total", "unit", "problem_reason", "problem_message", "started", "finished", "problem_details", "result")
    class ProblemDetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class ResultEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_REASON_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_DETAILS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    verb: str
    target: str
    state: str
    step: str
    done: int
    total: int
    unit: str
    problem_reason: str
    problem_message: str
    started: _timestamp_pb2.Timestamp
    finished: _timestamp_pb2.Timestamp
    problem_details: _containers.ScalarMap[str, str]
    result: _containers.ScalarMap[str, str]
    def __init__(self, operation_id: _Optional[str] = ..., verb: _Optional[str] = ..., target: _Optional[str] = ..., state: _Optional[str] = ..., step: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., unit: _Optional[str] = ..., problem_reason: _Optional[str] = ..., problem_message: _Optional[str] = ..., started: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., finished: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., problem_details: _Optional[_Mapping[str, str]] = ..., result: _Optional[_Mapping[str, str]] = ...) -> None: ...

class TestFailover(_message.Message):
    __slots__ = ("replica_id", "vm_name", "domain_name", "running", "node", "last_time", "last_result", "seq")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_NAME_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    LAST_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_RESULT_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    vm_name: str
    domain_name: str
    running: bool
    node: str
    last_time: _timestamp_pb2.Timestamp
    last_result: str
    seq: int
    def __init__(self, replica_id: _Optional[str] = ..., vm_name: _Optional[str] = ..., domain_name: _Optional[str] = ..., running: bool = ..., node: _Optional[str] = ..., last_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., last_result: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...

class Broker(_message.Message):
    __slots__ = ("name", "address", "leader", "client_access_point", "state", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ACCESS_POINT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    leader: bool
    client_access_point: str
    state: str
    version: str
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., leader: bool = ..., client_access_point: _Optional[str] = ..., state: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...
