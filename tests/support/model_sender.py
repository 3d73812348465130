"""A client of its own that sends cycles as the interfaces describe them, run on a host of a lab.

Reads one JSON command a line, answers with JSON lines: ``{"at": …}`` where it stands, and at the
end of each command ``{"done": …}`` or ``{"problem": …}``. It goes on at the next owner by itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.model_source import cluster
from vmreplica.adapters.grpc_channels import ChannelPool
from vmreplica.adapters.grpc_replica_link import GrpcReplicaLink
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.tls import TlsFiles
from vmreplica.core.cycle import (
    ZERO_DIGEST,
    Acknowledged,
    CycleClose,
    CycleKind,
    CycleOpen,
    Disk,
    Frame,
    cycle_digest,
    digest,
)
from vmreplica.core.problems import Problem
from vmreplica.ports.replica_link import CycleStream, LinkFailed, Location, NewReplica, ReplicaHead
from vmreplica.testing.frame_maker import make_frames

_SILENCE_S = 1.0
_GIVE_UP_S = 45.0


class OwnerMoved(Exception):
    """Another epoch than the stream's is in force."""


def say(**words: Any) -> None:
    """One line to the test."""
    print(json.dumps(words), flush=True)


@dataclass(slots=True)
class _Pending:
    """A cycle that is not acknowledged yet; the same frames whatever owner gets them."""

    request: CycleOpen
    frames: list[Frame]
    close: CycleClose
    command: dict[str, Any]
    resumes: int = 0


