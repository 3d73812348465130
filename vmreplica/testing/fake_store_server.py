"""The shared half of the fake cluster store: state, leases that run out, and who is told."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from vmreplica.ports.cluster_store import Compacted, Lease, WatchEvent
from vmreplica.testing import etcd_model as model
from vmreplica.testing.etcd_model import EtcdState, Request, Response
from vmreplica.testing.store_faults import StoreFaults

StepFunction = Callable[[EtcdState, Request], model.Step]


@dataclass(slots=True)
class _LeaseTimer:
    """``ran_out``: the TTL is over, the deletion is on its way; no keepalive saves it."""

    handle: asyncio.TimerHandle
    ran_out: bool
    gone: asyncio.Event


class FakeStoreServer:
    """One simulated etcd cluster for any number of hosts. Lives in one event loop.

    :param seed: of every coin in here.
    :param expiry_late_ms: how much after its TTL a lease really ends: (low, high).
    :param step: the pure model; a test of the tests hands in a faulty one.
    """

    def __init__(
        self,
        seed: int | str = 0,
        *,
        min_ttl_s: int = 2,
        expiry_late_ms: tuple[float, float] = (0.0, 500.0),
        step: StepFunction | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.state = EtcdState()
        self.fired: Counter[str] = Counter()
        self.on_commit: list[Callable[[EtcdState, tuple[WatchEvent, ...]], None]] = []
        self.expiry_late_ms = expiry_late_ms
        self._step = step or (lambda s, r: model.step(s, r, min_ttl_s=min_ttl_s))
        self._faults: dict[str, StoreFaults] = {}
        self._timers: dict[int, _LeaseTimer] = {}
        self._wakers: dict[int, asyncio.Event] = {}
        self._waker_ids = 0
        self._quorum = True
        # Not the context of the host that happens to call: its crash must not stop our timers.
        self._context = contextvars.Context()

    # ---- what a test drives ----

    def faults(self, host: str) -> StoreFaults:
        """The faults of one host; made when first asked for."""
        if host not in self._faults:
            self._faults[host] = StoreFaults(on_change=self._wake)
        return self._faults[host]

    @property
    def quorum(self) -> bool:
        """Whether the cluster can answer anybody."""
        return self._quorum

    def lose_quorum(self) -> None:
        """Nobody is answered and no lease ends until :meth:`regain_quorum`."""
        self._quorum = False
        self.fired["no_quorum"] += 1
        for timer in self._timers.values():
            timer.handle.cancel()

    def regain_quorum(self) -> None:
        """A new leader: every lease starts over with its full TTL, as etcd does."""
        self._quorum = True
        self.change_leader()

    def change_leader(self) -> None:
        """The new leader extends every lease to its full TTL, breaks watches."""
        self.fired["leader_change"] += 1
        for lease_id in list(self._timers):
            self._arm(lease_id)
        for faults in self._faults.values():
            faults.broken_watches += 1
        self._wake()

    def compact(self, revision: int = 0) -> None:
        """Forget history below ``revision`` (0: below the newest)."""
        try:
            self.apply(model.Compact(revision or self.state.revision))
            self.fired["compaction"] += 1
        except Compacted:
            pass
        self._wake()

    def expire(self, lease_id: int) -> None:
        """End a lease now (tests of what follows, not of time)."""
        self._expire(lease_id)

    def close(self) -> None:
        """Cancel the timers."""
        for timer in self._timers.values():
            timer.handle.cancel()
        self._timers.clear()

    # ---- what the hosts' halves use ----

    def apply(self, request: Request) -> Response:
        """One step of the model, and everything that follows from it."""
        self.state, response, events = self._step(self.state, request)
        match request, response:
            case model.Grant(), Lease(lease_id=lease_id):
                self._arm(lease_id)
            case model.Keepalive(lease_id=lease_id), int() if response:
                self._arm(lease_id)
            case ((model.Revoke(lease_id=lease_id) | model.Expire(lease_id=lease_id)), _):
                self._disarm(lease_id)
            case _:
                pass
        if events:
            for callback in self.on_commit:
                callback(self.state, events)
            self._wake()
        return response

    def running_out(self, lease_id: int) -> asyncio.Event | None:
        """The lease's TTL is over but its end is late: set once it is gone."""
        timer = self._timers.get(lease_id)
        return timer.gone if timer is not None and timer.ran_out else None

    def new_lease_id(self) -> int:
        """A fresh positive lease id."""
        while True:
            lease_id = self.random.getrandbits(62) + 1
            if lease_id not in self.state.leases:
                return lease_id

    def add_waker(self) -> tuple[int, asyncio.Event]:
        """An event that is set whenever anything changed."""
        self._waker_ids += 1
        event = asyncio.Event()
        self._wakers[self._waker_ids] = event
        return self._waker_ids, event

    def remove_waker(self, waker_id: int) -> None:
        """Stop telling."""
        self._wakers.pop(waker_id, None)

    def later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        """A timer of the cluster's own, that no crash or pause of a host touches."""
        loop = asyncio.get_running_loop()
        return loop.call_later(delay_s, callback, context=self._context)

    def draw(self, bounds: tuple[float, float]) -> float:
        """A duration from ``bounds``, in seconds."""
        low, high = bounds
        return (self.random.uniform(low, high) if high > low else low) / 1000

    def coin(self, chance: float, name: str) -> bool:
        """True with this chance; counted when it fires. Certain answers draw nothing."""
        if chance <= 0.0:
            return False
        if chance < 1.0 and self.random.random() >= chance:
            return False
        self.fired[name] += 1
        return True

    def _wake(self) -> None:
        for event in self._wakers.values():
            event.set()

    def _arm(self, lease_id: int) -> None:
        ttl_s = self.state.leases.get(lease_id)
        if ttl_s is None:
            return
        old = self._timers.get(lease_id)
        if old is not None:
            old.handle.cancel()
        handle = self.later(ttl_s, lambda: self._ran_out(lease_id))
        gone = old.gone if old is not None else asyncio.Event()
        self._timers[lease_id] = _LeaseTimer(handle, False, gone)

    def _ran_out(self, lease_id: int) -> None:
        timer = self._timers[lease_id]
        timer.ran_out = True
        late_s = self.draw(self.expiry_late_ms)
        timer.handle = self.later(late_s, lambda: self._expire(lease_id))

    def _expire(self, lease_id: int) -> None:
        self.fired["lease_expired"] += 1
        self.apply(model.Expire(lease_id))

    def _disarm(self, lease_id: int) -> None:
        timer = self._timers.pop(lease_id, None)
        if timer is not None:
            timer.handle.cancel()
            timer.gone.set()
