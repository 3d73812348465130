"""The guard as a process: it acts when the main process cannot, and ends with it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAIN = """
import asyncio, subprocess, sys
from node.guard_page import boottime_ms
from node.host.guard_client import GuardClient

TTL_MS = int(sys.argv[1])

async def main():
    client = GuardClient("r1", "test:///default", [sys.argv[2]], lambda: sys.exit(70))
    await client.start()
    child = subprocess.Popen(["sleep", "300"])
    client.register_child(child.pid)
    client.set_deadline(boottime_ms() + TTL_MS)
    print(child.pid, client.pid, flush=True)
    loop = asyncio.get_running_loop()
    if sys.argv[3] == "renew":
        while True:
            client.set_deadline(boottime_ms() + TTL_MS)
            print("ages", max(client.probe_ages_ms().values()), flush=True)
            await asyncio.sleep(0.1)
    await asyncio.sleep(300)

asyncio.run(main())
"""
TTL_MS = 1_500


class Guarded:
    """A small main process with its guard and one store-writing child."""

    def __init__(self, directory: Path, mode: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.main = subprocess.Popen(
            [sys.executable, "-c", MAIN, str(TTL_MS), str(directory), mode],
            stdout=subprocess.PIPE,
            env=environment,
        )
        assert self.main.stdout is not None
        self.child, self.guard = map(int, self.main.stdout.readline().split())
        self.handles = [os.pidfd_open(pid) for pid in (self.child, self.guard, self.main.pid)]

    def ended_s(self, which: int, limit_s: float) -> float:
        """Seconds until the process behind this handle has ended."""
        began = time.monotonic()
        ready, _, _ = select.select([self.handles[which]], [], [], limit_s)
        assert ready, f"process {which} still runs after {limit_s} s"
        return time.monotonic() - began

    def runs(self, which: int) -> bool:
        return not select.select([self.handles[which]], [], [], 0)[0]

    def close(self) -> None:
        self.main.kill()
        self.main.wait()
        for handle in self.handles:
            os.close(handle)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    started: list[Guarded] = []

    def make(mode: str) -> Guarded:
        started.append(Guarded(tmp_path, mode))
        return started[-1]

    yield make
    for one in started:
        one.close()


CHILD, GUARD, PROCESS = range(3)


def test_a_stopped_main_loses_its_children_at_the_deadline_and_itself_soon_after(start) -> None:
    guarded = start("renew")
    os.kill(guarded.main.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    assert guarded.runs(CHILD)
    guarded.ended_s(CHILD, 10)
    child_gone_s = time.monotonic() - stopped
    guarded.ended_s(PROCESS, 10)
    main_gone_s = time.monotonic() - stopped
    # Not before the deadline: a killed child too early would be a cycle lost for nothing.
    assert child_gone_s > TTL_MS / 1000 - 0.3
    assert main_gone_s - child_gone_s > 0.4
    guarded.ended_s(GUARD, 10)


def test_a_main_that_runs_but_has_no_lease_keeps_its_life(start) -> None:
    guarded = start("silent")
    guarded.ended_s(CHILD, 10)
    time.sleep(1.2)  # longer than the time to confirm
    assert guarded.runs(PROCESS)
    assert guarded.runs(GUARD)


def test_renewals_keep_the_children_and_the_probe_answers(start, tmp_path: Path) -> None:
    guarded = start("renew")
    time.sleep(2 * TTL_MS / 1000 + 1)
    assert guarded.runs(CHILD)
    assert (tmp_path / ".vmreplica-probe.r1").stat().st_size == 21
    line = b""
    for _ in range(25):
        line = guarded.main.stdout.readline()
    assert 0 <= int(line.split()[1]) < 8_000


def test_the_guard_ends_with_main_and_takes_the_children_along(start) -> None:
    guarded = start("renew")
    guarded.main.kill()
    guarded.ended_s(CHILD, 5)
    guarded.ended_s(GUARD, 5)


def test_main_ends_with_the_guard(start) -> None:
    guarded = start("renew")
    os.kill(guarded.guard, signal.SIGKILL)
    guarded.ended_s(PROCESS, 5)