class Sender:
    """One replica of one model."""

    def __init__(self, cap: str, certificate: Path, ca: Path, access_point: str) -> None:
        files = TlsFiles(certificate, certificate.with_suffix(".key"), ca)
        self._link = GrpcReplicaLink(ChannelPool(files, SystemClock()))
        self._cap = cap
        self._access_point = access_point
        self._disks: tuple[Disk, ...] = ()
        self._replica_id = ""
        self._pending: _Pending | None = None

    async def create(self, command: dict[str, Any]) -> dict[str, Any]:
        """Admission; the same again answers the same replica."""
        self._disks = tuple(Disk(t, size) for t, size in command["disks"].items())
        request = NewReplica(
            vm_uuid=command["vm_uuid"],
            vm_name=command["vm_name"],
            disks=self._disks,
            domain_xml=command.get("domain_xml", "").encode(),
            primary_access_point=self._access_point,
            frequency_ms=5_000,
        )
        head = await self._link.create_replica(self._cap, request, command["request_id"])
        self._replica_id = head.replica_id
        return _shown(head)

    async def adopt(self, command: dict[str, Any]) -> dict[str, Any]:
        """Speak of a replica that another has created."""
        self._replica_id = command["replica_id"]
        self._disks = tuple(Disk(t, size) for t, size in command["disks"].items())
        return {}

    async def locate(self, _: dict[str, Any]) -> dict[str, Any]:
        """Where the owner is."""
        found = await self._link.locate(self._cap, self._replica_id)
        return {"node": found.node, "epoch": found.epoch, "address": found.address}

    async def head(self, _: dict[str, Any]) -> dict[str, Any]:
        """The head, asked of the owner; waits for one."""
        return _shown(await self._head())

    async def head_once(self, _: dict[str, Any]) -> dict[str, Any]:
        """The head, or the problem of the first answer."""
        return _shown(await self._link.get_head(self._cap, self._replica_id))

    async def replicate_at(self, command: dict[str, Any]) -> dict[str, Any]:
        """An open by hand at a node that is named, or by relay; whether it was accepted."""
        request = CycleOpen(
            replica_id=self._replica_id,
            epoch=command["epoch"],
            seq=command["seq"],
            parent_digest=bytes.fromhex(command["parent"]),
            kind=CycleKind.DELTA,
            disks=self._disks,
            cycle_id=os.urandom(16),
            since_cycle_id=bytes.fromhex(command["since"]),
        )
        if command.get("relay"):
            stream: CycleStream = await self._link.replicate_relayed(self._cap, self._replica_id)
        else:
            place = Location(
                replica_id=self._replica_id,
                node=command["node"],
                address=f"{command['node']}.lab:7444",
                server_name=f"{command['node']}.lab",
                epoch=command["epoch"],
            )
            stream = await self._link.replicate(self._cap, place)
        try:
            await stream.open(request)
        finally:
            await stream.cancel()
        return {"accepted": True}

    async def _head(self) -> ReplicaHead:
        end = time.monotonic() + _GIVE_UP_S
        while True:
            try:
                return await self._link.get_head(self._cap, self._replica_id)
            except (Problem, LinkFailed) as error:
                if time.monotonic() > end:
                    raise
                say(at="doubt", error=str(error))
                await asyncio.sleep(0.2)

    async def cycle(self, command: dict[str, Any]) -> dict[str, Any]:
        """One cycle until it is acknowledged, by whatever owner.

        With ``stop`` it ends with ``cut`` at the first break; ``resume`` goes on.
        """
        before = await self._head()
        delta = command["kind"] == "Delta"
        request = CycleOpen(
            replica_id=self._replica_id,
            epoch=before.epoch,
            seq=before.acked_seq + 1,
            parent_digest=before.acked_digest if before.acked_seq else ZERO_DIGEST,
            kind=CycleKind(command["kind"]),
            disks=self._disks,
            cycle_id=os.urandom(16),
            since_cycle_id=before.acked_cycle_id if delta else b"",
        )
        self._pending = _Pending(
            request, self._frames(command), self._close(command, request), command
        )
        return await self._finish(self._pending, stop=bool(command.get("stop")))

    async def resume(self, _: dict[str, Any]) -> dict[str, Any]:
        """Go on with the cycle that was cut, until it is acknowledged."""
        assert self._pending is not None
        self._pending.resumes += 1
        return await self._finish(self._pending, stop=False)

    async def _finish(self, pending: _Pending, *, stop: bool) -> dict[str, Any]:
        end = time.monotonic() + _GIVE_UP_S
        while True:
            try:
                place = await self._link.locate(self._cap, self._replica_id)
                acknowledged = await self._attempt(place, pending)
                return {
                    "seq": acknowledged.seq,
                    "epoch": acknowledged.epoch,
                    "node": place.node,
                    "duplicate": acknowledged.duplicate,
                    "resumes": pending.resumes,
                }
            except (LinkFailed, OwnerMoved, Problem) as error:
                if isinstance(error, Problem) and not error.retryable:
                    raise
                if time.monotonic() > end:
                    raise
                say(at="retry", error=str(error))
                if stop:
                    return {"cut": str(error)}
                pending.resumes += 1
                await asyncio.sleep(0.1)

    def _frames(self, command: dict[str, Any]) -> list[Frame]:
        frames: list[Frame] = []
        for number, disk in enumerate(self._disks):
            table = {int(i): n for i, n in command["clusters"].get(disk.target, {}).items()}
            size = disk.size_bytes
            clusters = {i: cluster(size, i, n) if n else None for i, n in sorted(table.items())}
            frames += make_frames(clusters, disk=number)
        return frames

    def _close(self, command: dict[str, Any], request: CycleOpen) -> CycleClose:
        tables = [command["clusters"].get(d.target, {}) for d in self._disks]
        digests = [
            {int(i): digest(cluster(disk.size_bytes, int(i), n)) for i, n in table.items()}
            for disk, table in zip(self._disks, tables, strict=True)
        ]
        return CycleClose(
            clusters=sum(len(t) for t in tables),
            cycle_digest=cycle_digest(request.parent_digest, request.seq, self._disks, digests),
            point_time_ms=time.time_ns() // 1_000_000,
        )

    async def _attempt(self, place: Location, pending: _Pending) -> Acknowledged:
        request = replace(pending.request, epoch=place.epoch, resume=pending.resumes > 0)
        if pending.command.get("relay"):
            stream: CycleStream = await self._link.replicate_relayed(self._cap, place.replica_id)
        else:
            stream = await self._link.replicate(self._cap, place)
        listener: asyncio.Task[Acknowledged] | None = None
        try:
            say(at="open", node=place.node, epoch=place.epoch)
            async with asyncio.timeout(5):
                reply = await stream.open(request)
            if isinstance(reply, Acknowledged):
                return reply
            say(at="accepted", durable=reply.durable_frames)
            listener = asyncio.ensure_future(self._listen(stream, place))
            await self._send(stream, listener, pending, reply.durable_frames)
            return await listener
        except TimeoutError as error:
            raise LinkFailed("no answer to the open") from error
        finally:
            if listener is not None:
                listener.cancel()
            await stream.cancel()

    async def _listen(self, stream: CycleStream, place: Location) -> Acknowledged:
        """Until the acknowledgement. Cycles of tests stay below the sender's window."""
        while True:
            reply = await self._heard(stream, place)
            if isinstance(reply, Acknowledged):
                return reply
            say(at="durable", frames=reply.durable_frames)

    async def _send(
        self, stream: CycleStream, listener: asyncio.Task[Any], pending: _Pending, first: int
    ) -> None:
        for number, frame in enumerate(pending.frames[first:], first):
            if listener.done():
                return
            await stream.send(frame)
            say(at="frame", number=number)
            await asyncio.sleep(pending.command.get("pause_ms", 0) / 1000)
        say(at="closing")
        await stream.send(pending.close)
        say(at="closed")

    async def _heard(self, stream: CycleStream, place: Location) -> Any:
        """The next answer; a silent owner that is no longer the owner is left."""
        reading = asyncio.ensure_future(stream.receive())
        try:
            while True:
                done, _ = await asyncio.wait({reading}, timeout=_SILENCE_S)
                if done:
                    return reading.result()
                try:
                    now = await self._link.locate(self._cap, self._replica_id)
                except (Problem, LinkFailed):
                    continue
                if now.epoch > place.epoch:
                    raise OwnerMoved(f"epoch {now.epoch} is in force")
        finally:
            reading.cancel()


def _shown(head: ReplicaHead) -> dict[str, Any]:
    return {
        "replica_id": head.replica_id,
        "owner": head.owner,
        "epoch": head.epoch,
        "acked_seq": head.acked_seq,
        "acked_digest": head.acked_digest.hex(),
        "acked_cycle_id": head.acked_cycle_id.hex(),
        "trust_group": head.trust_group,
    }


async def main(cap: str, certificate: str, ca: str, access_point: str) -> None:
    """Obey until standard input ends."""
    sender = Sender(cap, Path(certificate), Path(ca), access_point)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        try:
            say(done=await getattr(sender, command["do"])(command))
        except Problem as problem:
            say(problem={"reason": problem.reason.value, "message": problem.message})
        except LinkFailed as error:
            say(problem={"reason": "LINK_FAILED", "message": str(error)})


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
