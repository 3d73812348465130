"""The contract of ports.cluster_store, as facts: the fake, SQLite and etcd must show each one.

A fact is a function of a room. The meta test plants faults in the fake's model and demands that
some fact notices each of them.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vmreplica.adapters.etcd_store import EtcdStore
from vmreplica.adapters.local_store import LocalStore
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.adapters.system_randomness import SystemRandomness
from vmreplica.ports.cluster_store import (
    ClusterStore,
    Compacted,
    Compare,
    CompareTarget,
    Delete,
    Get,
    Put,
    StoreRefused,
    WatchEvent,
    absent,
    created_at,
    exists,
    unchanged,
)
from vmreplica.testing import etcd_model as model
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_store_server import FakeStoreServer

_numbers = itertools.count(1)


class Room:
    """A store under test, a second client of the same one, and a prefix of one's own."""

    def __init__(
        self, store: ClusterStore, other: ClusterStore, compact: Callable[[int], Awaitable[None]]
    ) -> None:
        self.store = store
        self.other = other
        self.compact = compact
        self.prefix = f"/t{os.getpid()}-{next(_numbers)}/"
        self._leases: list[int] = []

    def key(self, name: str) -> str:
        return self.prefix + name

    async def put(self, name: str, value: str = "v", lease_id: int = 0) -> int:
        result = await self.store.transaction([], [Put(self.key(name), value, lease_id)])
        return result.revision

    async def delete(self, name: str) -> int:
        return (await self.store.transaction([], [Delete(self.key(name))])).revision

    async def grant(self, ttl_ms: int = 60_000) -> int:
        lease = await self.store.grant(ttl_ms)
        self._leases.append(lease.lease_id)
        return lease.lease_id

    async def revision(self) -> int:
        return (await self.store.range(self.prefix)).revision

    async def holds(self, *compares: Compare) -> bool:
        return (await self.store.transaction(compares, [])).succeeded

    async def events(self, start: int, count: int, prefix: str = "") -> list[WatchEvent]:
        """The next ``count`` events; checks order, atomicity and that each comes once."""
        found: list[WatchEvent] = []
        last = start - 1
        async with asyncio.timeout(10), aclosing(self.watch(start, prefix)) as watch:
            async for batch in watch:
                if not batch.events:
                    continue
                revisions = [event.kv.mod_revision for event in batch.events]
                assert revisions == sorted(revisions), "events out of order"
                assert revisions[0] > last, "a revision came twice or in two parts"
                assert batch.revision == revisions[-1]
                last = batch.revision
                found.extend(batch.events)
                if len(found) >= count:
                    return found
        raise AssertionError("the watch ended")

    def watch(self, start: int, prefix: str = "") -> Any:
        return self.store.watch(prefix or self.prefix, start)

    async def tidy(self) -> None:
        for lease_id in self._leases:
            await self.store.revoke(lease_id)


async def fact_missing_keys_are_nothing(room: Room) -> None:
    assert await room.store.get(room.key("a")) is None
    found = await room.store.range(room.prefix)
    assert (found.items, found.count, found.more) == ((), 0, False)


async def fact_a_put_shows_its_revisions_and_version(room: Room) -> None:
    first = await room.put("a", "1")
    second = await room.put("a", "2")
    kv = await room.store.get(room.key("a"))
    assert kv is not None
    assert (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease_id) == (
        (room.key("a"), "2", first, second, 2, 0)
    )
    assert second == first + 1


async def fact_a_key_made_anew_starts_over(room: Room) -> None:
    await room.put("a")
    await room.put("a")
    await room.delete("a")
    again = await room.put("a")
    kv = await room.store.get(room.key("a"))
    assert kv is not None
    assert (kv.version, kv.create_revision) == (1, again)


async def fact_nothing_changed_raises_no_revision(room: Room) -> None:
    before = await room.put("a")
    await room.store.transaction([], [])
    await room.store.transaction([], [Get(room.key("a"))])
    missing = await room.store.transaction([], [Delete(room.key("missing"))])
    failed = await room.store.transaction([absent(room.key("a"))], [Put(room.key("b"), "")])
    assert missing.revision == failed.revision == await room.revision() == before
    assert not failed.succeeded


