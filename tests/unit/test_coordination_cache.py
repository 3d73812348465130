"""StoreCache: true in the end, whatever its watch missed, and never back in time per key."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from vmreplica.coordination import store_cache
from vmreplica.coordination.store_cache import StoreCache
from vmreplica.ports.cluster_store import Delete, KeyValue, Put, StoreUnavailable
from vmreplica.testing.fake_clock import FakeClock
from vmreplica.testing.fake_cluster_store import FakeClusterStore
from vmreplica.testing.fake_store_server import FakeStoreServer
from vmreplica.testing.sim_loop import SimLoop, run

QUIET_MS = 100


class World:
    """A cache on host h; another host writes without trouble."""

    def __init__(self, loop: SimLoop, seed: int = 1) -> None:
        self.loop = loop
        self.server = FakeStoreServer(seed)
        self.faults = self.server.faults("h")
        self.clock = FakeClock()
        self.store = FakeClusterStore(self.server, "h")
        self.writer = FakeClusterStore(self.server, "w")
        self.cache = StoreCache(self.store, self.clock, "/p/")
        self.told: list[str] = []
        self.running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.running = asyncio.create_task(self.cache.run())
        await self.cache.ready()
        self.cache.subscribe(self.told.append)

    async def put(self, key: str, value: str = "v") -> KeyValue:
        await self.writer.transaction([], [Put(key, value)])
        return self.server.state.live[key]

    async def delete(self, key: str) -> int:
        return (await self.writer.transaction([], [Delete(key)])).revision

    def is_true(self) -> bool:
        live = self.server.state.live
        truth = [live[key] for key in self.server.state.order if key.startswith("/p/")]
        return self.cache.items() == truth


def simulated(test: Callable[[World], Awaitable[None]]) -> Callable[[], None]:
    def wrapped() -> None:
        async def main(loop: SimLoop) -> None:
            await test(World(loop))

        run(main, 1)

    wrapped.__name__ = test.__name__
    return wrapped


@simulated
async def test_it_lists_then_follows(world: World) -> None:
    first = await world.put("/p/a")
    await world.put("/other")
    assert not world.cache.is_ready()
    assert world.cache.heard_age_ms() > 1_000_000
    await world.start()
    assert world.cache.is_ready()
    assert world.cache.items() == [first]
    await world.put("/p/c")
    await world.put("/p/b/1")
    await world.put("/p/b/2")
    await world.put("/other2")
    await world.delete("/p/a")
    await world.clock.sleep(QUIET_MS)
    assert world.is_true()
    assert [kv.key for kv in world.cache.items("/p/b/")] == ["/p/b/1", "/p/b/2"]
    assert world.cache.get("/p/a") is None
    assert world.told == ["/p/c", "/p/b/1", "/p/b/2", "/p/a"]
    assert world.cache.revision >= first.mod_revision + 4
    assert world.cache.relists == 1


@simulated
async def test_it_lists_in_pages_at_one_revision(world: World) -> None:
    for batch in range(25):
        puts = [Put(f"/p/{batch:02}/{i:03}", "") for i in range(100)]
        await world.writer.transaction([], puts)
    world.faults.latency_ms = (100.0, 100.0)
    world.faults.watch_delay_ms = (2_000.0, 2_000.0)
    starting = asyncio.create_task(world.start())
    await world.clock.sleep(120)
    await world.delete("/p/24/099")
    await world.put("/p/24/0995")
    await starting
    assert len(world.cache.items()) == 2_500
    assert world.cache.get("/p/24/099") is not None
    assert world.cache.get("/p/24/0995") is None
    await world.clock.sleep(2_000 + QUIET_MS)
    assert world.is_true()


@pytest.mark.parametrize("kind", ["put", "change", "delete"])
def test_a_missed_event_is_repaired_within_the_verification(kind: str) -> None:
    async def main(loop: SimLoop) -> None:
        world = World(loop)
        await world.put("/p/a", "1")
        await world.start()
        world.faults.lose_watch_events = 1.0
        match kind:
            case "put":
                await world.put("/p/b")
            case "change":
                await world.put("/p/a", "2")
            case _:
                await world.delete("/p/a")
        await world.clock.sleep(QUIET_MS)
        assert world.server.fired["watch_event_lost"] == 1
        assert not world.is_true()
        world.faults.lose_watch_events = 0.0
        await world.clock.sleep(5_000 + store_cache.SETTLE_MS + QUIET_MS)
        assert world.is_true()
        assert len(world.told) == 1
        assert world.cache.relists == (2 if kind == "delete" else 1)

    run(main, 1)


@simulated
async def test_a_compacted_watch_lists_anew(world: World) -> None:
    await world.put("/p/a")
    await world.start()
    world.faults.cut = True
    await world.delete("/p/a")
    for number in range(5):
        await world.put("/p/b", str(number))
    world.server.compact()
    await world.clock.sleep(1_000)
    assert not world.is_true()
    world.faults.cut = False
    await world.clock.sleep(1_000)
    assert world.is_true()
    assert world.cache.relists == 2
    await world.put("/p/c")
    await world.clock.sleep(QUIET_MS)
    assert world.is_true()
    world.faults.compact_watches()
    await world.clock.sleep(QUIET_MS)
    assert world.server.fired["watch_compacted"] == 1
    assert world.cache.relists == 3


@simulated
async def test_an_outage_keeps_what_was_known_and_shows_its_age(world: World) -> None:
    known = await world.put("/p/a")
    await world.start()
    await world.clock.sleep(20_000)
    assert world.cache.heard_age_ms() <= 5_100
    world.faults.refuse = True
    await world.put("/p/b")
    await world.clock.sleep(120_000)
    assert world.cache.items() == [known]
    assert world.cache.heard_age_ms() >= 120_000
    assert world.running is not None
    assert not world.running.done()
    world.faults.refuse = False
    await world.clock.sleep(6_000)
    assert world.is_true()
    assert world.cache.heard_age_ms() <= 5_100


@simulated
async def test_the_store_may_be_down_at_the_start(world: World) -> None:
    await world.put("/p/a")
    world.faults.refuse = True
    starting = asyncio.create_task(world.start())
    await world.clock.sleep(30_000)
    assert not world.cache.is_ready()
    world.faults.refuse = False
    await asyncio.wait_for(starting, 5)
    assert world.is_true()


@simulated
async def test_own_writes_are_read_and_older_news_is_ignored(world: World) -> None:
    old = await world.put("/p/a", "old")
    await world.start()
    world.faults.watch_delay_ms = (1_000.0, 1_000.0)
    middle = await world.put("/p/a", "middle")
    newest = await world.put("/p/a", "newest")
    world.cache.note(newest)
    world.cache.note(middle)
    world.cache.note(old)
    assert world.cache.get("/p/a") == newest
    assert world.told == ["/p/a"]
    revision = await world.delete("/p/a")
    world.cache.forget("/p/a", revision)
    world.cache.forget("/p/a", revision)
    world.cache.note(newest)
    assert world.cache.get("/p/a") is None
    assert world.told == ["/p/a", "/p/a"]
    world.cache.forget("/p/a", old.mod_revision)
    seen: list[KeyValue | None] = []
    world.cache.subscribe(lambda key: seen.append(world.cache.get(key)))
    await world.clock.sleep(4_000)
    assert seen == [], "late events of the watch brought the key back"
    again = await world.put("/p/a", "again")
    world.cache.note(again)
    world.cache.forget("/p/a", revision)
    assert world.cache.get("/p/a") == again


@simulated
async def test_a_late_put_does_not_bring_back_what_a_listing_has_seen_deleted(
    world: World,
) -> None:
    await world.start()
    world.faults.watch_delay_ms = (3_000.0, 3_000.0)
    kv = await world.put("/p/a")
    await world.delete("/p/a")
    await world.put("/p/b")
    await world.cache.relist()
    assert world.is_true()
    world.cache.note(kv)
    assert world.is_true()
    await world.clock.sleep(10_000)
    assert world.told == ["/p/b"]
    assert world.is_true()


@simulated
async def test_who_unsubscribed_is_not_told(world: World) -> None:
    await world.start()
    told: list[str] = []
    end = world.cache.subscribe(told.append)
    await world.put("/p/a")
    await world.clock.sleep(QUIET_MS)
    end()
    end()
    await world.put("/p/b")
    await world.clock.sleep(QUIET_MS)
    assert told == ["/p/a"]


@simulated
async def test_a_mistake_in_a_callback_is_not_hidden(world: World) -> None:
    await world.start()
    world.cache.subscribe(lambda _: 1 // 0)  # type: ignore[arg-type]
    await world.put("/p/a")
    await world.clock.sleep(QUIET_MS)
    assert world.running is not None
    with pytest.raises(ExceptionGroup):
        await world.running


def test_it_is_true_after_any_trouble() -> None:
    """Random writes under random faults: each key only moves forward; true 6 s after healing."""
    fired: Counter[str] = Counter()
    for seed in range(40):

        async def main(loop: SimLoop, seed: int = seed) -> None:
            world = World(loop, seed)
            await world.start()
            newest: dict[str, int] = {}

            def forward(key: str) -> None:
                kv = world.cache.get(key)
                if kv is not None:
                    assert kv.mod_revision > newest.get(key, 0), f"seed {seed}: {key} went back"
                    newest[key] = kv.mod_revision

            world.cache.subscribe(forward)
            draw = loop.random
            for _ in range(150):
                key = f"/p/{draw.randrange(12)}"
                await (world.put(key) if draw.random() < 0.6 else world.delete(key))
                world.faults.lose_watch_events = draw.choice([0.0, 0.0, 0.5])
                world.faults.watch_delay_ms = draw.choice([(0.0, 0.0), (0.0, 3_000.0)])
                world.faults.lose_reply = draw.choice([0.0, 0.3])
                world.faults.cut = draw.random() < 0.05
                match draw.randrange(40):
                    case 0:
                        world.server.compact()
                    case 1:
                        world.faults.break_watches()
                    case 2:
                        world.faults.compact_watches()
                    case 3:
                        world.server.change_leader()
                    case _:
                        pass
                await world.clock.sleep(draw.uniform(0, 1_500))
            world.faults.heal()
            await world.clock.sleep(9_500)
            assert world.is_true(), f"seed {seed}"
            fired.update(world.server.fired)

        run(main, seed)
    for name in ("watch_event_lost", "watch_late", "watch_broken", "watch_compacted", "compaction"):
        assert fired[name] > 10, f"{name} hardly ever happened: {fired}"


@simulated
async def test_verify_by_hand_tells_of_an_outage(world: World) -> None:
    await world.start()
    world.faults.refuse = True
    with pytest.raises(StoreUnavailable):
        await world.cache.verify()
