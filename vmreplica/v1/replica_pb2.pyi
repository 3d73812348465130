from vmreplica.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateReplicaRequest(_message.Message):
    __slots__ = ("vm_uuid", "vm_name", "disks", "domain_xml", "primary_access_point", "frequency_ms", "folder", "recovery_points")
    VM_UUID_FIELD_NUMBER: _ClassVar[int]
    VM_NAME_FIELD_NUMBER: _ClassVar[int]
    DISKS_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_XML_FIELD_NUMBER: _ClassVar[int]
    PRIMARY_ACCESS_POINT_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_MS_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_POINTS_FIELD_NUMBER: _ClassVar[int]
    vm_uuid: str
    vm_name: str
    disks: _containers.RepeatedCompositeFieldContainer[_types_pb2.Disk]
    domain_xml: bytes
    primary_access_point: str
    frequency_ms: int
    folder: str
    recovery_points: int
    def __init__(self, vm_uuid: _Optional[str] = ..., vm_name: _Optional[str] = ..., disks: _Optional[_Iterable[_Union[_types_pb2.Disk, _Mapping]]] = ..., domain_xml: _Optional[bytes] = ..., primary_access_point: _Optional[str] = ..., frequency_ms: _Optional[int] = ..., folder: _Optional[str] = ..., recovery_points: _Optional[int] = ...) -> None: ...

class CreateReplicaResponse(_message.Message):
    __slots__ = ("replica", "changed")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    replica: _types_pb2.Replica
    changed: bool
    def __init__(self, replica: _Optional[_Union[_types_pb2.Replica, _Mapping]] = ..., changed: bool = ...) -> None: ...

class GetReplicaRequest(_message.Message):
    __slots__ = ("replica_id",)
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    def __init__(self, replica_id: _Optional[str] = ...) -> None: ...

class GetReplicaResponse(_message.Message):
    __slots__ = ("replica",)
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    replica: _types_pb2.Replica
    def __init__(self, replica: _Optional[_Union[_types_pb2.Replica, _Mapping]] = ...) -> None: ...

class DeleteReplicaRequest(_message.Message):
    __slots__ = ("replica_id", "delete_data")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    DELETE_DATA_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    delete_data: bool
    def __init__(self, replica_id: _Optional[str] = ..., delete_data: bool = ...) -> None: ...

class DeleteReplicaResponse(_message.Message):
    __slots__ = ("operation_id",)
    OPERATION_ID_FIELD_NUMBER: _ClassVar[int]
    operation_id: str
    def __init__(self, operation_id: _Optional[str] = ...) -> None: ...

class ListReplicasRequest(_message.Message):
    __slots__ = ("filter", "page_size", "page_token")
    FILTER_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    filter: str
    page_size: int
    page_token: str
    def __init__(self, filter: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListReplicasResponse(_message.Message):
    __slots__ = ("items", "next_page_token")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[_types_pb2.Replica]
    next_page_token: str
    def __init__(self, items: _Optional[_Iterable[_Union[_types_pb2.Replica, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListPointsRequest(_message.Message):
    __slots__ = ("replica_id", "page_size", "page_token")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    page_size: int
    page_token: str
    def __init__(self, replica_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListPointsResponse(_message.Message):
    __slots__ = ("items", "next_page_token")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[_types_pb2.Point]
    next_page_token: str
    def __init__(self, items: _Optional[_Iterable[_Union[_types_pb2.Point, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateReplicaRequest(_message.Message):
    __slots__ = ("replica_id", "policy", "domain_xml", "update_fields")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_XML_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELDS_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    policy: _types_pb2.Policy
    domain_xml: bytes
    update_fields: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, replica_id: _Optional[str] = ..., policy: _Optional[_Union[_types_pb2.Policy, _Mapping]] = ..., domain_xml: _Optional[bytes] = ..., update_fields: _Optional[_Iterable[str]] = ...) -> None: ...

class UpdateReplicaResponse(_message.Message):
    __slots__ = ("replica", "changed")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    replica: _types_pb2.Replica
    changed: bool
    def __init__(self, replica: _Optional[_Union[_types_pb2.Replica, _Mapping]] = ..., changed: bool = ...) -> None: ...
