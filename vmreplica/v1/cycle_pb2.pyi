from google.protobuf import timestamp_pb2 as _timestamp_pb2
from vmreplica.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplicateRequest(_message.Message):
    __slots__ = ("open", "clusters", "close")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    open: CycleOpen
    clusters: ClusterFrame
    close: CycleClose
    def __init__(self, open: _Optional[_Union[CycleOpen, _Mapping]] = ..., clusters: _Optional[_Union[ClusterFrame, _Mapping]] = ..., close: _Optional[_Union[CycleClose, _Mapping]] = ...) -> None: ...

class CycleOpen(_message.Message):
    __slots__ = ("replica_id", "epoch", "seq", "parent_digest", "kind", "disks", "resume", "domain_xml", "cycle_id", "since_cycle_id")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    PARENT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_XML_FIELD_NUMBER: _ClassVar[int]
    CYCLE_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_CYCLE_ID_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    epoch: int
    seq: int
    parent_digest: bytes
    kind: _types_pb2.CycleKind
    disks: _containers.RepeatedCompositeFieldContainer[_types_pb2.Disk]
    resume: bool
    domain_xml: bytes
    cycle_id: bytes
    since_cycle_id: bytes
    def __init__(self, replica_id: _Optional[str] = ..., epoch: _Optional[int] = ..., seq: _Optional[int] = ..., parent_digest: _Optional[bytes] = ..., kind: _Optional[_Union[_types_pb2.CycleKind, str]] = ..., disks: _Optional[_Iterable[_Union[_types_pb2.Disk, _Mapping]]] = ..., resume: bool = ..., domain_xml: _Optional[bytes] = ..., cycle_id: _Optional[bytes] = ..., since_cycle_id: _Optional[bytes] = ...) -> None: ...

class ClusterFrame(_message.Message):
    __slots__ = ("disk", "indexes", "stored_bytes", "digests", "payload", "stored_digests")
    DISK_FIELD_NUMBER: _ClassVar[int]
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    STORED_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    disk: int
    indexes: _containers.RepeatedScalarFieldContainer[int]
    stored_bytes: _containers.RepeatedScalarFieldContainer[int]
    digests: bytes
    payload: bytes
    stored_digests: bytes
    def __init__(self, disk: _Optional[int] = ..., indexes: _Optional[_Iterable[int]] = ..., stored_bytes: _Optional[_Iterable[int]] = ..., digests: _Optional[bytes] = ..., payload: _Optional[bytes] = ..., stored_digests: _Optional[bytes] = ...) -> None: ...

class CycleClose(_message.Message):
    __slots__ = ("clusters", "cycle_digest", "point_time", "application_consistent", "nvram", "tpm_state")
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    CYCLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    POINT_TIME_FIELD_NUMBER: _ClassVar[int]
    APPLICATION_CONSISTENT_FIELD_NUMBER: _ClassVar[int]
    NVRAM_FIELD_NUMBER: _ClassVar[int]
    TPM_STATE_FIELD_NUMBER: _ClassVar[int]
    clusters: int
    cycle_digest: bytes
    point_time: _timestamp_pb2.Timestamp
    application_consistent: bool
    nvram: bytes
    tpm_state: bytes
    def __init__(self, clusters: _Optional[int] = ..., cycle_digest: _Optional[bytes] = ..., point_time: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., application_consistent: bool = ..., nvram: _Optional[bytes] = ..., tpm_state: _Optional[bytes] = ...) -> None: ...

class ReplicateResponse(_message.Message):
    __slots__ = ("accepted", "durable", "acknowledged")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    accepted: CycleAccepted
    durable: CycleDurable
    acknowledged: CycleAcknowledged
    def __init__(self, accepted: _Optional[_Union[CycleAccepted, _Mapping]] = ..., durable: _Optional[_Union[CycleDurable, _Mapping]] = ..., acknowledged: _Optional[_Union[CycleAcknowledged, _Mapping]] = ...) -> None: ...

class CycleAccepted(_message.Message):
    __slots__ = ("durable_frames",)
    DURABLE_FRAMES_FIELD_NUMBER: _ClassVar[int]
    durable_frames: int
    def __init__(self, durable_frames: _Optional[int] = ...) -> None: ...

class CycleDurable(_message.Message):
    __slots__ = ("durable_frames", "received_frames")
    DURABLE_FRAMES_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    durable_frames: int
    received_frames: int
    def __init__(self, durable_frames: _Optional[int] = ..., received_frames: _Optional[int] = ...) -> None: ...

class CycleAcknowledged(_message.Message):
    __slots__ = ("seq", "cycle_digest", "duplicate", "epoch")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CYCLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    seq: int
    cycle_digest: bytes
    duplicate: bool
    epoch: int
    def __init__(self, seq: _Optional[int] = ..., cycle_digest: _Optional[bytes] = ..., duplicate: bool = ..., epoch: _Optional[int] = ...) -> None: ...

class ListDigestsRequest(_message.Message):
    __slots__ = ("replica_id", "target", "first_index", "seq")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    target: str
    first_index: int
    seq: int
    def __init__(self, replica_id: _Optional[str] = ..., target: _Optional[str] = ..., first_index: _Optional[int] = ..., seq: _Optional[int] = ...) -> None: ...

class ListDigestsResponse(_message.Message):
    __slots__ = ("first_index", "digests")
    FIRST_INDEX_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    first_index: int
    digests: bytes
    def __init__(self, first_index: _Optional[int] = ..., digests: _Optional[bytes] = ...) -> None: ...
