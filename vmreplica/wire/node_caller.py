"""How a broker's API reaches a node: over the network, or in process on a standalone node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from vmreplica.wire.call import Call

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class NodeTarget:
    """A node: its name, HOST:PORT, and the DNS name that its certificate must show."""

    name: str
    address: str
    server_name: str


class RawStream(Protocol):
    """The receiving end of a call whose messages are not parsed."""

    async def read(self) -> bytes | None:
        """The next message of the caller; None = it will send no more."""
        ...

    async def write(self, message: bytes) -> None:
        """Send one message to the caller; waits while the transport is full."""
        ...


class RawCall(Protocol):
    """The sending end of a call whose messages are not parsed."""

    async def read(self) -> bytes | None:
        """The next message of the node; None = it ended the call well.

        :raises Problem: as the node answered, or NODE_UNREACHABLE.
        """
        ...

    async def write(self, message: bytes) -> None:
        """Send one message to the node; waits while the transport is full."""
        ...

    async def done_writing(self) -> None:
        """Nothing more will be written."""
        ...

    def cancel(self) -> None:
        """Give up the call. Idempotent."""
        ...

    def trailers(self) -> dict[str, str]:
        """The node's trailers, known once ``read`` has answered None or raised."""
        ...


class NodeCaller(Protocol):
    """Calls one node in the name of ``call``'s identity."""

    async def unary(
        self,
        target: NodeTarget,
        method: str,
        request: Message,
        response_type: type[M],
        call: Call,
        *,
        timeout_ms: int = 10_000,
    ) -> M:
        """One answer. ``method`` = ``/vmreplica.v1.ReplicaService/GetReplica``.

        :raises Problem: as the node answered, or NODE_UNREACHABLE.
        """
        ...

    def stream(
        self,
        target: NodeTarget,
        method: str,
        request: Message,
        response_type: type[M],
        call: Call,
    ) -> AsyncIterator[M]:
        """Many answers to one request. :raises Problem: as ``unary``"""
        ...

    async def open_raw(self, target: NodeTarget, method: str, call: Call) -> RawCall:
        """A call whose messages are passed on unparsed (the relay of CycleService)."""
        ...
