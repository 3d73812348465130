"""Reports an initial replication as an operation that people can watch and cancel."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from node.service.replication_records import ReplicationRecords
from vmreplica.core.problems import Problem
from vmreplica.core.records import OperationRecord, OperationState
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import StoreError

log = logging.getLogger(__name__)
REPORT_EVERY_MS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported:
    """What there is to tell of a full transfer."""

    operation_id: str
    vm_name: str
    step: str
    done_bytes: int
    total_bytes: int


class OperationReporter:
    """Writes one VM's operation; a store that does not answer costs only the report.

    :param read: the present facts.
    :param on_cancel: called once when a person asks to cancel the operation.
    """

    def __init__(
        self,
        records: ReplicationRecords,
        clock: Clock,
        read: Callable[[], Reported],
        on_cancel: Callable[[], Awaitable[object]],
    ) -> None:
        self._records = records
        self._clock = clock
        self._read = read
        self._on_cancel = on_cancel

    async def run(self) -> None:
        """Report until cancelled, or until a person cancels the operation."""
        while True:
            await self._clock.sleep(REPORT_EVERY_MS)
            facts = self._read()
            known = self._records.operation(facts.operation_id)
            if known is not None and known.state is not OperationState.RUNNING:
                return
            if known is not None and known.cancel_requested:
                await self._on_cancel()
                return
            await self.write(OperationState.RUNNING)

    async def write(self, state: OperationState, problem: dict[str, str] | None = None) -> None:
        """Write the operation as it stands; one that has ended stays as it is."""
        facts = self._read()
        if not facts.operation_id:
            return
        known = self._records.operation(facts.operation_id)
        if known is not None and known.state is not OperationState.RUNNING:
            return
        ended = state is not OperationState.RUNNING
        record = OperationRecord(
            operation_id=facts.operation_id,
            verb="replication start",
            target=facts.vm_name,
            state=state,
            step=facts.step,
            done=facts.done_bytes,
            total=facts.total_bytes,
            unit="bytes",
            started_ms=known.started_ms if known else self._clock.wall_ms(),
            finished_ms=self._clock.wall_ms() if ended else 0,
            cancel_requested=known.cancel_requested if known else False,
            problem=problem,
        )
        try:
            await self._records.save_operation(record)
        except (StoreError, Problem) as error:
            log.warning("operation %s not written: %s", facts.operation_id, error)
