"""Telling the other side what the policy of a protected VM is: it judges lateness by it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from node.service.replication_tools import Tools
from node.service.sender_timing import wait_for_event
from vmreplica.core.problems import Problem
from vmreplica.core.records import ReplicationRecord
from vmreplica.ports.replica_link import LinkFailed

log = logging.getLogger(__name__)
AGAIN_MS = 10_000
"""After a failure that passes: the other side is away, or without a leader."""
REFUSED_AGAIN_MS = 300_000
START_SPREAD_MS = 5_000
"""An agent with many VMs does not tell of all at once when it starts."""


class PolicyTeller:
    """Beside the cycles, never in their way: no cycle waits for an access point that is away.

    :param record: the record in force; its policy is told once after start and after a change.
    """

    def __init__(self, tools: Tools, record: Callable[[], ReplicationRecord]) -> None:
        self._tools = tools
        self._record = record
        self._due = asyncio.Event()

    def tell(self) -> None:
        """The policy changed."""
        self._due.set()

    async def run(self) -> None:
        """Until cancelled. What could not be told is told later."""
        clock = self._tools.clock
        wait_ms = hash_of(self._record().replica_id) % START_SPREAD_MS
        while True:
            if wait_ms:
                await wait_for_event(clock, self._due, wait_ms)
            else:
                await self._due.wait()
            self._due.clear()
            wait_ms = await self._try()

    async def _try(self) -> int:
        """How long until the next try, in ms; 0 = it is told."""
        record = self._record()
        try:
            await self._tools.link.update_replica(
                record.replica_access_point, record.replica_id, record.policy
            )
        except (LinkFailed, Problem) as error:
            log.warning("policy of %s not told yet: %s", record.vm_name, error)
            permanent = isinstance(error, Problem) and not error.retryable
            return REFUSED_AGAIN_MS if permanent else AGAIN_MS
        return 0


def hash_of(text: str) -> int:
    """The same in every process; at least 1."""
    return 1 + sum(text.encode()) * 97
