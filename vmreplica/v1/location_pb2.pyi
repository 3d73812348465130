from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class LocateRequest(_message.Message):
    __slots__ = ("replica_id", "relay")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    RELAY_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    relay: bool
    def __init__(self, replica_id: _Optional[str] = ..., relay: bool = ...) -> None: ...

class LocateResponse(_message.Message):
    __slots__ = ("replica_id", "node", "address", "server_name", "epoch", "ticket", "route")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    node: str
    address: str
    server_name: str
    epoch: int
    ticket: str
    route: str
    def __init__(self, replica_id: _Optional[str] = ..., node: _Optional[str] = ..., address: _Optional[str] = ..., server_name: _Optional[str] = ..., epoch: _Optional[int] = ..., ticket: _Optional[str] = ..., route: _Optional[str] = ...) -> None: ...
