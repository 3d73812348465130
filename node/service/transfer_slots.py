"""How many transfers a host runs at once: full ones and deltas, counted apart."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from vmreplica.core.cycle import CycleKind


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferLimits:
    """The central settings that bound sending; 0 bytes/s = unlimited."""

    max_transfers_per_host: int = 3
    max_delta_transfers_per_host: int = 8
    bandwidth_limit_bytes_per_s: int = 0
    vm_bandwidth_limit_bytes_per_s: int = 0
    default_frequency_ms: int = 300_000
    replication_enabled: bool = True
    return_policy: str = "start"


class TransferSlots:
    """First come, first served; a changed limit counts from the next grant on."""

    def __init__(self, limits: Callable[[], TransferLimits]) -> None:
        self._limits = limits
        self._running = {True: 0, False: 0}
        self._waiting: dict[bool, deque[asyncio.Future[None]]] = {True: deque(), False: deque()}

    @asynccontextmanager
    async def transfer(self, kind: CycleKind) -> AsyncIterator[None]:
        """Hold a slot for one cycle of this kind."""
        heavy = kind is not CycleKind.DELTA
        await self._acquire(heavy)
        try:
            yield
        finally:
            self._running[heavy] -= 1
            self._grant(heavy)

    def running(self, kind: CycleKind) -> int:
        """Transfers of this kind's sort at work now."""
        return self._running[kind is not CycleKind.DELTA]

    async def _acquire(self, heavy: bool) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting[heavy].append(turn)
        self._grant(heavy)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting[heavy]:
                self._waiting[heavy].remove(turn)
            elif turn.done() and not turn.cancelled():
                self._running[heavy] -= 1
                self._grant(heavy)
            raise

    def _grant(self, heavy: bool) -> None:
        limits = self._limits()
        limit = limits.max_transfers_per_host if heavy else limits.max_delta_transfers_per_host
        waiting = self._waiting[heavy]
        while waiting and self._running[heavy] < max(1, limit):
            turn = waiting.popleft()
            if not turn.done():
                self._running[heavy] += 1
                turn.set_result(None)
