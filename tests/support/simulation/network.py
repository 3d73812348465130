"""The simulated network: latency, cuts in one or both directions, resets, one virtual address."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vmreplica.ports.replica_link import LinkFailed
from vmreplica.testing.sim_loop import HostLife, SimLoop

T = TypeVar("T")
CONNECT_TIMEOUT_S = 2.0
CALL_TIMEOUT_S = 5.0
RESET_AFTER_S = 20.0
_POLL_S = 0.05


@dataclass(slots=True)
class Network:
    """Who reaches whom. ``lives`` maps a host's name to its present life."""

    loop: SimLoop
    random: random.Random
    fired: Counter[str]
    lives: dict[str, HostLife] = field(default_factory=dict)
    blocked: set[tuple[str, str]] = field(default_factory=set)
    lose_reply: float = 0.0
    cut_stream: float = 0.0
    vip: str = ""
    vip_deadline_s: float = 0.0

    def passes(self, source: str, target: str) -> bool:
        """Whether packets get from one host to the other now."""
        return (source, target) not in self.blocked

    def cut(self, source: str, target: str, *, one_way: bool) -> None:
        """Packets vanish silently."""
        self.blocked.add((source, target))
        if not one_way:
            self.blocked.add((target, source))

    def heal(self) -> None:
        """Everything passes again."""
        self.blocked.clear()
        self.lose_reply = self.cut_stream = 0.0

    def alive(self, name: str) -> bool:
        """Whether the host is up (it may be paused)."""
        life = self.lives.get(name)
        return life is not None and not life.dead

    def latency_s(self) -> float:
        """One packet's way."""
        return self.random.uniform(0.0002, 0.004)

    def vip_host(self) -> str:
        """The host that answers at the client access point, "" when nobody does."""
        if self.vip and self.alive(self.vip) and self.loop.time() < self.vip_deadline_s:
            return self.vip
        return ""

    async def call(self, source: str, target: str, act: Callable[[], Awaitable[T]]) -> T:
        """One unary call: ``act`` runs as part of the target's life.

        :raises LinkFailed: no connection, no answer in time, or the target died.
        """
        await asyncio.sleep(self.latency_s())
        if not target or not self.alive(target):
            await asyncio.sleep(0.05)
            raise LinkFailed(f"{target or 'nobody'} refuses connections")
        if not (self.passes(source, target) and self.passes(target, source)):
            self.fired["connect_timed_out"] += 1
            await asyncio.sleep(CONNECT_TIMEOUT_S)
            raise LinkFailed(f"{target} does not answer")
        life = self.lives[target]
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.loop.start_on(life, _into(answer, act))
        until = self.loop.time() + CALL_TIMEOUT_S
        while not answer.done():
            if life.dead or self.loop.time() > until:
                raise LinkFailed(f"{target} went silent in a call")
            await _first(answer, _POLL_S)
        await asyncio.sleep(self.latency_s())
        if not self.passes(target, source) or self.random.random() < self.lose_reply:
            self.fired["reply_lost"] += 1
            await asyncio.sleep(CALL_TIMEOUT_S)
            raise LinkFailed(f"the answer of {target} was lost")
        return answer.result()


async def _into(answer: asyncio.Future[T], act: Callable[[], Awaitable[T]]) -> None:
    try:
        result = await act()
    except Exception as error:  # noqa: BLE001 - whatever it is belongs to the caller
        if not answer.done():
            answer.set_exception(error)
            answer.exception()
    else:
        if not answer.done():
            answer.set_result(result)


async def _first(answer: asyncio.Future[Any], timeout_s: float) -> None:
    await asyncio.wait({answer}, timeout=timeout_s)


class Reset(Exception):
    """The connection is gone."""


@dataclass(slots=True, eq=False)
class Pipe:
    """One direction of a stream: in order, delayed, held while cut, reset when cut for long."""

    network: Network
    source: str
    target: str
    queue: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    waiting: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    broken: asyncio.Event = field(default_factory=asyncio.Event)

    def put(self, item: Any) -> None:
        """Send. :raises Reset:"""
        if self.broken.is_set():
            raise Reset
        self.waiting.put_nowait(item)

    async def get(self) -> Any:
        """Receive the next item. :raises Reset:"""
        if self.queue.empty() and self.broken.is_set():
            raise Reset
        getting = asyncio.ensure_future(self.queue.get())
        breaking = asyncio.ensure_future(self.broken.wait())
        try:
            await asyncio.wait({getting, breaking}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            raise Reset
        finally:
            getting.cancel()
            breaking.cancel()

    async def carry(self) -> None:
        """Deliver until broken; part of no host's life."""
        held_s = 0.0
        while not self.broken.is_set():
            item = await self.waiting.get()
            while not self.network.passes(self.source, self.target):
                await asyncio.sleep(_POLL_S * 4)
                held_s += _POLL_S * 4
                if held_s > RESET_AFTER_S or self.broken.is_set():
                    self.broken.set()
                    return
            held_s = 0.0
            await asyncio.sleep(self.network.latency_s())
            if self.network.random.random() < self.network.cut_stream:
                self.network.fired["stream_cut"] += 1
                self.broken.set()
                return
            self.queue.put_nowait(item)
