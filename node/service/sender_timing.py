"""Waiting with a limit on the Clock port, so that it also works in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from vmreplica.ports.clock import Clock

T = TypeVar("T")


async def drop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what still runs and wait until it has ended; its errors are nobody's any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def within(clock: Clock, limit_ms: float, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``. :raises TimeoutError: it took longer; it was cancelled."""
    task = asyncio.ensure_future(work)
    timer = asyncio.ensure_future(clock.sleep(limit_ms))
    try:
        await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise TimeoutError(f"no answer within {limit_ms:.0f} ms")
    finally:
        await drop(task, timer)


async def wait_for_event(clock: Clock, event: asyncio.Event, limit_ms: float) -> bool:
    """Whether ``event`` came within the limit."""
    if event.is_set():
        return True
    try:
        await within(clock, max(0.0, limit_ms), event.wait())
    except TimeoutError:
        return False
    return True
