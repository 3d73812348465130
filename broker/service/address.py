"""The client access point's IP address follows the leader."""

from __future__ import annotations

import asyncio
import logging

from broker.service.election import Election
from vmreplica.ports.address_holder import AddressHolder

log = logging.getLogger(__name__)


class NoAddress:
    """Client access points that are no VIP (dns, service, a standalone node): nothing to hold."""

    async def claim(self, deadline_boottime_ms: int) -> None:
        """Nothing."""

    async def extend(self, deadline_boottime_ms: int) -> None:
        """Nothing."""

    async def release(self) -> None:
        """Nothing."""


class AddressKeeper:
    """Claims on election, extends with each deadline, releases when leadership ends."""

    def __init__(self, holder: AddressHolder, election: Election) -> None:
        self._holder = holder
        self._election = election
        self._news = asyncio.Event()
        self._held_until_ms = 0
        self._stopped = False
        election.subscribe(self._news.set)

    async def run(self) -> None:
        """Follow the election until cancelled; the address is then dropped."""
        # A process killed together with its holder may have left the address on this host.
        await self._holder.release()
        try:
            while True:
                self._news.clear()
                await self._follow()
                await self._news.wait()
        finally:
            await self.release()

    async def release(self) -> None:
        """Clean stop: drop the address now and never claim it again. Idempotent."""
        self._stopped = True
        self._held_until_ms = 0
        await self._holder.release()

    async def _follow(self) -> None:
        may_hold = self._election.may_act() and not self._stopped
        deadline = self._election.deadline_boottime_ms() if may_hold else 0
        try:
            if deadline and not self._held_until_ms:
                await self._holder.claim(deadline)
            elif deadline:
                await self._holder.extend(deadline)
            elif self._held_until_ms and not self._election.leads:
                await self._holder.release()
            else:
                return
            self._held_until_ms = deadline
        except OSError as error:
            # The holder process is gone or the interface is: try again at the next deadline.
            log.error("the client access point's address could not be held: %s", error)
            self._held_until_ms = 0
