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
