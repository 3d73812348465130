"""A seeded asyncio loop in virtual time: many hosts in one process, replayable from one number.

Every task and timer belongs to the host whose context made it. A paused host's steps wait; a
crashed host's steps never run again (no ``finally`` of its code runs: a crash cleans nothing up).
The order of ready task steps is shuffled by the seed; plain callbacks keep asyncio's FIFO promise.
Private asyncio names are used; ``tests/sim/test_sim_loop.py`` pins what they must do.
"""

# ruff: noqa: SLF001, ARG002 - the loop refuses what it does not use

from __future__ import annotations

import asyncio
import collections
import contextvars
import gc
import heapq
import random
import selectors
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

_TIMER_RESOLUTION_S = 1e-9


class Deadlock(RuntimeError):
    """Nothing is ready and no timer is set: the simulated world has stopped for good."""


class LeftSimulation(RuntimeError):
    """A thread, socket or executor was reached from inside the simulation."""


@dataclass(eq=False, slots=True)
class HostLife:
    """One boot of one simulated host; a restarted host is a new life."""

    name: str
    boot: int = 0
    paused: bool = False
    dead: bool = False
    held: list[asyncio.Handle] = field(default_factory=list)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)


_LIFE: contextvars.ContextVar[HostLife | None] = contextvars.ContextVar("sim_life", default=None)


class _NoSelector(selectors.BaseSelector):
    """Real I/O has no place here."""

    def register(self, fileobj: Any, events: Any, data: Any = None) -> Any:
        raise LeftSimulation(f"a real file descriptor reached the simulation: {fileobj!r}")

    def unregister(self, fileobj: Any) -> Any:
        raise LeftSimulation(f"a real file descriptor reached the simulation: {fileobj!r}")

    def select(self, timeout: float | None = None) -> list[Any]:
        return []

    def get_map(self) -> Any:
        return {}


class SimLoop(asyncio.SelectorEventLoop):
    """The loop itself; ``time()`` is virtual seconds since the world began."""

    def __init__(self, seed: int) -> None:
        self._now_s = 0.0
        self.random = random.Random(seed)
        self.steps = 0
        self.shuffles = 0
        self.after_step: Callable[[], None] | None = None
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timer_count = 0
        self._timers_cancelled = 0
        # What died must not be collected while the world goes on: its ``finally`` would run.
        self._buried: dict[int, HostLife] = {}
        super().__init__(_NoSelector())
        self.slow_callback_duration = 1e9

    def _make_self_pipe(self) -> None:
        """No wake-ups from threads: there are none."""

    def _close_self_pipe(self) -> None:
        """Counterpart of ``_make_self_pipe``."""

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> asyncio.Handle:  # type: ignore[override]
        """Refused."""
        raise LeftSimulation("a thread reached the simulation")

    def run_in_executor(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Refused."""
        raise LeftSimulation("an executor reached the simulation")

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Timers of one moment fire in the order in which they were set."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if handle._scheduled:  # type: ignore[attr-defined]
            self._timers_cancelled += 1

    def _run_once(self) -> None:
        ready: collections.deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        self._due(ready)
        batch = list(ready)
        ready.clear()
        if len(batch) > 1:
            self._shuffle_task_steps(batch)
        for handle in batch:
            if handle._cancelled:
                continue
            life = _life(handle)
            if life.dead:
                continue
            if life.paused:
                life.held.append(handle)
                continue
            self.steps += 1
            handle._run()
            if self.after_step is not None:
                self.after_step()

    def _due(self, ready: collections.deque[asyncio.Handle]) -> None:
        """Move on to the next moment if nothing is ready, and add its timers."""
        timers = self._timers
        if self._timers_cancelled > 100 and 2 * self._timers_cancelled > len(timers):
            timers[:] = [entry for entry in timers if not entry[2]._cancelled]
            heapq.heapify(timers)
            self._timers_cancelled = 0
        while timers and (timers[0][2]._cancelled or _life(timers[0][2]).dead):
            self._pop_timer()
        if not ready:
            if not timers:
                raise Deadlock(f"nothing left to run at t={self._now_s:.3f} s")
            self._now_s = max(self._now_s, timers[0][0])
        until = self._now_s + _TIMER_RESOLUTION_S
        while timers and timers[0][0] <= until:
            timer = self._pop_timer()
            if not timer._cancelled:
                ready.append(timer)

    def _pop_timer(self) -> asyncio.TimerHandle:
        timer = heapq.heappop(self._timers)[2]
        timer._scheduled = False  # type: ignore[attr-defined]
        if timer._cancelled:
            self._timers_cancelled = max(0, self._timers_cancelled - 1)
        return timer

    def _shuffle_task_steps(self, batch: list[asyncio.Handle]) -> None:
        slots = [
            i
            for i, handle in enumerate(batch)
            if isinstance(getattr(handle._callback, "__self__", None), asyncio.Task)  # type: ignore[attr-defined]
        ]
        if len(slots) < 2:
            return
        self.shuffles += 1
        steps = [batch[i] for i in slots]
        self.random.shuffle(steps)
        for slot, handle in zip(slots, steps, strict=True):
            batch[slot] = handle

    def start_on(self, life: HostLife, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine as part of a host's life; all it starts belongs there too."""
        context = contextvars.copy_context()
        context.run(_LIFE.set, life)
        task = self.create_task(work, context=context)
        life.tasks.append(task)
        self._buried[id(life)] = life
        return task

    def end(self) -> None:
        """Drop everything that still waits, and close."""
        self._ready.clear()  # type: ignore[attr-defined]
        self._timers.clear()
        self._buried.clear()
        self.close()

    def pause(self, life: HostLife) -> None:
        """The host's steps and timers wait (its clock goes on: it was frozen, not the world)."""
        life.paused = True

    def resume(self, life: HostLife) -> None:
        """Held steps run now, in the order in which they became due."""
        life.paused = False
        ready: collections.deque[asyncio.Handle] = self._ready  # type: ignore[attr-defined]
        ready.extend(life.held)
        life.held.clear()

    def crash(self, life: HostLife) -> None:
        """The host stops in the middle of whatever it does."""
        life.dead = True
        life.held.clear()
        for task in life.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]


def current_life() -> HostLife | None:
    """The life whose code is running; None in the world's own code."""
    return _LIFE.get()


_WORLD = HostLife("world")


def _life(handle: asyncio.Handle) -> HostLife:
    context: contextvars.Context = handle._context  # type: ignore[attr-defined]
    return context.get(_LIFE) or _WORLD


def run(main: Callable[[SimLoop], Awaitable[T]], seed: int) -> T:
    """Run ``main(loop)`` in a fresh world to its end."""
    loop = SimLoop(seed)

    async def entry() -> T:
        return await main(loop)

    hook, collects = sys.unraisablehook, gc.isenabled()
    # What a collection finalizes, and when, must not depend on what ran before.
    gc.disable()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(entry())
    finally:
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        asyncio.set_event_loop(None)
        # The world ends in the middle of everything; what its leftovers say is of no interest.
        sys.unraisablehook = lambda _: None
        loop.end()
        gc.collect()
        sys.unraisablehook = hook
        if collects:
            gc.enable()
