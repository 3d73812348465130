from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CheckStoreRequest(_message.Message):
    __slots__ = ("path", "node")
    PATH_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    path: str
    node: str
    def __init__(self, path: _Optional[str] = ..., node: _Optional[str] = ...) -> None: ...

class CheckStoreResponse(_message.Message):
    __slots__ = ("checks",)
    CHECKS_FIELD_NUMBER: _ClassVar[int]
    checks: _containers.RepeatedCompositeFieldContainer[StoreCheck]
    def __init__(self, checks: _Optional[_Iterable[_Union[StoreCheck, _Mapping]]] = ...) -> None: ...

class StoreCheck(_message.Message):
    __slots__ = ("name", "node", "ok", "detail", "remedy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    REMEDY_FIELD_NUMBER: _ClassVar[int]
    name: str
    node: str
    ok: bool
    detail: str
    remedy: str
    def __init__(self, name: _Optional[str] = ..., node: _Optional[str] = ..., ok: bool = ..., detail: _Optional[str] = ..., remedy: _Optional[str] = ...) -> None: ...

class ProbeStoreRequest(_message.Message):
    __slots__ = ("path", "step", "token")
    PATH_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    path: str
    step: str
    token: str
    def __init__(self, path: _Optional[str] = ..., step: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class ProbeStoreResponse(_message.Message):
    __slots__ = ("ok", "detail")
    OK_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    detail: str
    def __init__(self, ok: bool = ..., detail: _Optional[str] = ...) -> None: ...