async def fact_a_transaction_is_one_revision(room: Room) -> None:
    before = await room.put("z")
    puts = [Put(room.key(f"k{i}"), str(i)) for i in range(5)]
    result = await room.store.transaction([], [*puts, Delete(room.key("z"))])
    assert result.revision == before + 1
    items = (await room.store.range(room.prefix)).items
    assert {kv.mod_revision for kv in items} == {before + 1}
    events = await room.events(before + 1, 6)
    assert [(e.kv.key[-2:], e.deleted) for e in events] == [
        *((f"k{i}", False) for i in range(5)),
        ("/z", True),
    ]


async def fact_the_same_value_again_is_a_change(room: Room) -> None:
    first = await room.put("a", "same")
    assert await room.put("a", "same") == first + 1


async def fact_duplicate_keys_are_refused_in_both_branches(room: Room) -> None:
    a = room.key("a")
    before = await room.revision()
    for branch in ([Put(a, "1"), Put(a, "2")], [Put(a, "1"), Delete(a)], [Delete(a), Put(a, "1")]):
        with pytest.raises(StoreRefused):
            await room.store.transaction([], branch)
        with pytest.raises(StoreRefused):
            await room.store.transaction([], [Put(room.key("b"), "1")], branch)
    assert await room.revision() == before
    assert await room.store.get(room.key("b")) is None


async def fact_deleting_a_key_twice_deletes_it_once(room: Room) -> None:
    before = await room.put("a")
    await room.store.transaction([], [Delete(room.key("a")), Delete(room.key("a"))])
    await room.put("b")
    events = await room.events(before + 1, 2)
    assert [e.deleted for e in events] == [True, False]


async def fact_an_unknown_lease_refuses_the_whole_transaction(room: Room) -> None:
    before = await room.revision()
    with pytest.raises(StoreRefused):
        await room.store.transaction(
            [], [Put(room.key("a"), "1"), Put(room.key("b"), "1", lease_id=2**50 + 12_345)]
        )
    assert await room.store.get(room.key("a")) is None
    assert await room.revision() == before


async def fact_malformed_requests_are_refused(room: Room) -> None:
    many = [Put(room.key(f"k{i:03}"), "") for i in range(129)]
    for compares, operations in (
        ([], many),
        ([], [Put("", "1")]),
        ([exists("")], []),
        ([exists(room.key("a"))] * 129, []),
    ):
        with pytest.raises(StoreRefused):
            await room.store.transaction(compares, operations)
    assert (await room.store.transaction([], many[:128])).succeeded
    assert (await room.store.range(room.prefix)).count == 128


async def fact_a_missing_key_compares_as_zero(room: Room) -> None:
    a = room.key("a")
    for target in (CompareTarget.CREATE, CompareTarget.MOD, CompareTarget.VERSION):
        assert await room.holds(Compare(target, a, "=", 0))
        assert await room.holds(Compare(target, a, "<", 1))
        assert await room.holds(Compare(target, a, "!=", 1))
        assert not await room.holds(Compare(target, a, ">", 0))
        assert not await room.holds(Compare(target, a, "!=", 0))
    assert await room.holds(absent(a), unchanged(a, 0))
    assert not await room.holds(exists(a))


async def fact_no_value_comparison_holds_for_a_missing_key(room: Room) -> None:
    for operator, operand in itertools.product(("=", "!=", "<", ">"), ("", "x")):
        compare = Compare(CompareTarget.VALUE, room.key("a"), operator, operand)
        assert not await room.holds(compare), operator


async def fact_comparisons_of_what_is_there(room: Room) -> None:
    lease_id = await room.grant()
    created = await room.put("a", "b")
    changed = await room.put("a", "m", lease_id)
    a = room.key("a")
    for target, have in (
        (CompareTarget.CREATE, created),
        (CompareTarget.MOD, changed),
        (CompareTarget.VERSION, 2),
        (CompareTarget.LEASE, lease_id),
    ):
        truth = [
            await room.holds(Compare(target, a, operator, have + delta))
            for operator, delta in itertools.product(("=", "!=", "<", ">"), (-1, 0, 1))
        ]
        expected = [False, True, False, True, False, True, False, False, True, True, False, False]
        assert truth == expected, target
    for operator, text, expect in (
        ("=", "m", True), ("=", "n", False), ("!=", "n", True), ("!=", "m", False),
        ("<", "n", True), ("<", "m", False), (">", "l", True), (">", "m", False), (">", "", True),
    ):  # fmt: skip
        assert await room.holds(Compare(CompareTarget.VALUE, a, operator, text)) is expect
    assert await room.holds(created_at(a, created), unchanged(a, changed))
    assert not await room.holds(created_at(a, created), unchanged(a, created))


