"""What the simulation relies on in its loop: replay, pause, crash, no way out."""

import asyncio

import pytest

from vmreplica.testing.sim_loop import Deadlock, HostLife, LeftSimulation, SimLoop, run


async def _ticks(loop: SimLoop, log: list[tuple[str, float]], name: str, period_s: float) -> None:
    try:
        while True:
            await asyncio.sleep(period_s)
            log.append((name, round(loop.time(), 3)))
    finally:
        log.append((name + " cleaned up", round(loop.time(), 3)))


def _story(seed: int) -> list[tuple[str, float]]:
    async def main(loop: SimLoop) -> list[tuple[str, float]]:
        log: list[tuple[str, float]] = []
        lives = [HostLife(n) for n in ("a", "b", "c")]
        for life in lives:
            loop.start_on(life, _ticks(loop, log, life.name, 1.0))
        await asyncio.sleep(2.5)
        loop.pause(lives[0])
        loop.crash(lives[1])
        await asyncio.sleep(3)
        loop.resume(lives[0])
        await asyncio.sleep(1)
        return list(log)

    return run(main, seed)


def test_one_seed_is_one_history_and_seeds_differ() -> None:
    assert _story(7) == _story(7)
    assert len({tuple(_story(seed)) for seed in range(20)}) > 5


def test_paused_host_waits_and_crashed_host_cleans_nothing_up() -> None:
    log = _story(3)
    assert [t for n, t in log if n == "a"] == [1.0, 2.0, 5.5, 6.5]
    assert [t for n, t in log if n == "b"] == [1.0, 2.0]
    assert ("b cleaned up", 2.5) not in log


def test_thirty_virtual_seconds_pass_without_real_ones() -> None:
    async def main(loop: SimLoop) -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(30):
                await asyncio.Event().wait()
        return loop.time()

    assert run(main, 1) == pytest.approx(30, abs=1e-6)


def test_a_world_in_which_nothing_can_happen_is_a_deadlock() -> None:
    async def main(_: SimLoop) -> None:
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run(main, 1)


def test_threads_and_sockets_are_refused() -> None:
    async def main(loop: SimLoop) -> None:
        with pytest.raises(LeftSimulation):
            await asyncio.to_thread(len, "x")
        with pytest.raises(LeftSimulation):
            loop.call_soon_threadsafe(len, "x")

    run(main, 1)
