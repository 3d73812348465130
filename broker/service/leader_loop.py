"""The shape of everything the leader does again and again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from broker.service.context import Context
from vmreplica.core.problems import Problem
from vmreplica.ports.cluster_store import StoreError

log = logging.getLogger(__name__)


class LeaderLoop:
    """Calls ``look`` while this broker leads: whenever woken, and every ``every_ms``.

    What the store or a lost deadline refuses is tried again at the next look.
    """

    def __init__(
        self, context: Context, name: str, look: Callable[[], Awaitable[object]], every_ms: int
    ) -> None:
        self._context = context
        self._name = name
        self._look = look
        self._every_ms = every_ms
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look soon."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._context.election.until_leading()
            self._wake.clear()
            try:
                if self._context.election.may_act():
                    await self._look()
            except (StoreError, Problem) as error:
                log.info("%s waits: %s", self._name, error)
            await self._pause()

    async def _pause(self) -> None:
        timer = asyncio.create_task(self._context.clock.sleep(self._every_ms))
        wake = asyncio.create_task(self._wake.wait())
        try:
            await asyncio.wait((timer, wake), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            wake.cancel()
