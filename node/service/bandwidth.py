"""Limits on bytes per second: one bucket per link and one per VM, both must agree."""

from __future__ import annotations

from collections.abc import Callable

from vmreplica.ports.clock import Clock


class TokenBucket:
    """Bytes flow at ``rate()`` on average, with bursts of at most a quarter of a second.

    A taker may go into debt and then waits it off, so that frames larger than the burst pass.
    """

    def __init__(self, clock: Clock, rate: Callable[[], int]) -> None:
        self._clock = clock
        self._rate = rate
        self._tokens = 0.0
        self._filled_ms = clock.boottime_ms()

    async def take(self, count: int) -> None:
        """Wait until ``count`` bytes may be sent. A rate of 0 never waits."""
        rate = self._rate()
        if rate <= 0:
            self._tokens, self._filled_ms = 0.0, self._clock.boottime_ms()
            return
        self._fill(rate)
        self._tokens -= count
        while self._tokens < 0:
            # In slices, so that a raised limit is felt soon.
            await self._clock.sleep(min(250.0, max(1.0, -self._tokens * 1000 / rate)))
            rate = self._rate()
            if rate <= 0:
                self._tokens = 0.0
                return
            self._fill(rate)

    def _fill(self, rate: int) -> None:
        now = self._clock.boottime_ms()
        gained = (now - self._filled_ms) * rate / 1000
        self._tokens = min(rate / 4, self._tokens + gained)
        self._filled_ms = now


class Bandwidth:
    """The limits that one VM's sending is under."""

    def __init__(self, link: TokenBucket, vm: TokenBucket) -> None:
        self._link = link
        self._vm = vm

    async def take(self, count: int) -> None:
        """Wait until both the VM's and the link's limit allow ``count`` bytes."""
        await self._vm.take(count)
        await self._link.take(count)
