"""Slots and bandwidth: what bounds the sending of one host."""

from __future__ import annotations

import asyncio

import pytest

from node.service.bandwidth import Bandwidth, TokenBucket
from node.service.transfer_slots import TransferLimits, TransferSlots
from vmreplica.core.cycle import CycleKind
from vmreplica.testing import sim_loop
from vmreplica.testing.fake_clock import FakeClock


@pytest.mark.parametrize(
    ("kind", "limit"), [(CycleKind.FULL, 3), (CycleKind.RESYNC, 3), (CycleKind.DELTA, 8)]
)
def test_slots_are_counted_apart(kind: CycleKind, limit: int) -> None:
    async def main(loop: sim_loop.SimLoop) -> None:
        slots = TransferSlots(TransferLimits)
        gate = asyncio.Event()
        order: list[int] = []

        async def work(n: int) -> None:
            async with slots.transfer(kind):
                order.append(n)
                await gate.wait()

        tasks = [asyncio.ensure_future(work(n)) for n in range(12)]
        await asyncio.sleep(1)
        assert len(order) == slots.running(kind) == limit
        other = CycleKind.FULL if kind is CycleKind.DELTA else CycleKind.DELTA
        async with slots.transfer(other):
            assert slots.running(other) == 1
        waiting = next(n for n in range(12) if n not in order)
        tasks[waiting].cancel()
        gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert set(range(12)) - set(order) == {waiting}
        assert slots.running(kind) == 0

    sim_loop.run(main, 1)


def test_a_cancelled_holder_and_a_raised_limit_let_others_in() -> None:
    async def main(loop: sim_loop.SimLoop) -> None:
        limits = [TransferLimits(max_transfers_per_host=1)]
        slots = TransferSlots(lambda: limits[0])
        inside: list[str] = []

        async def work(name: str) -> None:
            async with slots.transfer(CycleKind.FULL):
                inside.append(name)
                await asyncio.Event().wait()

        tasks = {name: asyncio.ensure_future(work(name)) for name in "abcd"}
        await asyncio.sleep(1)
        (first,) = inside
        tasks[first].cancel()
        await asyncio.sleep(1)
        assert len(inside) == 2
        limits[0] = TransferLimits(max_transfers_per_host=3)
        tasks[inside[1]].cancel()
        await asyncio.sleep(1)
        assert len(inside) == 4
        assert slots.running(CycleKind.FULL) == 2
        for task in tasks.values():
            task.cancel()

    sim_loop.run(main, 2)


@pytest.mark.parametrize("rate", [100_000, 1 << 20, 50 << 20])
def test_the_bucket_keeps_its_rate(rate: int) -> None:
    async def main(loop: sim_loop.SimLoop) -> None:
        clock = FakeClock()
        bucket = TokenBucket(clock, lambda: rate)
        began = clock.boottime_ms()
        total = 0
        for size in [1 << 20, 5, 65_536, 300_000] * 5:
            await bucket.take(size)
            total += size
        elapsed_s = (clock.boottime_ms() - began) / 1000
        assert total / rate * 0.9 - 0.3 <= elapsed_s <= total / rate * 1.02 + 0.3

    sim_loop.run(main, 1)


def test_no_limit_does_not_wait_and_a_raised_one_is_felt_soon() -> None:
    async def main(loop: sim_loop.SimLoop) -> None:
        clock = FakeClock()
        rate = [0]
        bucket = TokenBucket(clock, lambda: rate[0])
        began = clock.boottime_ms()
        for _ in range(100):
            await bucket.take(1 << 20)
        assert clock.boottime_ms() == began
        rate[0] = 1_000
        waiting = asyncio.ensure_future(bucket.take(1 << 20))
        await clock.sleep(2_000)
        assert not waiting.done()
        rate[0] = 0
        await clock.sleep(300)
        assert waiting.done()

    sim_loop.run(main, 1)


def test_two_vms_share_the_link() -> None:
    async def main(loop: sim_loop.SimLoop) -> None:
        clock = FakeClock()
        link = TokenBucket(clock, lambda: 1 << 20)
        vms = [Bandwidth(link, TokenBucket(clock, lambda: 0)) for _ in range(2)]
        began = clock.boottime_ms()

        async def send(vm: Bandwidth) -> None:
            for _ in range(16):
                await vm.take(256 << 10)

        await asyncio.gather(*map(send, vms))
        assert 7_500 <= clock.boottime_ms() - began <= 8_500

    sim_loop.run(main, 1)
