"""Test failover of the newest point: start, stop, and what a crash left half done.

The replica record says that a test runs, where and as which operation; it is written before
anything is made. The manifest names the overlays and pins the files below them. Stopping
destroys the VM and says so in the record; the owner's task then drops pin and overlays
(Keeper, ``ReplicaActor.tidy``), whoever the owner is by then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

import zstandard

from node.service.keeper import Keeper
from node.service.replica_actor import ReplicaActor, Session
from node.service.replica_parts import ReplicaParts
from node.service.replica_wait import cancelled, to_the_end
from vmreplica.coordination.operations import Operations, RunningOperation
from vmreplica.core.domain_xml import check_networks
from vmreplica.core.manifest import FileDigest, Pin, Run
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.receiving_manifest import with_run
from vmreplica.core.records import (
    NodeRecord,
    ReplicaRecord,
    TestFailoverRecord,
    parse,
)
from vmreplica.ports.cluster_store import OutcomeUnknown, StoreUnavailable
from vmreplica.ports.event_log import Severity
from vmreplica.ports.replica_store import StorageFailed
from vmreplica.ports.vm_host import RunningDisk, VmHost

_log = logging.getLogger(__name__)
_LOOK_MS = 10_000
_SMALL_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class StartedTest:
    """A test failover that is being brought up, or runs already."""

    operation_id: str
    domain_name: str
    node: str


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A named run, ready to be started."""

    disks: tuple[RunningDisk, ...]
    definition_xml: str
    nvram: bytes
    tpm_state: bytes