async def fact_the_branch_taken_answers_its_reads_in_order(room: Room) -> None:
    await room.put("a", "1")
    a, b = room.key("a"), room.key("b")
    done = await room.store.transaction([exists(a)], [Get(b), Get(a), Put(b, "2")], [Get(a)])
    assert done.succeeded
    assert [kv and kv.value for kv in done.reads] == [None, "1"]
    failed = await room.store.transaction([absent(a)], [Put(b, "3")], [Get(b), Get(a)])
    assert not failed.succeeded
    assert [kv and kv.value for kv in failed.reads] == ["2", "1"]


async def fact_a_read_in_a_transaction_sees_what_was_put_before_it(room: Room) -> None:
    a = room.key("a")
    result = await room.store.transaction([], [Get(a), Put(a, "new"), Get(a)])
    assert [kv and (kv.value, kv.mod_revision) for kv in result.reads] == [
        None,
        ("new", result.revision),
    ]


async def fact_a_write_is_seen_by_another_client_at_once(room: Room) -> None:
    for number in range(10):
        await room.put("a", str(number))
        kv = await room.other.get(room.key("a"))
        assert kv is not None
        assert kv.value == str(number)


async def fact_guarded_increments_lose_nothing(room: Room) -> None:
    await room.put("n", "0")

    async def add(store: ClusterStore) -> None:
        for _ in range(5):
            while True:
                kv = await store.get(room.key("n"))
                assert kv is not None
                more = Put(kv.key, str(int(kv.value) + 1))
                done = await store.transaction([unchanged(kv.key, kv.mod_revision)], [more])
                if done.succeeded:
                    break

    await asyncio.gather(add(room.store), add(room.other), add(room.store))
    kv = await room.store.get(room.key("n"))
    assert kv is not None
    assert (kv.value, kv.version) == ("15", 16)


async def fact_ranges_page_count_and_filter(room: Room) -> None:
    revisions = [await room.put(f"k{i}") for i in range(5)]
    page = await room.store.range(room.prefix, limit=2)
    assert ([kv.key[-2:] for kv in page.items], page.more, page.count) == (["k0", "k1"], True, 5)
    rest = await room.store.range(room.prefix, limit=3, after_key=room.key("k1"))
    names = [kv.key[-2:] for kv in rest.items]
    assert (names, rest.more, rest.count) == (["k2", "k3", "k4"], False, 3)
    newer = await room.store.range(room.prefix, min_mod_revision=revisions[3])
    assert ([kv.key[-2:] for kv in newer.items], newer.count) == (["k3", "k4"], 5)
    newer = await room.store.range(room.prefix, min_mod_revision=revisions[1], limit=1)
    assert ([kv.key[-2:] for kv in newer.items], newer.more) == (["k1"], True)
    counted = await room.store.range(room.prefix, count_only=True)
    assert (counted.items, counted.count, counted.revision) == ((), 5, revisions[-1])
    late = await room.store.range(room.prefix, after_key=room.key("k9"))
    assert late.items == ()
    early = await room.store.range(room.prefix, after_key="/")
    assert early.count == 5


async def fact_a_prefix_ends_where_it_ends(room: Room) -> None:
    names = ("a", "a/", "a/x", "a0", "a\u00ff", "a\U0001f600", "b", "\uffff")
    before = await room.revision()
    for name in names:
        await room.put(name)
    everything = await room.store.range(room.prefix)
    assert [kv.key for kv in everything.items] == sorted(room.key(name) for name in names)
    inner = await room.store.range(room.key("a/"))
    assert [kv.key for kv in inner.items] == [room.key("a/"), room.key("a/x")]
    assert (await room.store.range(room.key("a"))).count == 6
    events = await room.events(before + 1, 2, prefix=room.key("a/"))
    assert [e.kv.key for e in events] == [room.key("a/"), room.key("a/x")]


async def fact_values_are_any_text(room: Room) -> None:
    for value in ("", "\0", "ä\n\U0001f600", "x" * 300_000):
        await room.put("a", value)
        kv = await room.store.get(room.key("a"))
        assert kv is not None
        assert kv.value == value


