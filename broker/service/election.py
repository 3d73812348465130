"""Which broker leads: a leased key each, the lowest create revision, one deadline.

Leadership is certain only after a linearizable read found no key before mine; from then on the
very existence of my key proves it, so every act of the leader is guarded by that key. A broker
past its deadline pauses its acts and goes on when the same lease is answered again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from broker.service.inventory import RecordCache
from vmreplica.core.keys import Keys
from vmreplica.core.leadership import Candidate, Standing, standing
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import BrokerRecord, parse, render
from vmreplica.ports.clock import Clock
from vmreplica.ports.cluster_store import (
    ClusterStore,
    Compare,
    Lease,
    Put,
    StoreError,
    absent,
    created_at,
)
from vmreplica.ports.event_log import EventLog

log = logging.getLogger(__name__)
RETRY_MS = 500
LOOK_AGAIN_MS = 1_000
CATCH_UP_MS = 300
"""How long a candidate trusts its watch to tell that the one before it is gone."""


class LeaseHolder(Protocol):
    """What the election needs of coordination.LeaseKeeper."""

    lease_id: int
    on_deadline: list[Callable[[int], None]]

    async def acquire(self) -> Lease:
        """Grant a lease."""
        ...

    async def run(self) -> None:
        """Keep it until it is gone."""
        ...

    def deadline_boottime_ms(self) -> int:
        """Until when its holder may act."""
        ...

    def may_act(self) -> bool:
        """Whether the deadline lies ahead."""
        ...

    def heard_age_ms(self) -> int:
        """Since the last answered keepalive was sent; -1 before acquire."""
        ...

    async def release(self) -> None:
        """Give it back."""
        ...


class Election:
    """One candidate. ``run`` campaigns for ever; ``resign`` is the clean stop."""

    def __init__(
        self,
        *,
        store: ClusterStore,
        clock: Clock,
        keys: Keys,
        record: BrokerRecord,
        cache: RecordCache,
        new_lease: Callable[[], LeaseHolder],
        events: EventLog,
    ) -> None:
        self._store = store
        self._clock = clock
        self._keys = keys
        self._record = record
        self._cache = cache
        self._new_lease = new_lease
        self._events = events
        self._lease: LeaseHolder | None = None
        self._mine: Candidate | None = None
        self._leads = False
        self._resigned = False
        self._listeners: list[Callable[[], None]] = []
        self._hint = asyncio.Event()
        self._led = asyncio.Event()

    # ---- what others ask ----

    @property
    def leads(self) -> bool:
        """Whether I am the leader, be it past my deadline."""
        return self._leads

    def may_act(self) -> bool:
        """Whether I lead and my deadline lies ahead."""
        return self._leads and self._lease is not None and self._lease.may_act()

    def deadline_boottime_ms(self) -> int:
        """Until when I may act; 0 = not at all."""
        return self._lease.deadline_boottime_ms() if self._leads and self._lease else 0

    def guard(self) -> Compare:
        """What every transaction of the leader is guarded by.

        :raises Problem: NO_LEADER, where I do not lead or am past my deadline.
        """
        if self._mine is None or not self.may_act():
            raise no_leader()
        return created_at(self._mine.key, self._mine.create_revision)

    def heard_age_ms(self) -> int:
        """How long ago the store last answered this broker's keepalive; -1 = never."""
        return self._lease.heard_age_ms() if self._lease is not None else -1

    async def until_leading(self) -> None:
        """Wait until I lead."""
        await self._led.wait()

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Be called when leadership or its deadline changes."""
        self._listeners.append(callback)

    def leader(self) -> BrokerRecord | None:
        """Who leads, as last heard."""
        found = min(
            self._cache.items(self._keys.elections), key=lambda kv: kv.create_revision, default=None
        )
        if found is None:
            return None
        try:
            return parse(BrokerRecord, found.value)
        except ValueError:
            return None

    def is_me(self, record: BrokerRecord) -> bool:
        """Whether a record is mine."""
        return record.name == self._record.name and record.address == self._record.address

    # ---- the campaign ----

    async def run(self) -> None:
        """Campaign until cancelled or resigned."""
        stop = self._cache.subscribe(self._key_changed)
        try:
            while not self._resigned:
                await self._one_lease()
        finally:
            stop()
            self._step_down("it was stopped")

    async def resign(self) -> None:
        """Clean stop: give the lease back, so that the next candidate leads at once."""
        self._resigned = True
        self._step_down("it stops")
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                await lease.release()
            except StoreError as error:
                log.warning("the lease could not be given back and will run out: %s", error)

    async def _one_lease(self) -> None:
        lease = self._new_lease()
        try:
            await lease.acquire()
        except StoreError as error:
            log.info("no lease yet: %s", error)
            await self._clock.sleep(RETRY_MS)
            return
        self._lease = lease
        lease.on_deadline.append(lambda _: self._tell())
        keeping = asyncio.create_task(lease.run())
        campaign = asyncio.create_task(self._campaign(lease))
        why = "it was stopped"
        try:
            done, _ = await asyncio.wait((keeping, campaign), return_when=asyncio.FIRST_COMPLETED)
            why = "its lease or key is gone"
            for task in done:
                task.result()
        finally:
            for task in (keeping, campaign):
                task.cancel()
            await asyncio.gather(keeping, campaign, return_exceptions=True)
            self._step_down(why)
        if campaign in done and keeping not in done and not self._resigned:
            await self._let_go(lease)

    async def _let_go(self, lease: LeaseHolder) -> None:
        """My key is gone although the lease lives: start again with a new one."""
        try:
            await lease.release()
        except StoreError:
            await self._clock.sleep(RETRY_MS)

    async def _campaign(self, lease: LeaseHolder) -> None:
        """Put my key, wait for those before it, lead; returns when my key is gone."""
        mine = await self._put_key(lease.lease_id)
        self._mine = mine
        while True:
            self._hint.clear()
            place, revision = await self._look(mine)
            if place is None:
                await self._clock.sleep(RETRY_MS)
                continue
            if not place.present:
                return
            if place.leads and not self._leads:
                await self._caught_up(revision)
                self._take_office()
            await self._wait_hint()

    async def _put_key(self, lease_id: int) -> Candidate:
        key = self._keys.election(lease_id)
        value = render(self._record)
        while True:
            try:
                await self._store.transaction([absent(key)], [Put(key, value, lease_id)])
                found = await self._store.get(key)
            except StoreError as error:
                # Also an unknown outcome: the guard makes the repetition harmless.
                log.info("election key not written yet: %s", error)
                await self._clock.sleep(RETRY_MS)
                continue
            if found is not None:
                return Candidate(key, found.create_revision, lease_id)
            await self._clock.sleep(RETRY_MS)

    async def _look(self, mine: Candidate) -> tuple[Standing | None, int]:
        try:
            listed = await self._store.range(self._keys.elections)
        except StoreError as error:
            log.info("election not readable: %s", error)
            return None, 0
        candidates = [Candidate(kv.key, kv.create_revision, kv.lease_id) for kv in listed.items]
        return standing(mine, candidates), listed.revision

    async def _caught_up(self, revision: int) -> None:
        """Before acting, know all that the leader before me wrote."""
        await self._cache.ready()
        ask_at_ms = self._clock.boottime_ms() + CATCH_UP_MS
        while self._cache.revision < revision:
            await self._clock.sleep(10)
            if self._clock.boottime_ms() < ask_at_ms:
                continue
            # The watch is silent: read what it should have brought.
            try:
                await self._cache.verify()
            except StoreError as error:
                log.info("not caught up yet: %s", error)
            ask_at_ms = self._clock.boottime_ms() + CATCH_UP_MS

    async def _wait_hint(self) -> None:
        timer = asyncio.create_task(self._clock.sleep(LOOK_AGAIN_MS))
        hint = asyncio.create_task(self._hint.wait())
        try:
            await asyncio.wait((timer, hint), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            hint.cancel()

    def _key_changed(self, key: str) -> None:
        if key.startswith(self._keys.elections):
            self._hint.set()

    def _take_office(self) -> None:
        if self._resigned:
            return
        self._leads = True
        self._led.set()
        self._events.write("broker.elected", f"{self._record.name} leads.")
        self._tell()

    def _step_down(self, why: str) -> None:
        if not self._leads:
            return
        self._leads = False
        self._led.clear()
        self._events.write("broker.resigned", f"{self._record.name} leads no more: {why}.")
        self._tell()

    def _tell(self) -> None:
        for callback in self._listeners:
            callback()


def no_leader() -> Problem:
    """Nobody who may act can be reached."""
    return Problem(
        Reason.NO_LEADER,
        "No broker of this cluster leads at the moment.",
        remedy="Try again in a few seconds; `vmrctl broker list` shows the candidates.",
    )