class TestFailovers:
    """Starts and stops test VMs on this node.

    :param console_directory: where the test VMs' first serial ports are logged.
    """

    __test__ = False  # the name begins like a test class; this is none

    def __init__(
        self,
        parts: ReplicaParts,
        keeper: Keeper,
        host: VmHost,
        operations: Operations,
        console_directory: str,
    ) -> None:
        self._parts = parts
        self._keeper = keeper
        self._host = host
        self._operations = operations
        self._console_directory = console_directory
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._sweeping = asyncio.Lock()
        """No test begins between the look at its record and the end of its predecessor's VM."""

    async def start(self, replica_id: str, point: str, networks: Mapping[str, str]) -> StartedTest:
        """Begin a test failover; the same verb twice answers the one that runs.

        :param point: "", "latest" or the newest point's seq.
        :param networks: card → network or "none"; cards that are not named stay unplugged.
        :raises Problem: NOT_OWNER, STATE_REFUSES, POINT_NOT_FOUND, NETWORK_UNKNOWN, …
        """
        actor = await self._keeper.locate(replica_id)
        session = await actor.serving(2_000)
        test = actor.record.test_failover
        if test.running:
            return StartedTest(test.operation_id, test.domain_name, test.node)
        seq = _chosen(session, point)
        plugged = {card: name for card, name in networks.items() if name not in ("", "none")}
        if plugged:
            check_networks(plugged, await self._host.networks())
        actor.check_deadline()
        operation = await self._operations.create("failover test start", replica_id)
        begun = TestFailoverRecord(
            running=True,
            operation_id=operation.operation_id,
            domain_name=f"{actor.record.domain_name} - Test",
            node=self._parts.node,
            seq=seq,
            last_time_ms=self._parts.clock.wall_ms(),
        )
        async with self._sweeping:
            record = await self._keeper.records.change(
                replica_id,
                lambda r: r if r.test_failover.running else replace(r, test_failover=begun),
            )
        actor.update(record)
        test = record.test_failover
        if test.operation_id == operation.operation_id:
            work = self._bring_up(actor, session, operation, plugged)
            self._busy[replica_id] = asyncio.ensure_future(work)
        else:
            await operation.succeed({"domain_name": test.domain_name})
        return StartedTest(test.operation_id, test.domain_name, test.node)

    async def stop(self, replica_id: str) -> str:
        """Destroy the test VM of a replica; the operation's id, "" when none ran.

        :raises Problem: NOT_OWNER naming the living node where it runs, UNKNOWN_REPLICA.
        """
        await self._keeper.records.refresh(replica_id)
        record = self._keeper.records.cached_record(replica_id)
        if record is None or not record.test_failover.running:
            await self._host.stop_test_vm(replica_id)
            return ""
        node = record.test_failover.node
        if node != self._parts.node and self._lives(node):
            raise Problem(
                Reason.NOT_OWNER,
                f"the test VM runs on node {node}",
                field="vm",
                value=replica_id,
                remedy="ask the client access point; it forwards the call",
                node=node,
            )
        operation = await self._operations.create("failover test stop", replica_id)
        busy = self._busy.pop(replica_id, None)
        if busy is not None:
            await cancelled(busy)
        await self._end(record, "stopped")
        await operation.succeed()
        return operation.operation_id

    async def run(self) -> None:
        """At start and every 10 s: tests recorded here without a VM, VMs without a record."""
        parts = self._parts
        await parts.cache.ready()
        try:
            while True:
                for kv in parts.cache.items(parts.keys.replicas):
                    record = parse(ReplicaRecord, kv.value)
                    test = record.test_failover
                    if test.running and test.node == parts.node and parts.standing.may_act():
                        await self._look_at(record)
                await self._sweep()
                await parts.clock.sleep(_LOOK_MS)
        finally:
            await cancelled(*self._busy.values())

    async def _look_at(self, record: ReplicaRecord) -> None:
        busy = self._busy.get(record.replica_id)
        if busy is not None and not busy.done():
            return
        try:
            if not await self._host.test_vm_running(record.replica_id):
                await self._end(record, "the test VM ended by itself or with its host")
        except (Problem, StoreUnavailable, OutcomeUnknown) as failed:
            _log.info("test VM of %s not looked at: %s", record.replica_id, failed)

    async def _sweep(self) -> None:
        """A hypervisor that answered too late has made a VM that its record has given up."""
        try:
            for replica_id in await self._host.running_tests():
                async with self._sweeping:
                    await self._stop_if_unknown(replica_id)
        except (Problem, StoreUnavailable, OutcomeUnknown) as failed:
            _log.info("test VMs of this host not looked at: %s", failed)

    async def _stop_if_unknown(self, replica_id: str) -> None:
        busy = self._busy.get(replica_id)
        if busy is not None and not busy.done():
            return
        records = self._keeper.records
        await records.refresh(replica_id)
        record = records.cached_record(replica_id)
        if record is None:
            return  # Perhaps another cluster's, or another daemon's of this host.
        test = record.test_failover
        if test.running and test.node == self._parts.node:
            return
        if await self._host.stop_test_vm(replica_id):
            _log.warning("a test VM of %s ran here without a record; stopped", record.vm_name)

    async def _bring_up(
        self,
        actor: ReplicaActor,
        session: Session,
        operation: RunningOperation,
        networks: dict[str, str],
    ) -> None:
        record = actor.record
        self._event(
            record, "failover.test.started", f"test failover of cycle {record.test_failover.seq}"
        )
        try:
            await operation.progress(step="pinning files")
            prepared = await actor.submit(
                session, lambda s: self._name_run(actor, s, operation.operation_id)
            )
            await operation.progress(step="starting the test VM")
            await self._start_vm(actor, prepared, networks)
            await operation.succeed({"domain_name": record.test_failover.domain_name})
            self._event(record, "failover.test.completed", "the test VM runs")
        except (Problem, StorageFailed, StoreUnavailable, OutcomeUnknown, zstandard.ZstdError) as e:
            problem = e if isinstance(e, Problem) else Problem(Reason.INTERNAL, str(e))
            _log.warning("test failover of %s failed: %s", record.replica_id, problem)
            self._event(record, "failover.test.failed", str(problem), Severity.ERROR)
            await self._give_up(record, operation, problem)

    async def _give_up(
        self, record: ReplicaRecord, operation: RunningOperation, problem: Problem
    ) -> None:
        try:
            await self._end(record, f"failed: {problem.message}")
            await operation.fail(problem)
        except (Problem, StoreUnavailable, OutcomeUnknown) as failed:
            # The periodic look finds the record and ends the test then.
            _log.warning("test failover of %s not cleaned up yet: %s", record.replica_id, failed)

    async def _name_run(
        self, actor: ReplicaActor, session: Session, operation_id: str
    ) -> _Prepared:
        """Job: overlays made, then named together with the pin in one manifest."""
        manifest, folder = session.manifest, session.folder
        actor.check_deadline()
        if manifest.head.definition.xml is None:
            raise Problem(
                Reason.STATE_REFUSES,
                "no definition of the VM has arrived yet",
                remedy="wait for the next cycle",
            )
        disks: list[RunningDisk] = []
        overlays: list[tuple[str, str]] = []
        files: list[str] = []
        for disk in manifest.disks:
            if disk.excluded:
                continue
            chain = manifest.chain(disk.target)
            name = await folder.create_overlay(operation_id, disk, session.epoch, chain)
            overlays.append((disk.target, name))
            files += chain
            disks.append(
                RunningDisk(
                    target=disk.target,
                    overlay=f"{folder.path}/{name}",
                    chain=tuple(f"{folder.path}/{file}" for file in chain),
                )
            )
        run = Run(operation_id=operation_id, seq=manifest.head.seq, overlays=tuple(overlays))
        pin = Pin(
            operation_id=operation_id,
            node=self._parts.node,
            incarnation=session.incarnation,
            files=tuple(files),
        )
        definition = manifest.head.definition
        xml = (await folder.read_small(manifest.head.definition.xml)).decode()
        nvram = await _unpacked(session, definition.nvram)
        tpm_state = await _unpacked(session, definition.tpm)
        await actor.commit(session, with_run(manifest, run, pin))
        return _Prepared(tuple(disks), xml, nvram, tpm_state)

    async def _start_vm(
        self, actor: ReplicaActor, prepared: _Prepared, networks: dict[str, str]
    ) -> None:
        record = actor.record
        actor.check_deadline()
        # A stop in the middle must find the VM that the hypervisor makes meanwhile.
        await to_the_end(
            self._host.start_test_vm(
                prepared.definition_xml,
                domain_name=record.test_failover.domain_name,
                replica_id=record.replica_id,
                vm_uuid=self._parts.randomness.uuid(),
                disks=prepared.disks,
                networks=networks,
                nvram=prepared.nvram,
                tpm_state=prepared.tpm_state,
                console_log=f"{self._console_directory}/{record.replica_id}.log",
            )
        )

    async def _end(self, record: ReplicaRecord, result: str) -> None:
        """The VM is destroyed here if it runs here; then the record says so."""
        operation_id = record.test_failover.operation_id
        await self._host.stop_test_vm(record.replica_id)

        def over(r: ReplicaRecord) -> ReplicaRecord:
            if r.test_failover.operation_id != operation_id or not r.test_failover.running:
                return r
            now = self._parts.clock.wall_ms()
            ended = replace(r.test_failover, running=False, last_time_ms=now, last_result=result)
            return replace(r, test_failover=ended)

        await self._keeper.records.change(record.replica_id, over)

    def _lives(self, node: str) -> bool:
        prefix = f"{self._parts.keys.nodes}{node}/"
        return any(
            parse(NodeRecord, kv.value).name == node for kv in self._parts.cache.items(prefix)
        )

    def _event(
        self, record: ReplicaRecord, name: str, text: str, severity: Severity = Severity.INFO
    ) -> None:
        self._parts.events.write(
            name, text, severity=severity, replica_id=record.replica_id, vm_name=record.vm_name
        )


def _chosen(session: Session, point: str) -> int:
    head = session.manifest.head
    if head.seq == 0:
        raise Problem(
            Reason.STATE_REFUSES,
            "the initial replication is not complete: there is no point to start from",
            remedy="wait for the initial replication",
        )
    if point in ("", "latest", str(head.seq)):
        return head.seq
    raise Problem(
        Reason.POINT_NOT_FOUND,
        f"point {point} is not kept; the newest is {head.seq}",
        field="point",
        value=point,
        remedy="use latest, or list the points with: vmrctl replica points",
    )


async def _unpacked(session: Session, file: FileDigest | None) -> bytes:
    if file is None:
        return b""
    packed = await session.folder.read_small(file)
    if zstandard.frame_content_size(packed) > _SMALL_BYTES:
        raise Problem(
            Reason.BAD_COMPRESSION,
            f"{file.file} says that it holds more than 64 MiB",
            field="file",
            value=file.file,
            remedy="send the definition again with the next cycle",
        )
    return zstandard.ZstdDecompressor().decompress(packed, max_output_size=_SMALL_BYTES)