async def fact_old_revisions_can_be_read(room: Room) -> None:
    await room.put("a", "1")
    await room.put("b", "1")
    then = await room.put("c", "1")
    await room.put("a", "2")
    await room.delete("b")
    await room.put("d", "2")
    old = await room.store.range(room.prefix, revision=then)
    assert [(kv.key[-1], kv.value) for kv in old.items] == [("a", "1"), ("b", "1"), ("c", "1")]
    assert old.revision == then
    page = await room.store.range(room.prefix, limit=2, after_key=room.key("a"), revision=then)
    assert [kv.key[-1] for kv in page.items] == ["b", "c"]
    counted = await room.store.range(room.prefix, revision=then, count_only=True)
    assert counted.count == 3
    with pytest.raises(StoreRefused):
        await room.store.range(room.prefix, revision=await room.revision() + 1_000_000)


async def fact_compacted_revisions_are_gone(room: Room) -> None:
    first = await room.put("a", "1")
    await room.put("gone")
    await room.put("b", "1")
    await room.delete("gone")
    compact = await room.put("a", "2")
    last = await room.put("a", "3")
    await room.compact(compact)
    with pytest.raises(Compacted):
        await room.store.range(room.prefix, revision=compact - 1)
    at = await room.store.range(room.prefix, revision=compact)
    assert [(kv.key[-1], kv.value) for kv in at.items] == [("a", "2"), ("b", "1")]
    kv = await room.store.get(room.key("a"))
    assert kv is not None
    assert (kv.value, kv.version, kv.create_revision) == ("3", 3, first)
    with pytest.raises(Compacted) as caught:
        await room.events(compact - 1, 1)
    assert caught.value.compact_revision == compact
    (event,) = await room.events(last, 1)
    assert event.kv.value == "3"
    with pytest.raises(Compacted):
        await room.compact(compact)


async def fact_watches_show_every_change_once_in_order(room: Room) -> None:
    before = await room.revision()
    for number in range(10):
        await room.put(f"k{number % 3}", str(number))
    await room.delete("k0")
    events = await room.events(before + 1, 11)
    assert [e.kv.value for e in events] == [*(str(n) for n in range(10)), ""]
    assert [e.kv.mod_revision for e in events] == list(range(before + 1, before + 12))
    assert events[-1].deleted
    assert events[-1].kv.key == room.key("k0")
    resumed = await room.events(before + 6, 6)
    assert resumed == events[5:]


async def fact_watches_wait_for_what_comes(room: Room) -> None:
    before = await room.put("a", "0")

    async def write() -> None:
        for number in range(1, 6):
            await room.other.transaction([], [Put(room.key("a"), str(number))])

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(room.events(before + 1, 5))
        group.create_task(write())
    assert [e.kv.value for e in watching.result()] == ["1", "2", "3", "4", "5"]


async def fact_a_watch_from_now_on_shows_nothing_older(room: Room) -> None:
    await room.put("old")
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await room.put("new")
            await asyncio.sleep(0.05)

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        async with asyncio.timeout(10), aclosing(room.watch(0)) as watch:
            async for batch in watch:
                if batch.events:
                    assert {e.kv.key for e in batch.events} == {room.key("new")}
                    break
        stop.set()


async def fact_the_end_of_a_lease_is_one_revision(room: Room) -> None:
    lease_id = await room.grant()
    for name in ("c", "a", "b"):
        await room.put(name, lease_id=lease_id)
    before = await room.put("free")
    await room.store.revoke(lease_id)
    assert await room.revision() == before + 1
    assert [kv.key for kv in (await room.store.range(room.prefix)).items] == [room.key("free")]
    events = await room.events(before + 1, 3)
    assert {e.kv.key for e in events} == {room.key(n) for n in "abc"}
    assert {(e.deleted, e.kv.mod_revision, e.kv.value) for e in events} == {(True, before + 1, "")}


async def fact_a_lease_without_keys_ends_without_a_revision(room: Room) -> None:
    lease_id = await room.grant()
    before = await room.revision()
    await room.store.revoke(lease_id)
    assert await room.revision() == before


async def fact_a_put_decides_the_lease_of_its_key(room: Room) -> None:
    first, second = await room.grant(), await room.grant()
    await room.put("detached", lease_id=first)
    await room.put("detached")
    await room.put("moved", lease_id=first)
    await room.put("moved", lease_id=second)
    await room.store.revoke(first)
    kvs = (await room.store.range(room.prefix)).items
    assert [(kv.key, kv.lease_id) for kv in kvs] == [
        (room.key("detached"), 0),
        (room.key("moved"), second),
    ]


