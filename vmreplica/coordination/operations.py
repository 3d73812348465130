"""Long-running verbs as records in the store: made, advanced, cancelled, finished, waited for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vmreplica.coordination.shared_lease import SharedLease
from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import OperationRecord, OperationState, parse, render
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import (
    ClusterStore,
    Get,
    KeyValue,
    OutcomeUnknown,
    Put,
    StoreError,
    StoreUnavailable,
    absent,
    unchanged,
)
from vmreplica.ports.randomness import Randomness

FINISHED_KEPT_MS = 24 * 3_600_000
PROGRESS_EVERY_MS = 1_000
POLL_MS = 500


class Operations:
    """All operations of one cluster.

    A running one has no lease: it outlives its process, whose successor takes it up or fails it.
    A finished one is kept for 24 h. A finished one never changes again.
    """

    def __init__(
        self, store: ClusterStore, clock: Clock, randomness: Randomness, keys: Keys
    ) -> None:
        self._store = store
        self._clock = clock
        self._randomness = randomness
        self._keys = keys
        self._kept = SharedLease(store, clock, keep_ms=FINISHED_KEPT_MS)

    async def create(
        self, verb: str, target: str, *, operation_id: str = "", unit: str = "", step: str = ""
    ) -> RunningOperation:
        """Begin an operation; with an ``operation_id`` that exists already, take that one up.

        :raises StoreUnavailable, OutcomeUnknown: repeat with the same ``operation_id``.
        """
        record = OperationRecord(
            operation_id=operation_id or self._randomness.uuid(),
            verb=verb,
            target=target,
            step=step,
            unit=unit,
            started_ms=self._clock.wall_ms(),
        )
        key = self._keys.operation(record.operation_id)
        result = await self._store.transaction(
            [absent(key)], [Put(key, render(record))], [Get(key)]
        )
        if result.succeeded:
            return RunningOperation(self, self._clock, record)
        (known,) = result.reads
        assert known is not None
        return RunningOperation(self, self._clock, parse(OperationRecord, known.value))

    async def resume(self, operation_id: str) -> RunningOperation:
        """The handle of an operation that another process began. :raises Problem: unknown."""
        return RunningOperation(self, self._clock, await self.get(operation_id))

    async def get(self, operation_id: str) -> OperationRecord:
        """The newest state. :raises Problem: UNKNOWN_OPERATION. :raises StoreUnavailable:"""
        return parse(OperationRecord, (await self._read(operation_id)).value)

    async def list(self) -> list[OperationRecord]:
        """All, running and finished, oldest first. :raises StoreUnavailable:"""
        found: list[OperationRecord] = []
        after = ""
        revision = 0
        while True:
            page = await self._store.range(
                self._keys.operations, limit=500, after_key=after, revision=revision
            )
            found.extend(parse(OperationRecord, kv.value) for kv in page.items)
            if not page.more:
                return sorted(found, key=lambda r: (r.started_ms, r.operation_id))
            after, revision = page.items[-1].key, page.revision

    async def update(self, operation_id: str, **changes: Any) -> OperationRecord:
        """Change fields of a running operation; a finished one is returned as it is.

        :raises Problem: UNKNOWN_OPERATION. :raises StoreUnavailable, OutcomeUnknown:
        """
        while True:
            kv = await self._read(operation_id)
            record = parse(OperationRecord, kv.value)
            if record.state is not OperationState.RUNNING:
                return record
            changed = replace(record, **changes)
            finished = changed.state is not OperationState.RUNNING
            lease_id = await self._kept.lease_id() if finished else 0
            result = await self._store.transaction(
                [unchanged(kv.key, kv.mod_revision)], [Put(kv.key, render(changed), lease_id)]
            )
            if result.succeeded:
                return changed

    async def finish(
        self,
        operation_id: str,
        state: OperationState,
        *,
        problem: dict[str, str] | None = None,
        result: dict[str, str] | None = None,
        step: str = "",
    ) -> OperationRecord:
        """The end. Repeats while the outcome is unknown: a finished operation stays as it is.

        :raises Problem: UNKNOWN_OPERATION. :raises StoreUnavailable:
        """
        changes: dict[str, Any] = {
            "state": state,
            "problem": problem,
            "result": result,
            "finished_ms": self._clock.wall_ms(),
        }
        if step:
            changes["step"] = step
        while True:
            try:
                return await self.update(operation_id, **changes)
            except OutcomeUnknown:
                await self._clock.sleep(POLL_MS)

    async def request_cancel(self, operation_id: str) -> OperationRecord:
        """Ask it to stop; who runs it decides when. :raises Problem, StoreUnavailable:"""
        try:
            return await self.update(operation_id, cancel_requested=True)
        except OutcomeUnknown:
            return await self.update(operation_id, cancel_requested=True)

    async def wait(self, operation_id: str, timeout_ms: int = 0) -> OperationRecord:
        """Until it is finished, or ``timeout_ms`` is over (0: no limit): the newest state.

        :raises Problem: UNKNOWN_OPERATION.
        """
        give_up_at_ms = self._clock.boottime_ms() + timeout_ms
        while True:
            try:
                record = await self.get(operation_id)
            except StoreUnavailable:
                if timeout_ms and self._clock.boottime_ms() >= give_up_at_ms:
                    raise
            else:
                if record.state is not OperationState.RUNNING:
                    return record
                if timeout_ms and self._clock.boottime_ms() >= give_up_at_ms:
                    return record
            await self._clock.sleep(POLL_MS)

    async def _read(self, operation_id: str) -> KeyValue:
        kv = await self._store.get(self._keys.operation(operation_id)) if operation_id else None
        if kv is None:
            raise Problem(
                Reason.UNKNOWN_OPERATION,
                f"There is no operation {operation_id!r}; finished ones are kept for a day.",
                field="operation_id",
                value=operation_id,
                remedy="vmrctl operation list shows what there is.",
            )
        return kv


class RunningOperation:
    """The handle of whoever performs the verb."""

    def __init__(self, operations: Operations, clock: Clock, record: OperationRecord) -> None:
        self._operations = operations
        self._clock = clock
        self._written_ms = clock.boottime_ms()
        self.record = record

    @property
    def operation_id(self) -> str:
        """Its id."""
        return self.record.operation_id

    @property
    def cancel_requested(self) -> bool:
        """As of the last write or :meth:`refresh`."""
        return self.record.cancel_requested

    async def refresh(self) -> OperationRecord:
        """Read it anew, e.g. for a wish to cancel. :raises StoreUnavailable:"""
        self.record = await self._operations.get(self.operation_id)
        return self.record

    async def progress(
        self, *, step: str | None = None, done: int | None = None, total: int | None = None
    ) -> None:
        """Show where it stands: at most one write a second, but a new ``step`` at once.

        A store that cannot be reached is no reason to stop working: the next call writes.
        """
        wished: dict[str, Any] = {"step": step, "done": done, "total": total}
        changes = {name: value for name, value in wished.items() if value is not None}
        new_step = step is not None and step != self.record.step
        now_ms = self._clock.boottime_ms()
        if not new_step and now_ms - self._written_ms < PROGRESS_EVERY_MS:
            return
        self._written_ms = now_ms
        try:
            self.record = await self._operations.update(self.operation_id, **changes)
        except StoreError:
            return

    async def succeed(self, result: dict[str, str] | None = None) -> None:
        """The verb is done."""
        self.record = await self._operations.finish(
            self.operation_id, OperationState.SUCCEEDED, result=result
        )

    async def fail(self, problem: Problem) -> None:
        """The verb ended with a problem."""
        self.record = await self._operations.finish(
            self.operation_id, OperationState.FAILED, problem=problem_fields(problem)
        )

    async def cancelled(self) -> None:
        """The verb stopped because it was asked to."""
        self.record = await self._operations.finish(self.operation_id, OperationState.CANCELLED)


def problem_fields(problem: Problem) -> dict[str, str]:
    """A problem as the text fields that an operation record keeps; empty ones are left out."""
    fields = {
        "reason": str(problem.reason),
        "message": problem.message,
        "field": problem.field,
        "value": problem.value,
        "remedy": problem.remedy,
        "retryable": "true" if problem.retryable else "",
        "cap": problem.cap,
        "node": problem.node,
        "epoch": str(problem.epoch) if problem.epoch else "",
    }
    return {name: value for name, value in fields.items() if value}
