from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TestConnectionRequest(_message.Message):
    __slots__ = ("to", "each_node")
    TO_FIELD_NUMBER: _ClassVar[int]
    EACH_NODE_FIELD_NUMBER: _ClassVar[int]
    to: str
    each_node: bool
    def __init__(self, to: _Optional[str] = ..., each_node: bool = ...) -> None: ...

class TestConnectionResponse(_message.Message):
    __slots__ = ("checks",)
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    checks: _containers.RepeatedCompositeFieldContainer[ConnectionCheck]
    def __init__(self, checks: _Optional[_Iterable[_Union[ConnectionCheck, _Mapping]]] = ...) -> None: ...

class ConnectionCheck(_message.Message):
    __slots__ = ("name", "target", "ok", "detail", "remedy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    name: str
    target: str
    ok: bool
    detail: str
    remedy: str
    def __init__(self, name: _Optional[str] = ..., target: _Optional[str] = ..., ok: bool = ..., detail: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...

class ListAddressesRequest(_message.Message):
    __slots__ = ("primary_access_point",)
    PRIMARY_ACCESS_POINT_FIELD_NUMBER: _ClassVar[int]
    primary_access_point: str
    def __init__(self, primary_access_point: _Optional[str] = ...) -> None: ...

class ListAddressesResponse(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[NodeAddress]
    def __init__(self, items: _Optional[_Iterable[_Union[NodeAddress, _Mapping]]] = ...) -> None: ...

class NodeAddress(_message.Message):
    __slots__ = ("node", "address", "server_name")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    node: str
    address: str
    server_name: str
    def __init__(self, node: _Optional[str] = ..., address: _Optional[str] = ..., server_name: _Optional[str] = ...) -> None: ...