async def fact_a_gone_lease_is_answered_with_zero(room: Room) -> None:
    lease_id = await room.grant()
    assert await room.store.keepalive(lease_id, 5_000) == 60_000
    await room.store.revoke(lease_id)
    await room.store.revoke(lease_id)
    assert await room.store.keepalive(lease_id, 5_000) == 0
    with pytest.raises(StoreRefused):
        await room.put("a", lease_id=lease_id)


async def fact_lease_times_are_whole_seconds_and_never_shorter(room: Room) -> None:
    for asked_ms in (1, 999, 1_001, 6_000, 86_400_000):
        lease = await room.store.grant(asked_ms)
        assert lease.ttl_ms >= asked_ms
        assert lease.ttl_ms % 1_000 == 0
        assert await room.store.keepalive(lease.lease_id, 5_000) == lease.ttl_ms
        await room.store.revoke(lease.lease_id)
    assert (await room.store.grant(5_200)).ttl_ms == 6_000


async def slow_fact_a_lease_runs_out_late_and_never_early(room: Room) -> None:
    clock = SystemClock()
    lease = await room.store.grant(1_000)
    before = await room.revision()
    for name in ("a", "b"):
        await room.put(name, lease_id=lease.lease_id)
    await room.put("free")
    sent_ms = clock.boottime_ms()
    assert await room.store.keepalive(lease.lease_id, 2_000) == lease.ttl_ms
    events = await room.events(before + 4, 2)
    gone_ms = clock.boottime_ms() - sent_ms
    assert gone_ms >= lease.ttl_ms, f"{gone_ms} ms after the keepalive was sent"
    assert {(e.deleted, e.kv.mod_revision) for e in events} == {(True, before + 4)}
    assert await room.store.keepalive(lease.lease_id, 2_000) == 0


async def slow_fact_keepalives_keep_it(room: Room) -> None:
    lease = await room.store.grant(2_000)
    await room.put("a", lease_id=lease.lease_id)
    for _ in range(5):
        await asyncio.sleep(0.7)
        assert await room.store.keepalive(lease.lease_id, 1_000) == lease.ttl_ms
    assert await room.store.get(room.key("a")) is not None
    await room.store.revoke(lease.lease_id)


FACTS = {
    name.partition("fact_")[2]: fact
    for name, fact in list(globals().items())
    if name.startswith(("fact_", "slow_fact_"))
}
SLOW = {name for name in FACTS if f"slow_fact_{name}" in globals()}


# ---- rooms ----


@asynccontextmanager
async def fake_room(step: Any = None) -> AsyncIterator[Room]:
    server = FakeStoreServer(1, step=step)

    async def compact(revision: int) -> None:
        server.apply(model.Compact(revision))
        server.faults("a").on_change()

    yield Room(FakeClusterStore(server, "a"), FakeClusterStore(server, "b"), compact)
    server.close()


@asynccontextmanager
async def local_room(directory: Path) -> AsyncIterator[Room]:
    store = await LocalStore.open(directory / "store.db", SystemClock())
    yield Room(store, store, store.compact)
    await store.close()


@asynccontextmanager
async def etcd_room(cluster: Any) -> AsyncIterator[Room]:
    store = EtcdStore(cluster.settings(), SystemClock(), SystemRandomness())
    other = EtcdStore(cluster.settings(), SystemClock(), SystemRandomness())
    yield Room(store, other, store.compact)
    await store.close()
    await other.close()


@pytest.fixture(params=["fake", "sqlite", "etcd"])
def make_room(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Any]:
    match request.param:
        case "fake":
            return fake_room
        case "sqlite":
            return lambda: local_room(tmp_path)
        case _:
            cluster = request.getfixturevalue("etcd_single")
            return lambda: etcd_room(cluster)


@pytest.mark.parametrize("name", list(FACTS))
async def test_fact(name: str, make_room: Callable[[], Any]) -> None:
    async with make_room() as room:
        await FACTS[name](room)
        await room.tidy()


# ---- the test of the tests ----


def _is_write(request: Any) -> bool:
    return isinstance(request, model.Transaction)


def revision_for_each_key_of_a_lease(state: Any, request: Any) -> Any:
    if isinstance(request, model.Revoke | model.Expire) and request.lease_id in state.leases:
        keys = [key for key in state.order if state.live[key].lease_id == request.lease_id]
        events: tuple[WatchEvent, ...] = ()
        for key in keys:
            state, _, more = model.step(state, model.Transaction((), (Delete(key),)))
            events += more
        state, response, _ = model.step(state, request)
        return state, response, events
    return model.step(state, request)


