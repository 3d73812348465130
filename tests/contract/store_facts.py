"""The facts of ports.cluster_store, as functions of a room: every store must show each one."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing

import pytest

from tests.contract.store_room import Room
from vmreplica.ports.cluster_store import (
    ClusterStore,
    Compacted,
    Compare,
    CompareTarget,
    Delete,
    Get,
    Put,
    StoreRefused,
    absent,
    created_at,
    exists,
    unchanged,
)


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
            await room.clock.sleep(50)

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


async def fact_a_lease_runs_out_late_and_never_early(room: Room) -> None:
    clock = room.clock
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


async def fact_keepalives_keep_it(room: Room) -> None:
    lease = await room.store.grant(2_000)
    await room.put("a", lease_id=lease.lease_id)
    for _ in range(4):
        await room.clock.sleep(700)
        assert await room.store.keepalive(lease.lease_id, 1_000) == lease.ttl_ms
    assert await room.store.get(room.key("a")) is not None
    await room.store.revoke(lease.lease_id)


FACTS = {
    name.removeprefix("fact_"): fact
    for name, fact in list(globals().items())
    if name.startswith("fact_")
}
