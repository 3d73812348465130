from google.protobuf import timestamp_pb2 as _timestamp_pb2
from vmreplica.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnableReplicationRequest(_message.Message):
    __slots__ = ("vm", "to", "policy")
    VM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    vm: str
    to: str
    policy: _types_pb2.Policy
    def __init__(self, vm: _Optional[str] = ..., to: _Optional[str] = ..., policy: _Optional[_Union[_types_pb2.Policy, _Mapping]] = ...) -> None: ...

class EnableReplicationResponse(_message.Message):
    __slots__ = ("replication", "changed", "operation_id")
    REPLICATION_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    replication: _types_pb2.Replication
    changed: bool
    operation_id: str
    def __init__(self, replication: _Optional[_Union[_types_pb2.Replication, _Mapping]] = ..., changed: bool = ..., operation_id: _Optional[str] = ...) -> None: ...

class UpdateReplicationRequest(_message.Message):
    __slots__ = ("vm", "policy", "update_fields")
    VM_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELDS_FIELD_NUMBER: _ClassVar[int]
    vm: str
    policy: _types_pb2.Policy
    update_fields: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, vm: _Optional[str] = ..., policy: _Optional[_Union[_types_pb2.Policy, _Mapping]] = ..., update_fields: _Optional[_Iterable[str]] = ...) -> None: ...

class UpdateReplicationResponse(_message.Message):
    __slots__ = ("replication", "changed")
    REPLICATION_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    replication: _types_pb2.Replication
    changed: bool
    def __init__(self, replication: _Optional[_Union[_types_pb2.Replication, _Mapping]] = ..., changed: bool = ...) -> None: ...

class StartReplicationRequest(_message.Message):
    __slots__ = ("vm", "at")
    VM_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    vm: str
    at: _timestamp_pb2.Timestamp
    def __init__(self, vm: _Optional[str] = ..., at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class StartReplicationResponse(_message.Message):
    __slots__ = ("operation_id", "changed")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    changed: bool
    def __init__(self, operation_id: _Optional[str] = ..., changed: bool = ...) -> None: ...

class SuspendReplicationRequest(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: str
    def __init__(self, vm: _Optional[str] = ...) -> None: ...

class SuspendReplicationResponse(_message.Message):
    __slots__ = ("changed",)
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    changed: bool
    def __init__(self, changed: bool = ...) -> None: ...

class ResumeReplicationRequest(_message.Message):
    __slots__ = ("vm", "resync", "at")
    VM_FIELD_NUMBER: _ClassVar[int]
    RESYNC_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    vm: str
    resync: bool
    at: _timestamp_pb2.Timestamp
    def __init__(self, vm: _Optional[str] = ..., resync: bool = ..., at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ResumeReplicationResponse(_message.Message):
    __slots__ = ("operation_id", "changed")
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    changed: bool
    def __init__(self, operation_id: _Optional[str] = ..., changed: bool = ...) -> None: ...

class RemoveReplicationRequest(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: str
    def __init__(self, vm: _Optional[str] = ...) -> None: ...

class RemoveReplicationResponse(_message.Message):
    __slots__ = ("changed",)
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    changed: bool
    def __init__(self, changed: bool = ...) -> None: ...

class GetReplicationRequest(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: str
    def __init__(self, vm: _Optional[str] = ...) -> None: ...

class GetReplicationResponse(_message.Message):
    __slots__ = ("replication",)
    REPLICATION_FIELD_NUMBER: _ClassVar[int]
    replication: _types_pb2.Replication
    def __init__(self, replication: _Optional[_Union[_types_pb2.Replication, _Mapping]] = ...) -> None: ...

class ListReplicationsRequest(_message.Message):
    __slots__ = ("filter", "page_size", "page_token")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    filter: str
    page_size: int
    page_token: str
    def __init__(self, filter: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListReplicationsResponse(_message.Message):
    __slots__ = ("items", "next_page_token")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[_types_pb2.Replication]
    next_page_token: str
    def __init__(self, items: _Optional[_Iterable[_Union[_types_pb2.Replication, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class StopInitialReplicationRequest(_message.Message):
    __slots__ = ("vm",)
    VM_FIELD_NUMBER: _ClassVar[int]
    vm: str
    def __init__(self, vm: _Optional[str] = ...) -> None: ...

class StopInitialReplicationResponse(_message.Message):
    __slots__ = ("changed",)
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    changed: bool
    def __init__(self, changed: bool = ...) -> None: ...