def unequal_value_holds_for_missing(state: Any, request: Any) -> Any:
    if _is_write(request):
        kept = tuple(
            c
            for c in request.compares
            if not (
                c.target is CompareTarget.VALUE and c.operator == "!=" and c.key not in state.live
            )
        )
        request = replace(request, compares=kept)
    return model.step(state, request)


def only_the_branch_taken_is_checked(state: Any, request: Any) -> Any:
    if _is_write(request):
        taken = all(model.holds(c, state.live.get(c.key)) for c in request.compares)
        request = replace(request, **{"failure" if taken else "success": ()})
    return model.step(state, request)


def unknown_lease_is_ignored(state: Any, request: Any) -> Any:
    if _is_write(request):
        known = {0, *state.leases}
        request = replace(
            request,
            success=tuple(
                replace(o, lease_id=0) if isinstance(o, Put) and o.lease_id not in known else o
                for o in request.success
            ),
        )
    return model.step(state, request)


def deleting_nothing_raises_the_revision(state: Any, request: Any) -> Any:
    after, response, events = model.step(state, request)
    if _is_write(request) and not events and any(isinstance(o, Delete) for o in request.success):
        after = replace(after, revision=after.revision + 1)
        response = replace(response, revision=after.revision)
    return after, response, events


def the_same_value_is_no_change(state: Any, request: Any) -> Any:
    if _is_write(request) and len(request.success) == 1 and isinstance(request.success[0], Put):
        put = request.success[0]
        old = state.live.get(put.key)
        if old and (old.value, old.lease_id) == (put.value, put.lease_id):
            request = replace(request, success=())
    return model.step(state, request)


def a_put_without_lease_keeps_the_lease(state: Any, request: Any) -> Any:
    if _is_write(request):
        request = replace(
            request,
            success=tuple(
                replace(o, lease_id=state.live[o.key].lease_id)
                if isinstance(o, Put) and not o.lease_id and o.key in state.live
                else o
                for o in request.success
            ),
        )
    return model.step(state, request)


def compaction_forgets_nothing(state: Any, request: Any) -> Any:
    if isinstance(request, model.Compact):
        return state, None, ()
    return model.step(state, request)


def a_dead_lease_is_revived(state: Any, request: Any) -> Any:
    after, response, events = model.step(state, request)
    return after, 60 if isinstance(request, model.Keepalive) and not response else response, events


def a_filtered_count(state: Any, request: Any) -> Any:
    after, response, events = model.step(state, request)
    if isinstance(request, model.Range) and not request.count_only:
        response = replace(response, count=len(response.items))
    return after, response, events


def leases_run_out_early(state: Any, request: Any) -> Any:
    if isinstance(request, model.Grant):
        after, lease, events = model.step(state, request)
        short = replace(after, leases={**after.leases, request.lease_id: 1})
        return short, lease, events
    after, response, events = model.step(state, request)
    return after, 2 if isinstance(request, model.Keepalive) and response else response, events


PLANTED = [
    revision_for_each_key_of_a_lease,
    unequal_value_holds_for_missing,
    only_the_branch_taken_is_checked,
    unknown_lease_is_ignored,
    deleting_nothing_raises_the_revision,
    the_same_value_is_no_change,
    a_put_without_lease_keeps_the_lease,
    compaction_forgets_nothing,
    a_dead_lease_is_revived,
    a_filtered_count,
    leases_run_out_early,
]


async def _fails(name: str, step: Any) -> bool:
    try:
        async with asyncio.timeout(6), fake_room(step) as room:
            await FACTS[name](room)
    except (Exception, pytest.fail.Exception):
        return True
    return False


@pytest.mark.parametrize("step", PLANTED, ids=lambda step: step.__name__)
async def test_a_planted_fault_is_found(step: Any) -> None:
    names = sorted(SLOW if step is leases_run_out_early else FACTS.keys() - SLOW)
    failed = await asyncio.gather(*(_fails(name, step) for name in names))
    found_by = [name for name, found in zip(names, failed, strict=True) if found]
    assert found_by, "no fact noticed this fault"
    assert len(found_by) < len(FACTS), "the planted model breaks everything: no test of the tests"


async def test_the_right_model_shows_every_fact() -> None:
    """Else the test above would find faults where none were planted."""
    names = sorted(FACTS.keys() - SLOW)
    failed = await asyncio.gather(*(_fails(name, model.step) for name in names))
    assert [name for name, found in zip(names, failed, strict=True) if found] == []
