"""One protected VM: its state, its rhythm, one cycle at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace

from node.service.bandwidth import Bandwidth, TokenBucket
from node.service.cycle_runner import (
    Basis,
    CyclePlan,
    CycleResult,
    CycleSummary,
    RunningCycle,
)
from node.service.policy_teller import PolicyTeller
from node.service.replication_basis import agreed_disks, find_basis, full_basis
from node.service.replication_progress import OperationReporter, Reported
from node.service.replication_tools import Tools
from node.service.sender_route import OwnerRoute, owner_in_doubt
from node.service.sender_timing import drop, wait_for_event
from vmreplica.core.cycle import CycleKind
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import OperationState, PolicyRecord, ReplicationRecord
from vmreplica.core.replication_state import Input, ReplicationState, Standing, ask, standing, step
from vmreplica.core.schedule import next_due, retry_delay_ms
from vmreplica.ports.change_source import SourceDeferred, SourceFailed, TrackingLost
from vmreplica.ports.cluster_store import StoreError
from vmreplica.ports.event_log import Severity
from vmreplica.ports.replica_link import LinkFailed, ReplicaHead

log = logging.getLogger(__name__)
_S = ReplicationState
DEFERRED_RETRY_MS = 5_000
_TELLS_OF_ANOTHER_HEAD = (Reason.PARENT_MISMATCH, Reason.SEQ_GAP)


class ProtectedVm:
    """Runs cycles while its state says so; verbs change the state under one lock."""

    def __init__(self, tools: Tools, record: ReplicationRecord) -> None:
        self._tools = tools
        self.record = record
        self.standing = _standing_of(record)
        self.head: ReplicaHead | None = None
        self._last_head: ReplicaHead | None = None
        self.running: RunningCycle | None = None
        self.last_cycle: CycleSummary | None = None
        self.initial_bytes = 0
        self.acked_seq = record.acked_seq
        self.acked_time_ms = record.acked_time_ms
        self.problem = record.last_problem
        self.deferred = ""
        self.route = OwnerRoute(
            tools.link,
            tools.clock,
            tools.events,
            cap=record.replica_access_point,
            replica_id=record.replica_id,
            vm_name=record.vm_name,
            policy=record.policy.route,
        )
        vm_bucket = TokenBucket(tools.clock, self._vm_rate)
        self._bandwidth = Bandwidth(tools.link_bucket, vm_bucket)
        self._reporter = OperationReporter(
            tools.records, tools.clock, self._reported, self._cancel_soon
        )
        self._teller = PolicyTeller(tools, lambda: self.record)
        self._definition = record.definition_digest
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._cycle: asyncio.Task[None] | None = None
        self._cancelling: asyncio.Task[bool] | None = None
        self._unsaved = False
        self._due_ms = tools.clock.boottime_ms()
        self._failures = 0
        self._trouble_since_ms = 0
        self.healthy_since_ms = tools.clock.boottime_ms()

    # --- the rhythm -------------------------------------------------------------------------

    async def run(self) -> None:
        """Cycle after cycle until cancelled."""
        telling = asyncio.ensure_future(self._teller.run())
        try:
            while True:
                self._changed.clear()
                await self._save_if_unsaved()
                wait_ms = self._wait_ms()
                if wait_ms is None:
                    await self._changed.wait()
                elif wait_ms > 0:
                    await wait_for_event(self._tools.clock, self._changed, wait_ms)
                elif self.standing.state is _S.READY_FOR_INITIAL:
                    await self.start(0)
                else:
                    await self._run_cycle()
        finally:
            await drop(telling)
            await self._stop_cycle()

    def _wait_ms(self) -> int | None:
        clock = self._tools.clock
        if self.standing.state is _S.READY_FOR_INITIAL and self.record.start_at_ms:
            # Wall time may step: look again at least every half minute.
            return max(0, min(30_000, self.record.start_at_ms - clock.wall_ms()))
        if not self.standing.sends or not self._tools.limits().replication_enabled:
            return 5_000 if self.standing.sends else None
        return max(0, self._due_ms - clock.boottime_ms())

    async def _run_cycle(self) -> None:
        self._cycle = asyncio.ensure_future(self._one_cycle())
        cycle = self._cycle
        try:
            await asyncio.wait({cycle})
        finally:
            if not cycle.done():
                await drop(cycle)
            if cycle.cancelled():
                # It may have been acknowledged in the very moment it was given up.
                self.head = None
            self._cycle = None
            self.running = None
        if not cycle.cancelled() and (error := cycle.exception()) is not None:
            # A bug: it must be seen, and must not end the protection of this VM.
            log.error("cycle of %s ended with a bug", self.record.vm_name, exc_info=error)
            self._note_failure(error)

    async def _one_cycle(self) -> None:
        began_ms = self._tools.clock.boottime_ms()
        try:
            result = await self._try_cycle()
        except TrackingLost as lost:
            await self._tracking_lost(str(lost))
        except SourceDeferred as deferred:
            if self.deferred != str(deferred):
                self._missed(str(deferred))
            self.deferred = str(deferred)
            wait_ms = min(self.record.policy.frequency_ms, DEFERRED_RETRY_MS)
            self._due_ms = self._tools.clock.boottime_ms() + wait_ms
        except SourceFailed as failed:
            self.head = None
            self._missed(str(failed))
            self._note_failure(failed)
        except (LinkFailed, Problem, StoreError) as error:
            settled, self.head = self.head is not None, None
            await self._failed(error, settled)
        else:
            await self._acknowledged(result, began_ms)

    async def _try_cycle(self) -> CycleResult:
        tools, record = self._tools, self.record
        head = await self._known_head()
        self.acked_seq, self.acked_time_ms = head.acked_seq, head.acked_time_ms
        basis = await self._next_basis(head)
        if basis.kind is CycleKind.FULL and basis.seq > 1:
            self._resync_begins()
        disks = agreed_disks(record, await tools.source.disks(record.vm_uuid))
        async with tools.slots.transfer(basis.kind):
            running = self.running = RunningCycle(basis.kind)
            plan = CyclePlan(
                replica_id=record.replica_id,
                vm_uuid=record.vm_uuid,
                basis=basis,
                cycle_id=tools.randomness.token(16),
                disks=disks,
                compression=record.policy.compression,
                frequency_ms=record.policy.frequency_ms,
                known_definition="" if basis.kind is CycleKind.FULL else self._definition,
            )
            reporting = asyncio.ensure_future(self._reporter.run())
            try:
                return await tools.runner.run(plan, self.route, self._bandwidth, running)
            except Problem as problem:
                if basis.since_cycle_id and _since_is_unknown(problem):
                    # The owner does not know the cycle this checkpoint counts from. Any other
                    # gap means that the head moved: then this checkpoint may be the last base.
                    await tools.source.forget(record.vm_uuid, basis.since_cycle_id)
                raise
            finally:
                await drop(reporting)

    async def _known_head(self) -> ReplicaHead:
        """What the owner says. While nobody can be asked: what it said last, unsettled."""
        if self.head is not None:
            return self.head
        record = self.record
        try:
            self.head = await self._tools.link.get_head(
                record.replica_access_point, record.replica_id
            )
        except (LinkFailed, Problem) as error:
            if self._last_head is None or not owner_in_doubt(error):
                raise
            return self._last_head
        self._last_head = self.head
        return self.head

    async def _next_basis(self, head: ReplicaHead) -> Basis:
        basis = await find_basis(
            self._tools.source, self.record.vm_uuid, head, settled=self.head is not None
        )
        if basis is not None:
            return basis
        if self.head is None:
            raise LinkFailed("what the other side holds is not known")
        if self.standing.origin is _S.REPLICATING:
            raise TrackingLost("no checkpoint of a cycle that the other side holds is left")
        return full_basis(head)

    # --- what came of a cycle ---------------------------------------------------------------

    async def _acknowledged(self, result: CycleResult, began_ms: int) -> None:
        clock, record = self._tools.clock, self.record
        known = self.head or self._last_head
        assert known is not None
        acknowledged, summary = result.acknowledged, result.summary
        self.head = self._last_head = replace(
            known,
            acked_seq=acknowledged.seq,
            acked_digest=acknowledged.cycle_digest,
            acked_cycle_id=result.cycle_id,
            acked_time_ms=result.point_time_ms,
            epoch=acknowledged.epoch,
        )
        self.acked_seq, self.acked_time_ms = acknowledged.seq, result.point_time_ms
        self.last_cycle, self._definition = summary, result.definition_digest
        self._failures, self.problem, self.deferred = 0, "", ""
        self.healthy_since_ms = clock.boottime_ms()
        self._event(
            "cycle.acknowledged",
            f"cycle {summary.seq} of {record.vm_name} was acknowledged",
            {
                "seq": str(summary.seq),
                "kind": summary.kind.value,
                "changed_bytes": str(summary.changed_bytes),
                "wire_bytes": str(summary.wire_bytes),
                "latency_ms": str(summary.latency_ms),
                "epoch": str(acknowledged.epoch),
            },
        )
        full = summary.kind is not CycleKind.DELTA
        if full:
            name = "initial.completed" if summary.seq == 1 else "resync.completed"
            self._event(name, f"all data of {record.vm_name} are on the other side")
        self._input(Input.FULL_ACKNOWLEDGED if full else Input.DELTA_ACKNOWLEDGED)
        if full:
            self.initial_bytes = summary.changed_bytes
            await self._reporter.write(OperationState.SUCCEEDED)
        due = next_due(began_ms, record.policy.frequency_ms, clock.boottime_ms())
        self._due_ms = due.at_ms
        if due.missed and not full:
            self._event(
                "cycle.missed",
                f"a cycle of {record.vm_name} took longer than its interval",
                {"missed": str(due.missed)},
                Severity.WARNING,
            )

    async def _tracking_lost(self, cause: str) -> None:
        self.head = None
        before = self.standing
        try:
            # What is left of our checkpoints must not pass for a base again.
            await self._tools.source.release(self.record.vm_uuid)
        except (Problem, SourceFailed, SourceDeferred) as error:
            log.warning("checkpoints of %s not removed: %s", self.record.vm_name, error)
        self._input(Input.TRACKING_LOST)
        self._due_ms = self._tools.clock.boottime_ms()
        if before.origin is _S.WAITING_FOR_INITIAL:
            self._note_failure(SourceFailed(cause))
        elif before != self.standing:
            self._event("resync.required", cause, severity=Severity.WARNING)
        else:
            self._note_failure(SourceFailed(cause))

    async def _failed(self, error: Exception, settled: bool) -> None:
        permanent = isinstance(error, Problem) and not error.retryable
        if isinstance(error, Problem) and error.reason in _TELLS_OF_ANOTHER_HEAD:
            # Asking for the head again settles it; only a repetition is an error.
            permanent = self._failures > 2 and settled
        self._note_failure(error)
        self._event("cycle.failed", str(error), _facts(error), Severity.WARNING)
        if permanent:
            self._input(Input.FAILED)
            await self._reporter.write(OperationState.RUNNING)

    def _note_failure(self, error: BaseException) -> None:
        now = self._tools.clock.boottime_ms()
        if not self._failures:
            self._trouble_since_ms = now
        self._failures += 1
        self.problem = str(error)
        self._due_ms = now + retry_delay_ms(
            self._failures,
            now - self._trouble_since_ms,
            isinstance(error, Exception) and owner_in_doubt(error),
            self.record.policy.frequency_ms,
            self._tools.randomness.uniform(0, 1),
        )

    def _missed(self, cause: str) -> None:
        self.problem = cause
        self._event("cycle.missed", cause, severity=Severity.WARNING)

    def _resync_begins(self) -> None:
        if self.standing.state is _S.RESYNCHRONIZING:
            return
        self._input(Input.RESYNC_BEGINS)
        self._event("resync.started", f"all data of {self.record.vm_name} are sent again")

    # --- verbs ------------------------------------------------------------------------------

    async def start(self, at_ms: int) -> bool:
        """Begin the initial replication now, or at a wall time."""
        async with self._lock:
            if at_ms:
                ask(self.standing, Input.START, self.record.vm_name)
                if self.standing.state is not _S.READY_FOR_INITIAL:
                    return False
                changed = self.record.start_at_ms != at_ms
                await self._write(replace(self.record, start_at_ms=at_ms))
                self._changed.set()
                return changed
            began = self.standing.state is _S.READY_FOR_INITIAL
            operation_id = self._tools.randomness.uuid() if began else self.record.operation_id
            changed = await self._verb(Input.START, start_at_ms=0, operation_id=operation_id)
            if began:
                self._event("initial.started", f"{self.record.vm_name} is sent in full")
                await self._reporter.write(OperationState.RUNNING)
            return changed

    async def stop_initial(self) -> bool:
        """Give the initial replication up; what the other side has of it falls."""
        async with self._lock:
            changed = await self._verb(Input.STOP_INITIAL, start_at_ms=0)
            if changed:
                await self._stop_cycle()
                await self._tools.source.release(self.record.vm_uuid)
                await self._reporter.write(OperationState.CANCELLED)
            return changed

    async def suspend(self) -> bool:
        """No further cycles; the tracker stays."""
        async with self._lock:
            changed = await self._verb(Input.SUSPEND)
            await self._stop_cycle()
            return changed

    async def resume(self) -> bool:
        """Go on where suspend left off, or try again now."""
        async with self._lock:
            self._failures, self._due_ms = 0, self._tools.clock.boottime_ms()
            self.healthy_since_ms = self._due_ms
            return await self._verb(Input.RESUME)

    async def change(self, policy: PolicyRecord) -> bool:
        """Take another policy."""
        async with self._lock:
            ask(self.standing, Input.SET, self.record.vm_name)
            if policy == self.record.policy:
                return False
            await self._write(replace(self.record, policy=policy))
            self.route.policy = policy.route
            if policy.route != "auto":
                self.route.relayed = policy.route == "relay"
            now = self._tools.clock.boottime_ms()
            self._due_ms = min(self._due_ms, now + policy.frequency_ms)
            self._changed.set()
            self._teller.tell()
            return True

    async def remove(self) -> None:
        """End the protection: no checkpoint, job or record stays. The replica stays as it is."""
        async with self._lock:
            ask(self.standing, Input.REMOVE, self.record.vm_name)
            await self._stop_cycle()
            await self._tools.source.release(self.record.vm_uuid)
            await self._tools.records.delete(self.record)
            await self._reporter.write(OperationState.CANCELLED)
            self.standing = standing(_S.NOT_ENABLED)

    async def _verb(self, verb: Input, **changes: int | str) -> bool:
        after = ask(self.standing, verb, self.record.vm_name)
        changed = after != self.standing or any(
            getattr(self.record, name) != value for name, value in changes.items()
        )
        if changed:
            record = replace(self.record, **changes)  # type: ignore[arg-type]
            await self._write(_with_standing(record, after))
            self._move_to(after)
        self._changed.set()
        return changed

    # --- small parts ------------------------------------------------------------------------

    def _input(self, what: Input) -> None:
        """A move that a cycle caused: it holds at once, the record follows when it can."""
        after = step(self.standing, what)
        if after is None or after == self.standing:
            return
        self._move_to(after)
        self._unsaved = True

    def _move_to(self, after: Standing) -> None:
        before, self.standing = self.standing, after
        if before.state is not after.state:
            self._event(
                "replication.state_changed",
                f"{self.record.vm_name}: {before.state.value} → {after.state.value}",
                {"from": before.state.value, "to": after.state.value},
            )

    async def _save_if_unsaved(self) -> None:
        if not self._unsaved:
            return
        async with self._lock:
            try:
                await self._write(_with_standing(self.record, self.standing))
                self._unsaved = False
            except (StoreError, Problem) as error:
                # Replication goes on without the store; the record is written with the next cycle.
                log.warning("record of %s not written: %s", self.record.vm_name, error)

    async def _write(self, record: ReplicationRecord) -> None:
        record = replace(
            record,
            acked_seq=self.acked_seq,
            acked_time_ms=self.acked_time_ms,
            definition_digest=self._definition,
            last_problem=self.problem,
        )
        await self._tools.records.save(record)
        self.record = record

    async def _stop_cycle(self) -> None:
        if self._cycle is not None:
            await drop(self._cycle)

    def _reported(self) -> Reported:
        progress = self.running.progress if self.running else None
        return Reported(
            operation_id=self.record.operation_id,
            vm_name=self.record.vm_name,
            step=self.standing.state.value,
            done_bytes=progress.done_bytes if progress else 0,
            total_bytes=progress.total_bytes if progress else 0,
        )

    async def _cancel_soon(self) -> None:
        # In a task of its own: it ends the cycle in which the reporter runs.
        self._cancelling = asyncio.ensure_future(self.stop_initial())

    def _vm_rate(self) -> int:
        own = self.record.policy.bandwidth_limit_bytes_per_s
        return own or self._tools.limits().vm_bandwidth_limit_bytes_per_s

    def _event(
        self,
        name: str,
        message: str,
        data: Mapping[str, str] | None = None,
        severity: Severity = Severity.INFO,
    ) -> None:
        self._tools.events.write(
            name,
            message,
            severity=severity,
            replica_id=self.record.replica_id,
            vm_name=self.record.vm_name,
            data=data,
        )


def _standing_of(record: ReplicationRecord) -> Standing:
    state = ReplicationState(record.state)
    return Standing(state, ReplicationState(record.suspended_from or record.state))


def _with_standing(record: ReplicationRecord, now: Standing) -> ReplicationRecord:
    return replace(record, state=now.state.value, suspended_from=now.origin.value)


def _since_is_unknown(problem: Problem) -> bool:
    return problem.reason is Reason.SEQ_GAP and problem.field == "open.since_cycle_id"


def _facts(error: Exception) -> dict[str, str]:
    return {"reason": error.reason.value} if isinstance(error, Problem) else {}
