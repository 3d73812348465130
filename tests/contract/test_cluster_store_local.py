"""What only the SQLite store does: it survives its process, and says so when its file does not."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vmreplica.adapters.local_store import LocalStore
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.cluster_store import Compacted, Delete, Put, StoreUnavailable

CLOCK = SystemClock()


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    store = await LocalStore.open(tmp_path / "s.db", CLOCK)
    first = (await store.transaction([], [Put("/a", "1"), Put("/b", "1")])).revision
    await store.transaction([], [Put("/a", "2")])
    await store.transaction([], [Delete("/b")])
    before = await store.range("/")
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable):
        await store.get("/a")
    store = await LocalStore.open(tmp_path / "s.db", CLOCK)
    assert await store.range("/") == before
    old = await store.range("/", revision=first)
    assert [(kv.key, kv.value) for kv in old.items] == [("/a", "1"), ("/b", "1")]
    watch: Any = store.watch("/", first)
    batches = [await anext(watch) for _ in range(3)]
    assert [batch.revision for batch in batches] == [first, first + 1, first + 2]
    await watch.aclose()
    await store.close()


async def test_signs_of_life_end_with_their_process_and_long_leases_go_on(tmp_path: Path) -> None:
    store = await LocalStore.open(tmp_path / "s.db", CLOCK)
    short, long = await store.grant(60_000), await store.grant(3_600_000)
    await store.transaction([], [Put("/node", "", short.lease_id), Put("/op", "", long.lease_id)])
    revision = (await store.range("/")).revision
    await store.close()
    store = await LocalStore.open(tmp_path / "s.db", CLOCK)
    found = await store.range("/")
    assert [kv.key for kv in found.items] == ["/op"]
    assert found.revision == revision + 1
    assert await store.keepalive(short.lease_id, 1_000) == 0
    assert await store.keepalive(long.lease_id, 1_000) == 3_600_000
    fresh = await store.grant(60_000)
    assert fresh.lease_id not in {short.lease_id, long.lease_id}
    await store.close()


async def test_the_history_is_bounded(tmp_path: Path) -> None:
    store = await LocalStore.open(tmp_path / "s.db", CLOCK, history_kept=20)
    first = (await store.transaction([], [Put("/a", "0")])).revision
    for number in range(100):
        await store.transaction([], [Put("/a", str(number))])
    watch: Any = store.watch("/", first)
    with pytest.raises(Compacted) as caught:
        await anext(watch)
    oldest = caught.value.compact_revision
    assert first + 60 <= oldest <= first + 90
    assert (await store.range("/", revision=oldest)).items
    watch = store.watch("/", oldest)
    assert (await anext(watch)).revision == oldest
    await watch.aclose()
    await store.close()


@pytest.mark.parametrize("where", [0, 100, 4_096, 8 * 4_096])
async def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, where: int) -> None:
    path = tmp_path / "s.db"
    store = await LocalStore.open(path, CLOCK)
    for number in range(200):
        await store.transaction([], [Put(f"/{number}", "x" * 100)])
    await store.close()
    content = bytearray(path.read_bytes())
    content[where : where + 3_500] = b"\xa5" * 3_500
    path.write_bytes(content)
    with pytest.raises(Problem) as caught:
        await LocalStore.open(path, CLOCK)
    problem = caught.value
    assert problem.reason is Reason.STORE_UNAVAILABLE
    assert problem.value == str(path)
    assert "store adopt" in problem.remedy
    assert not problem.retryable


async def test_a_missing_directory_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="cannot be opened"):
        await LocalStore.open(tmp_path / "none" / "s.db", CLOCK)


async def test_a_second_process_is_refused(tmp_path: Path) -> None:
    store = await LocalStore.open(tmp_path / "s.db", CLOCK)
    with pytest.raises(Problem, match="in use by another process"):
        await LocalStore.open(tmp_path / "s.db", CLOCK)
    await store.transaction([], [Put("/a", "still works")])
    await store.close()


async def test_others_cannot_read_the_file(tmp_path: Path) -> None:
    store = await LocalStore.open(tmp_path / "s.db", CLOCK)
    assert (tmp_path / "s.db").stat().st_mode & 0o077 == 0
    await store.close()


_WRITER = """
import asyncio, sys
from vmreplica.adapters.local_store import LocalStore
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.ports.cluster_store import Put

async def main():
    store = await LocalStore.open(sys.argv[1], SystemClock())
    for number in range(1_000_000):
        await store.transaction([], [Put("/n", str(number)), Put("/m", str(number))])
        print(number, flush=True)

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for _ in range(50):
            acknowledged = int(process.stdout.readline())
        process.kill()
        acknowledged = max([acknowledged, *map(int, process.stdout.read().split())])
        process.wait()
        process.stdout.close()
        store = await LocalStore.open(path, CLOCK)
        n, m = await store.get("/n"), await store.get("/m")
        assert n is not None
        assert m is not None
        assert n.value == m.value
        assert int(n.value) in {acknowledged, acknowledged + 1}
        await store.close()


async def test_a_cancelled_writer_still_wakes_the_watchers(tmp_path: Path) -> None:
    store = await LocalStore.open(tmp_path / "s.db", CLOCK)
    watch: Any = store.watch("/", 0)
    waiting = asyncio.create_task(anext(watch))
    await asyncio.sleep(0.05)
    while await store.get("/a") is None:
        # Cancelled before the thread begins, it writes nothing: then once more.
        writer = asyncio.create_task(store.transaction([], [Put("/a", "1")]))
        await asyncio.sleep(0)
        writer.cancel()
    batch = await asyncio.wait_for(waiting, 10)
    assert batch.events[0].kv.key == "/a"
    await watch.aclose()
    await store.close()
