"""One simulated host's clocks, over the event loop's time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


def loop_time_ms() -> float:
    """The running loop's time in milliseconds: true time of a simulation."""
    return asyncio.get_running_loop().time() * 1000


class FakeClock:
    """Implements ports.clock.Clock with an offset, a drift, steps and stand-still.

    :param offset_ms: how far the wall clock is wrong at the start.
    :param drift: 0.01 = this host's clocks run one per cent fast.
    :param booted_ms: what CLOCK_BOOTTIME shows at true time 0.
    :param true_ms: where true time comes from; the running loop by default.
    """

    EPOCH_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z: wall time of a right clock at true time 0

    def __init__(
        self,
        *,
        offset_ms: int = 0,
        drift: float = 0.0,
        booted_ms: int = 1_000_000,
        true_ms: Callable[[], float] = loop_time_ms,
    ) -> None:
        self._true_ms = true_ms
        self._drift = drift
        self._shown_ms = float(booted_ms)
        self._since_ms = 0.0
        self._stopped = False
        self._wall_ahead_ms = float(self.EPOCH_MS + offset_ms - booted_ms)

    def _boottime(self) -> float:
        if self._stopped:
            return self._shown_ms
        return self._shown_ms + (self._true_ms() - self._since_ms) * (1 + self._drift)

    def _settle(self) -> None:
        self._shown_ms = self._boottime()
        self._since_ms = self._true_ms()

    def boottime_ms(self) -> int:
        """This host's CLOCK_BOOTTIME in milliseconds."""
        return int(self._boottime())

    def wall_ms(self) -> int:
        """This host's idea of UTC in milliseconds."""
        return int(self._boottime() + self._wall_ahead_ms)

    async def sleep(self, duration_ms: float) -> None:
        """Suspend until at least this much of this host's time has passed."""
        await asyncio.sleep(max(0.0, duration_ms) / 1000 / (1 + self._drift))

    # ---- what a test does to the host ----

    def step(self, by_ms: int) -> None:
        """Set the wall clock forward (or back): a person or NTP did it."""
        self._wall_ahead_ms += by_ms

    def set_drift(self, drift: float) -> None:
        """From now on the clocks run ``drift`` fast (negative: slow)."""
        self._settle()
        self._drift = drift

    def stop(self) -> None:
        """The clocks stand still: the virtual machine that the host is was paused."""
        self._settle()
        self._stopped = True

    def go(self) -> None:
        """The clocks run on from where they stood."""
        self._since_ms = self._true_ms()
        self._stopped = False
