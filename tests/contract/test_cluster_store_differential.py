"""Random programs run on the fake and on a real etcd: every answer and every event must agree."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

import pytest

from tests.contract.conftest import EtcdCluster
from vmreplica.adapters.etcd_store import EtcdStore
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.system_randomness import SystemRandomness
from vmreplica.ports.cluster_store import (
    ClusterStore,
    Compacted,
    Compare,
    CompareTarget,
    Delete,
    Get,
    Lease,
    Operation,
    Put,
    StoreRefused,
    WatchEvent,
)
from vmreplica.testing import etcd_model as model
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_store_server import FakeStoreServer

SEEDS = range(int(os.environ.get("VMR_SEED", "1000")), int(os.environ.get("VMR_SEED", "1000")) + 4)
PROGRAMS_PER_SEED = 60
STEPS = 18
TTL_MS = 3_600_000


class Program:
    """One random program on two stores that stand at the same revision."""

    def __init__(self, seed: str, real: EtcdStore, revision: int, compacted: int) -> None:
        self.random = random.Random(seed)
        self.prefix = f"/d/{seed}/"
        self.real = real
        self.server = FakeStoreServer(seed)
        self.server.faults("a").latency_ms = (0.0, 0.0)
        self.server.state = model.EtcdState(revision=revision, compact_revision=compacted)
        self.fake = FakeClusterStore(self.server, "a")
        self.start_revision = revision + 1
        self.leases: list[int] = []
        self.seen: Counter[str] = Counter()
        self.compacts = self.random.random() < 0.2
        self.last_revision = 0

    async def both(self, call: Callable[[ClusterStore], Awaitable[Any]]) -> Any:
        """The same call on both; the same answer, or the same kind of refusal."""
        answers = []
        for store in (self.real, self.fake):
            try:
                answers.append(await call(store))
            except (StoreRefused, Compacted) as error:
                answers.append(type(error).__name__)
        assert answers[0] == answers[1]
        if isinstance(answers[0], str):
            self.seen[answers[0]] += 1
        return answers[0]

    def key(self) -> str:
        return self.prefix + self.random.choice(["a", "b", "b/", "c", "ü"])

    def compare(self) -> Compare:
        target = self.random.choice(list(CompareTarget))
        operator = self.random.choice(["=", "!=", "<", ">"])
        operand: int | str = self.random.choice([0, 1, 2, self.server.state.revision])
        if target is CompareTarget.VALUE:
            operand = self.random.choice(["", "0", "1"])
        if target is CompareTarget.LEASE and self.leases:
            operand = self.random.choice([0, *self.leases])
        return Compare(target, self.key(), operator, operand)

    def operation(self) -> Operation:
        match self.random.choice(["put", "put", "put", "delete", "get"]):
            case "put":
                lease_id = self.random.choice([0, 0, 12_345, *self.leases, *self.leases])
                return Put(self.key(), self.random.choice(["", "0", "1"]), lease_id)
            case "delete":
                return Delete(self.key())
            case _:
                return Get(self.key())

    async def transaction(self) -> None:
        compares = [self.compare() for _ in range(self.random.choice([0, 0, 1, 2]))]
        success = [self.operation() for _ in range(self.random.choice([0, 1, 1, 2, 3]))]
        failure = [self.operation() for _ in range(self.random.choice([0, 0, 1, 2]))]
        result = await self.both(lambda store: store.transaction(compares, success, failure))
        if not isinstance(result, str):
            self.seen["succeeded" if result.succeeded else "failed"] += 1

    async def range(self) -> None:
        draw = self.random.choice
        newest = self.server.state.revision
        arguments: dict[str, Any] = {
            "limit": draw([0, 0, 1, 2]),
            "after_key": draw(["", "", self.key()]),
            "revision": draw([0, 0, newest, newest - draw(range(8)), newest + 1]),
            "min_mod_revision": draw([0, 0, newest - 2]),
            "count_only": draw([False, False, True]),
        }
        prefix = draw([self.prefix, self.prefix, self.key()])
        await self.both(lambda store: store.range(prefix, **arguments))

    async def grant(self) -> None:
        lease: Lease = await self.real.grant(TTL_MS)
        self.server.new_lease_id = lambda: lease.lease_id  # type: ignore[method-assign]
        assert await self.fake.grant(TTL_MS) == lease
        self.leases.append(lease.lease_id)

    async def revoke(self) -> None:
        if not self.leases:
            return
        lease_id = self.leases.pop(self.random.randrange(len(self.leases)))
        self.seen["revoked keys"] += sum(
            kv.lease_id == lease_id for kv in self.server.state.live.values()
        )
        await self.both(lambda store: store.revoke(lease_id))
        await self.both(lambda store: store.keepalive(lease_id, 5_000))

    async def keepalive(self) -> None:
        lease_id = self.random.choice([777, *self.leases])
        await self.both(lambda store: store.keepalive(lease_id, 5_000))

    async def compact(self) -> None:
        revision = self.server.state.revision - self.random.randrange(4)
        if revision <= self.start_revision:
            return

        async def compact_fake() -> None:
            self.server.apply(model.Compact(revision))

        calls = {self.real: lambda: self.real.compact(revision), self.fake: compact_fake}
        await self.both(lambda store: calls[store]())  # type: ignore[index]
        self.seen["compactions"] += 1

    async def run(self) -> None:
        verbs = [self.transaction] * 10 + [self.range] * 4 + [self.grant, self.revoke]
        verbs += [self.keepalive] + [self.compact] * (3 * self.compacts)
        for _ in range(STEPS):
            await self.random.choice(verbs)()
        while self.leases:
            await self.revoke()
        await self.both(lambda store: store.range(self.prefix))
        # An end that every watch can wait for.
        last = await self.both(lambda store: store.transaction([], [Put(self.prefix + "z", "")]))
        self.last_revision = last.revision

    async def compare_histories(self) -> None:
        """The whole history, and from somewhere in its middle; else the same Compacted."""
        # At the compact revision itself etcd may have lost deletions: not compared.
        start = max(self.start_revision, self.server.state.compact_revision + 1)
        middle = self.random.randint(start, self.last_revision)
        starts = {start, middle}
        if self.server.state.compact_revision > self.start_revision:
            starts.add(self.start_revision)
        await asyncio.gather(*(self._compare_history(first) for first in sorted(starts)))

    async def _compare_history(self, first: int) -> None:
        real, fake = await asyncio.gather(
            self.history(self.real, first), self.history(self.fake, first)
        )
        self.seen["Compacted"] += isinstance(real, int)
        assert real == fake

    async def history(self, store: ClusterStore, first: int) -> Any:
        events: list[tuple[int, tuple[WatchEvent, ...]]] = []
        try:
            watch: Any = store.watch(self.prefix, first)
            async with asyncio.timeout(10), aclosing(watch):
                async for batch in watch:
                    for event in batch.events:
                        events.append((event.kv.mod_revision, (event,)))
                    if batch.revision >= self.last_revision:
                        return events
        except Compacted as error:
            return error.compact_revision
        raise AssertionError("the watch ended")


async def compare_all(programs: list[Program]) -> None:
    """Compare and forget the histories of programs that are done."""
    await asyncio.gather(*(program.compare_histories() for program in programs))
    programs.clear()


@pytest.mark.parametrize("seed", SEEDS)
async def test_the_fake_agrees_with_etcd(seed: int, etcd_single: EtcdCluster) -> None:
    real = EtcdStore(etcd_single.settings(), SystemClock(), SystemRandomness())
    seen: Counter[str] = Counter()
    compacted = (await real.range("/d/")).revision
    with suppress(Compacted):
        await real.compact(compacted)
    pending: list[Program] = []
    for number in range(PROGRAMS_PER_SEED):
        name = f"{seed}-{number}"
        revision = (await real.range("/d/")).revision
        program = Program(name, real, revision, compacted)
        try:
            if program.compacts:
                await compare_all(pending)
            await program.run()
            pending.append(program)
            # etcd looks at new watches every 100 ms only, so many are compared together.
            if program.compacts or number == PROGRAMS_PER_SEED - 1:
                await compare_all(pending)
        except AssertionError as error:
            raise AssertionError(f"program {name} (VMR_SEED={seed}): {error}") from error
        finally:
            program.server.close()
        compacted = program.server.state.compact_revision
        seen += program.seen
    await real.close()
    print(f"seed {seed}: {dict(seen)}")
    marks = ("succeeded", "failed", "StoreRefused", "Compacted", "revoked keys", "compactions")
    assert all(seen[mark] for mark in marks), f"never happened: {seen}"
