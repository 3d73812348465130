"""After a boot of the host: starts the protected VMs whose autostart was taken over.

libvirt must not do that by itself: the VM may have been failed over while the host was down.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import ReplicationRecord
from vmreplica.core.replication_state import ReplicationState
from vmreplica.ports.clock import Clock
from vmreplica.ports.event_log import EventLog, Severity
from vmreplica.ports.replica_link import LinkFailed, ReplicaLink
from vmreplica.ports.vm_host import VmHost

log = logging.getLogger(__name__)
UNREACHABLE_MS = 60_000
ASK_EVERY_MS = 2_000
_GONE_THERE = (ReplicationState.FAILED_OVER, ReplicationState.FAIL_OVER_WAITING_COMPLETION)


class BootStarter:
    """Asks the other side first; unreachable for 60 s, ``return_policy`` decides.

    :param return_policy: ``start`` or ``hold``.
    """

    def __init__(
        self,
        link: ReplicaLink,
        host: VmHost,
        clock: Clock,
        events: EventLog,
        return_policy: Callable[[], str],
    ) -> None:
        self._link = link
        self._host = host
        self._clock = clock
        self._events = events
        self._return_policy = return_policy

    async def start_due(self, records: Sequence[ReplicationRecord]) -> None:
        """Start what is due after a boot; nothing when only the agent was restarted."""
        if not await self._host.first_since_boot():
            return
        due = [record for record in records if record.autostart]
        await asyncio.gather(*(self._start(record) for record in due))

    async def _start(self, record: ReplicationRecord) -> None:
        if ReplicationState(record.state) in _GONE_THERE:
            self._tell(record, f"{record.vm_name} is not started: it runs on the other side")
            return
        answered = await self._answered(record)
        if not answered and self._return_policy() != "start":
            self._tell(record, f"{record.vm_name} is held: the other side cannot be asked")
            return
        try:
            if await self._host.start_vm(record.vm_uuid):
                known = "" if answered else ", though the other side could not be asked"
                self._tell(record, f"{record.vm_name} was started after the host's boot{known}")
        except Problem as problem:
            self._tell(record, f"{record.vm_name} could not be started: {problem.message}")

    async def _answered(self, record: ReplicationRecord) -> bool:
        until_ms = self._clock.boottime_ms() + UNREACHABLE_MS
        while True:
            try:
                await self._link.get_head(record.replica_access_point, record.replica_id)
                return True
            except LinkFailed as error:
                log.info("the other side of %s: %s", record.vm_name, error)
            except Problem as problem:
                if problem.reason is Reason.UNKNOWN_REPLICA:
                    return True
                log.info("the other side of %s: %s", record.vm_name, problem)
            if self._clock.boottime_ms() >= until_ms:
                return False
            await self._clock.sleep(ASK_EVERY_MS)

    def _tell(self, record: ReplicationRecord, message: str) -> None:
        self._events.write(
            "replication.state_changed",
            message,
            severity=Severity.WARNING,
            replica_id=record.replica_id,
            vm_name=record.vm_name,
        )
