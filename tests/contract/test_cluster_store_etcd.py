"""What only etcd can do to its client: members that die, hang or have no leader; certificates."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Certificates, EtcdCluster
from vmreplica.adapters.etcd_store import EtcdStore
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.system_randomness import SystemRandomness
from vmreplica.coordination.guarded import GuardedWriter
from vmreplica.coordination.lease_keeper import LeaseKeeper
from vmreplica.core.keys import Keys
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.cluster_store import (
    Compacted,
    OutcomeUnknown,
    Put,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    absent,
)

CLOCK = SystemClock()
RANDOMNESS = SystemRandomness()


@pytest.fixture
async def store(etcd_three: EtcdCluster) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(etcd_three.settings(), CLOCK, RANDOMNESS)
    yield store
    await store.close()


def member_of(cluster: EtcdCluster, store: EtcdStore) -> int:
    return cluster.endpoints.index(store.endpoint)


async def put(store: EtcdStore, key: str, value: str = "v") -> int:
    """A write repeated until it is known to be done; for writes where twice is as good as once."""
    async with asyncio.timeout(30):
        while True:
            with suppress(OutcomeUnknown, StoreUnavailable):
                return (await store.transaction([], [Put(key, value)])).revision


async def test_a_killed_member_is_left_for_another(
    etcd_three: EtcdCluster, store: EtcdStore
) -> None:
    for number in range(3):
        await put(store, "/kill/a", str(number))
        member = member_of(etcd_three, store)
        etcd_three.kill(member)
        try:
            async with asyncio.timeout(20):
                while True:
                    try:
                        kv = await store.get("/kill/a")
                        break
                    except StoreUnavailable:
                        # The dead one may have led: an election takes longer than one deadline.
                        continue
            assert kv is not None
            assert kv.value == str(number)
            assert member_of(etcd_three, store) != member
        finally:
            etcd_three.restart(member)


async def test_a_watch_moves_to_another_member_and_misses_nothing(
    etcd_three: EtcdCluster, store: EtcdStore
) -> None:
    start = await put(store, "/watch/start")
    values: list[str] = []
    arrived = asyncio.Event()

    async def follow() -> None:
        watch: Any = store.watch("/watch/", start + 1)
        async with aclosing(watch):
            async for batch in watch:
                values.extend(event.kv.value for event in batch.events)
                arrived.set()

    task = asyncio.create_task(follow())
    await put(store, "/watch/a", "0")
    await asyncio.wait_for(arrived.wait(), 10)
    member = member_of(etcd_three, store)
    etcd_three.kill(member)
    try:
        for number in range(1, 20):
            await put(store, "/watch/a", str(number))
        async with asyncio.timeout(20):
            while values[-1] != "19":
                arrived.clear()
                await arrived.wait()
    finally:
        task.cancel()
        etcd_three.restart(member)
    # A write whose answer was lost was repeated: then its value stands there twice in a row.
    once = [v for i, v in enumerate(values) if i == 0 or values[i - 1] != v]
    assert once == [str(number) for number in range(20)]


async def test_compaction_while_a_watch_has_no_stream(
    etcd_three: EtcdCluster, store: EtcdStore
) -> None:
    start = await put(store, "/gap/a", "0")
    other = EtcdStore(etcd_three.settings(), CLOCK, RANDOMNESS)
    # The watch knows one member only, which is away while history is compacted.
    member = 0
    lonely = EtcdStore(
        etcd_three.settings(endpoints=(etcd_three.endpoints[member],)), CLOCK, RANDOMNESS
    )
    seen = asyncio.Event()

    async def follow() -> None:
        watch: Any = lonely.watch("/gap/", start)
        async with aclosing(watch):
            async for batch in watch:
                if batch.events:
                    seen.set()

    task = asyncio.create_task(follow())
    await asyncio.wait_for(seen.wait(), 10)
    etcd_three.kill(member)
    try:
        for number in range(5):
            last = await put(other, "/gap/a", str(number))
        async with asyncio.timeout(20):
            while True:
                with suppress(OutcomeUnknown, StoreUnavailable):
                    await other.compact(last)
                    break
    finally:
        etcd_three.restart(member)
    with pytest.raises(Compacted) as caught:
        await asyncio.wait_for(task, 20)
    assert caught.value.compact_revision == last
    await other.close()
    await lonely.close()


async def test_without_quorum_every_call_ends_within_its_deadline(
    etcd_three: EtcdCluster, store: EtcdStore
) -> None:
    await put(store, "/quorum/a", "before")
    lease = await store.grant(60_000)
    quick = EtcdStore(etcd_three.settings(call_timeout_ms=1_000), CLOCK, RANDOMNESS)
    etcd_three.kill(1)
    etcd_three.kill(2)
    try:
        for _ in range(2):
            with pytest.raises((StoreUnavailable, OutcomeUnknown)):
                await asyncio.wait_for(quick.transaction([], [Put("/quorum/b", "x")]), 10)
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(quick.get("/quorum/a"), 10)
            with pytest.raises(StoreUnavailable):
                await asyncio.wait_for(quick.keepalive(lease.lease_id, 500), 10)
    finally:
        etcd_three.start(1)
        etcd_three.restart(2)
        etcd_three.wait_healthy(1)
    await put(store, "/quorum/a", "after")
    assert await store.keepalive(lease.lease_id, 3_000) == 60_000
    await quick.close()


async def test_a_hanging_member_costs_one_try(etcd_three: EtcdCluster, store: EtcdStore) -> None:
    lease = await store.grant(60_000)
    assert await store.keepalive(lease.lease_id, 2_000) == 60_000
    member = member_of(etcd_three, store)
    etcd_three.pause(member)
    try:
        with pytest.raises(StoreUnavailable):
            await store.keepalive(lease.lease_id, 500)
        assert member_of(etcd_three, store) != member
        async with asyncio.timeout(20):
            while True:
                # The hanging one may have led: then the others elect first.
                with suppress(StoreUnavailable):
                    assert await store.keepalive(lease.lease_id, 1_000) == 60_000
                    break
    finally:
        etcd_three.resume(member)


async def test_a_write_without_answer_is_unknown_and_gets_resolved(
    etcd_three: EtcdCluster, store: EtcdStore
) -> None:
    keys = Keys("unknown")
    quick = EtcdStore(etcd_three.settings(call_timeout_ms=700), CLOCK, RANDOMNESS)
    writer = GuardedWriter(quick, CLOCK, RANDOMNESS, keys, resolve_ms=30_000)
    await writer.write([], [Put("/unknown/warm", "")])
    for number in range(3):
        for member in etcd_three.processes:
            etcd_three.pause(member)
        try:
            with pytest.raises(OutcomeUnknown):
                await quick.transaction([absent("/unknown/x")], [Put("/unknown/x", "")])
            key = f"/unknown/{number}"
            task = asyncio.create_task(writer.write([absent(key)], [Put(key, "")], op_id=key))
            await asyncio.sleep(1.0)
        finally:
            for member in etcd_three.processes:
                etcd_three.resume(member)
        try:
            applied = (await task).succeeded
        except StoreUnavailable:
            applied = False
        kv = await _patient_get(store, key)
        done = await _patient_get(store, keys.op(key))
        assert (kv is not None) is applied is (done is not None)
    await quick.close()


async def _patient_get(store: EtcdStore, key: str) -> Any:
    async with asyncio.timeout(30):
        while True:
            with suppress(StoreUnavailable):
                return await store.get(key)


async def test_the_lease_deadline_counts_from_the_sending(
    etcd_three: EtcdCluster, store: EtcdStore
) -> None:
    slow = EtcdStore(etcd_three.settings(call_timeout_ms=15_000), CLOCK, RANDOMNESS)
    await _patient_get(slow, "/warm")
    keeper = LeaseKeeper(slow, CLOCK, ttl_ms=30_000, keepalive_ms=100, try_ms=9_000, margin_ms=500)
    for member in etcd_three.processes:
        etcd_three.pause(member)
    task = asyncio.create_task(keeper.acquire())
    await asyncio.sleep(0.5)
    answered_after_ms = CLOCK.boottime_ms()
    for member in etcd_three.processes:
        etcd_three.resume(member)
    lease = await task
    assert 0 < keeper.deadline_boottime_ms() < answered_after_ms + lease.ttl_ms - 500
    assert keeper.may_act()
    await keeper.release()
    assert not keeper.may_act()
    await slow.close()


async def test_nobody_listens(etcd_three: EtcdCluster) -> None:
    settings = etcd_three.settings(endpoints=("127.0.0.1:1", "127.0.0.1:2"), call_timeout_ms=600)
    store = EtcdStore(settings, CLOCK, RANDOMNESS)
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:2"):
        await store.transaction([], [Put("/a", "")])
    with pytest.raises(StoreUnavailable):
        await store.get("/a")
    with pytest.raises(StoreUnavailable):
        await store.grant(1_000)
    with pytest.raises(StoreUnavailable):
        await store.keepalive(1, 200)
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.get("/a")
    await store.close()


async def test_an_unreachable_first_endpoint_does_no_harm(etcd_three: EtcdCluster) -> None:
    # 198.51.100.0/24 is for documentation: nobody answers there, or the network refuses.
    endpoints = ("198.51.100.1:2379", "127.0.0.1:1", *etcd_three.endpoints)
    settings = etcd_three.settings(endpoints=endpoints, connect_timeout_ms=300)
    store = EtcdStore(settings, CLOCK, RANDOMNESS)
    assert await _patient_get(store, "/nothing") is None
    assert store.endpoint in etcd_three.endpoints
    await store.close()


async def test_closing_ends_what_is_under_way(etcd_three: EtcdCluster) -> None:
    store = EtcdStore(etcd_three.settings(), CLOCK, RANDOMNESS)
    assert await _patient_get(store, "/a") is None

    async def follow() -> None:
        async for _ in store.watch("/closing/", 0):
            pass

    task = asyncio.create_task(follow())
    await asyncio.sleep(0.2)
    await store.close()
    with pytest.raises(StoreError):
        await asyncio.wait_for(task, 10)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ca_path": ""}, "etcd.ca"),
        ({"certificate_path": ""}, "etcd.certificate"),
        ({"key_path": "/nowhere/etcd.key"}, "etcd.key"),
        ({"ca_path": __file__}, "etcd.ca"),
        ({"endpoints": ()}, "etcd.endpoints"),
    ],
)
def test_missing_credentials_are_a_problem_with_the_field(
    change: dict[str, Any], field: str, etcd_three: EtcdCluster
) -> None:
    with pytest.raises(Problem) as caught:
        EtcdStore(etcd_three.settings(**change), CLOCK, RANDOMNESS)
    problem = caught.value
    assert (problem.reason, problem.field) == (Reason.BAD_CONFIG, field)
    assert problem.remedy


async def test_strangers_are_not_let_in(etcd_three: EtcdCluster, tmp_path: Path) -> None:
    certificate, key = Certificates(tmp_path).issue("stranger")
    foreign_ca = Certificates(tmp_path).ca_path
    for change in (
        {"certificate_path": certificate, "key_path": key},
        {"ca_path": foreign_ca},
        {"plaintext": True},
    ):
        store = EtcdStore(etcd_three.settings(call_timeout_ms=800, **change), CLOCK, RANDOMNESS)
        with pytest.raises(StoreUnavailable):
            await store.get("/a")
        # Depending on the version of TLS, a refused client learns of it only after it has sent.
        with pytest.raises((StoreUnavailable, OutcomeUnknown)):
            await store.transaction([], [Put("/stranger", "")])
        await store.close()
    friend = EtcdStore(etcd_three.settings(), CLOCK, RANDOMNESS)
    assert await _patient_get(friend, "/stranger") is None
    await friend.close()


async def test_certificates_exchanged_on_disk_are_taken_up(
    etcd_three: EtcdCluster, tmp_path: Path
) -> None:
    foreign = Certificates(tmp_path).issue("me")
    settings = etcd_three.settings(
        certificate_path=foreign[0], key_path=foreign[1], call_timeout_ms=800
    )
    store = EtcdStore(settings, CLOCK, RANDOMNESS)
    with pytest.raises(StoreUnavailable):
        await store.get("/a")
    for mine, theirs in zip(foreign, etcd_three.client_files, strict=True):
        shutil.copy(theirs, mine)
    assert await _patient_get(store, "/a") is None
    await store.close()


async def test_a_request_too_large_is_refused_not_unknown(store: EtcdStore) -> None:
    with pytest.raises(StoreRefused):
        await store.transaction([], [Put("/large", "x" * 1_700_000)])
