"""Waiting on the Clock port: bounded waits and tasks that are stopped without being torn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from vmreplica.ports.clock import Clock

T = TypeVar("T")


async def within(clock: Clock, duration_ms: float, event: asyncio.Event) -> bool:
    """Wait until ``event`` is set, at most ``duration_ms``; whether it was set."""
    if event.is_set():
        return True
    waiter = asyncio.ensure_future(event.wait())
    timer = asyncio.ensure_future(clock.sleep(duration_ms))
    try:
        await asyncio.wait({waiter, timer}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancelled(waiter, timer)
    return event.is_set()


async def cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait for their end; what they raised was theirs alone."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()


async def others_first() -> None:
    """Between two bites of long computing: everybody else gets a turn of the event loop."""
    loop = asyncio.get_running_loop()
    turn: asyncio.Future[None] = loop.create_future()
    loop.call_soon(_done, turn)
    await turn


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end even when the caller is cancelled meanwhile.

    For steps that must not be torn: the cancellation is delivered after the step.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise


def _done(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
