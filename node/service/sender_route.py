"""The way to a replica's owner: located, direct or relayed, and found again when it moves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import Any

from node.service.sender_timing import drop
from vmreplica.core.cycle import Accepted, Acknowledged, CycleOpen
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.clock import Clock
from vmreplica.ports.event_log import EventLog, Severity
from vmreplica.ports.replica_link import CycleStream, LinkFailed, Location, ReplicaLink

DIRECT_AGAIN_MS = 5 * 60_000
LOCATE_AGAIN_MS = 500
ROUTES = ("auto", "direct", "relay")

_IN_DOUBT = frozenset(
    {
        Reason.STALE_EPOCH,
        Reason.NOT_OWNER,
        Reason.NODE_UNREACHABLE,
        Reason.LEASE_LOST,
        Reason.DRAINING,
        Reason.NO_LEADER,
        Reason.STORE_UNAVAILABLE,
        Reason.BUSY,
    }
)


def owner_in_doubt(error: Exception) -> bool:
    """Whether the owner may just be moving, so that asking again soon is right."""
    return isinstance(error, LinkFailed) or (
        isinstance(error, Problem) and error.reason in _IN_DOUBT
    )


def may_continue(error: Exception) -> bool:
    """Whether the same cycle can still be acknowledged by trying again."""
    return owner_in_doubt(error) or (isinstance(error, Problem) and error.retryable)


@dataclass(frozen=True, slots=True)
class OpenedStream:
    """A stream whose open was answered. ``reply`` Acknowledged: the cycle already is the head."""

    stream: CycleStream
    reply: Accepted | Acknowledged
    location: Location
    relayed: bool


class _NotReached(Exception):
    """The node itself could not be connected to; says nothing about the cycle."""


class OwnerRoute:
    """Opens streams to the owner of one replica.

    :param policy: ``auto`` (direct, through the broker while the node cannot be reached),
        ``direct`` or ``relay``.
    """

    def __init__(
        self,
        link: ReplicaLink,
        clock: Clock,
        events: EventLog,
        *,
        cap: str,
        replica_id: str,
        vm_name: str,
        policy: str = "auto",
    ) -> None:
        self._link = link
        self._clock = clock
        self._events = events
        self._cap = cap
        self._replica_id = replica_id
        self._vm_name = vm_name
        self.policy = policy
        self._direct_again_ms = 0
        self.location: Location | None = None
        self.relayed = False

    async def open(self, request: CycleOpen) -> OpenedStream:
        """Locate the owner and open there; the epoch of ``request`` is filled in.

        :raises LinkFailed, Problem: nothing is known of what the other side did since.
        """
        location = self.location = await self._locate()
        request = replace(request, epoch=location.epoch)
        if self._prefers_relay():
            return await self._unless_moved(location, self._relay(request, location))
        try:
            opened = await self._unless_moved(location, self._direct(request, location))
        except _NotReached as error:
            if self.policy == "direct":
                raise LinkFailed(str(error)) from error
            opened = await self._unless_moved(location, self._relay(request, location))
            self._direct_again_ms = self._clock.boottime_ms() + DIRECT_AGAIN_MS
            self._tell_route(opened, str(error))
            return opened
        self._tell_route(opened, "the node can be reached again")
        return opened

    async def has_moved(self, location: Location) -> bool:
        """Whether the broker knows a later owner than ``location``. An unanswered ask: no."""
        try:
            now = await self._link.locate(self._cap, self._replica_id)
        except (LinkFailed, Problem):
            return False
        return now.epoch > location.epoch

    async def _locate(self) -> Location:
        """Dead brokers must not stop replication to a living owner: then where it last was."""
        try:
            return await self._link.locate(self._cap, self._replica_id)
        except (LinkFailed, Problem) as error:
            if self.location is None or not owner_in_doubt(error):
                raise
            return self.location

    def _prefers_relay(self) -> bool:
        if self.policy == "relay":
            self.relayed = True
            return True
        return (
            self.policy == "auto"
            and self.relayed
            and self._clock.boottime_ms() < self._direct_again_ms
        )

    async def _direct(self, request: CycleOpen, location: Location) -> OpenedStream:
        try:
            stream = await self._link.replicate(self._cap, location)
        except LinkFailed as error:
            raise _NotReached(str(error)) from error
        return await _answered(stream, request, location, relayed=False)

    async def _relay(self, request: CycleOpen, location: Location) -> OpenedStream:
        stream = await self._link.replicate_relayed(self._cap, self._replica_id)
        return await _answered(stream, request, location, relayed=True)

    async def _unless_moved(
        self, location: Location, work: Coroutine[Any, Any, OpenedStream]
    ) -> OpenedStream:
        """``work``, given up as soon as the owner is known to be elsewhere.

        Connecting to a dead host takes seconds; the relocation may be over before.
        """
        opening = asyncio.ensure_future(work)
        moving = asyncio.ensure_future(self._until_moved(location))
        try:
            await asyncio.wait({opening, moving}, return_when=asyncio.FIRST_COMPLETED)
            if opening.done():
                return opening.result()
            raise LinkFailed(f"the owner moved away from {location.node}")
        finally:
            await drop(opening, moving)

    async def _until_moved(self, location: Location) -> None:
        while True:
            await self._clock.sleep(LOCATE_AGAIN_MS)
            if await self.has_moved(location):
                return

    def _tell_route(self, opened: OpenedStream, cause: str) -> None:
        if opened.relayed == self.relayed:
            return
        self.relayed = opened.relayed
        way = "through the broker" if opened.relayed else "directly"
        self._events.write(
            "replication.route_changed",
            f"{self._vm_name} is now sent {way}: {cause}",
            severity=Severity.WARNING if opened.relayed else Severity.INFO,
            replica_id=self._replica_id,
            vm_name=self._vm_name,
            data={"route": "relay" if opened.relayed else "direct", "node": opened.location.node},
        )


async def _answered(
    stream: CycleStream, request: CycleOpen, location: Location, *, relayed: bool
) -> OpenedStream:
    try:
        reply = await stream.open(request)
    except BaseException:
        # Also when we are cancelled: a call nobody listens to must not live on at the node.
        await stream.cancel()
        raise
    return OpenedStream(stream, reply, location, relayed)
