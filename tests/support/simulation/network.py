"""The simulated network: latency, cuts in one or both directions, resets, one virtual address."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from vmreplica.ports.replica_link import LinkFailed
from vmreplica.testing.sim_loop import HostLife, SimLoop

T = TypeVar("T")
CONNECT_TIMEOUT_S = 2.0
CALL_TIMEOUT_S = 5.0
RESET_AFTER_S = 20.0
_RETRY_S = 0.2
_NOBODY = contextvars.Context()


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
    connections: dict[HostLife, dict[object, Callable[[], None]]] = field(default_factory=dict)

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

    def connect(self, life: HostLife, who: object, broken: Callable[[], None]) -> None:
        """``broken`` is called when this life ends; ``disconnect`` forgets it."""
        self.connections.setdefault(life, {})[who] = broken

    def disconnect(self, life: HostLife, who: object) -> None:
        """See ``connect``."""
        self.connections.get(life, {}).pop(who, None)

    def died(self, life: HostLife) -> None:
        """A host is gone: its connections are reset."""
        for broken in self.connections.pop(life, {}).values():
            self.later(self.latency_s(), broken)

    def later(self, delay_s: float, act: Callable[[], None]) -> None:
        """What the network itself does; part of no host's life."""
        self.loop.call_later(delay_s, act, context=_NOBODY)

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
        answer: asyncio.Future[T] = self.loop.create_future()
        self.connect(life, answer, lambda: _fail(answer, LinkFailed(f"{target} died in a call")))
        try:
            self.loop.start_on(life, _into(answer, act))
            async with asyncio.timeout(CALL_TIMEOUT_S):
                result = await answer
        except TimeoutError as error:
            raise LinkFailed(f"{target} went silent in a call") from error
        finally:
            self.disconnect(life, answer)
        await asyncio.sleep(self.latency_s())
        if not self.passes(target, source) or self.random.random() < self.lose_reply:
            self.fired["call_answer_lost"] += 1
            await asyncio.sleep(CALL_TIMEOUT_S)
            raise LinkFailed(f"the answer of {target} was lost")
        return result


async def _into(answer: asyncio.Future[T], act: Callable[[], Awaitable[T]]) -> None:
    try:
        result = await act()
    except Exception as error:
        _fail(answer, error)
    else:
        if not answer.done():
            answer.set_result(result)


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()


class Reset(Exception):
    """The connection is gone."""


class Pipe:
    """One direction of a stream: in order, delayed, held while cut, reset when cut for long.

    :param on_break: called once, as part of no host's life.
    """

    def __init__(
        self, network: Network, source: str, target: str, on_break: Callable[[], None]
    ) -> None:
        self._network = network
        self._way = (source, target)
        self._on_break = on_break
        self._sent: deque[Any] = deque()
        self._arrived: deque[Any] = deque()
        self._getter: asyncio.Future[None] | None = None
        self._held_s = 0.0
        self.broken = False

    def put(self, item: Any) -> None:
        """Send. :raises Reset:"""
        if self.broken:
            raise Reset
        self._sent.append(item)
        if len(self._sent) == 1:
            self._network.later(self._network.latency_s(), self._carry)

    async def get(self) -> Any:
        """Receive the next item. :raises Reset:"""
        while not self._arrived:
            if self.broken:
                raise Reset
            self._getter = self._network.loop.create_future()
            try:
                await self._getter
            finally:
                self._getter = None
        return self._arrived.popleft()

    def end(self) -> None:
        """Nothing arrives any more."""
        if self.broken:
            return
        self.broken = True
        self._wake()
        self._on_break()

    def _carry(self) -> None:
        network = self._network
        if self.broken:
            return
        if not network.passes(*self._way):
            self._held_s += _RETRY_S
            if self._held_s > RESET_AFTER_S:
                self.end()
            else:
                network.later(_RETRY_S, self._carry)
            return
        self._held_s = 0.0
        if network.cut_stream and network.random.random() < network.cut_stream:
            network.fired["stream_cut"] += 1
            self.end()
            return
        self._arrived.append(self._sent.popleft())
        self._wake()
        if self._sent:
            network.later(network.latency_s(), self._carry)

    def _wake(self) -> None:
        if self._getter is not None and not self._getter.done():
            self._getter.set_result(None)
