"""The client access point's address: claimed, dropped at the deadline and when the broker dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.address_process import AddressProcess
from vmreplica.adapters.system_clock import SystemClock

pytestmark = [pytest.mark.needs("netns", "ip"), pytest.mark.timeout(60)]
INTERFACE = f"vmr{os.getpid() % 10_000}"
ADDRESS = "198.51.100.77/32"


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def interface() -> object:
    _ip("link", "add", INTERFACE, "type", "veth", "peer", "name", f"{INTERFACE}p")
    for name in (INTERFACE, f"{INTERFACE}p"):
        _ip("link", "set", name, "up")
    yield INTERFACE
    _ip("link", "del", INTERFACE)


def held(interface: str, address: str = ADDRESS) -> bool:
    shown = json.loads(_ip("-j", "addr", "show", "dev", interface))
    return any(f"{a['local']}/{a['prefixlen']}" == address for i in shown for a in i["addr_info"])


async def until(what: object, seconds: float = 5.0) -> None:
    assert callable(what)
    give_up = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < give_up, "it never came true"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def holder(interface: str, address: str = ADDRESS) -> AsyncIterator[AddressProcess]:
    made = AddressProcess(address, interface)
    try:
        yield made
    finally:
        await made.close()


@pytest.mark.parametrize("address", [ADDRESS, "2001:db8::77/128"])
async def test_claim_extend_release(interface: str, address: str) -> None:
    clock = SystemClock()
    async with holder(interface, address) as made:
        await made.claim(clock.boottime_ms() + 60_000)
        assert held(interface, address)
        await made.extend(clock.boottime_ms() + 60_000)
        assert held(interface, address)
        await made.release()
        assert not held(interface, address)
        await made.release()
        await made.claim(clock.boottime_ms() + 60_000)
        assert held(interface, address)
    assert not held(interface, address)


async def test_it_falls_at_the_deadline_and_comes_back_with_a_new_one(interface: str) -> None:
    clock = SystemClock()
    async with holder(interface) as made:
        await made.claim(clock.boottime_ms() + 300)
        assert held(interface)
        await until(lambda: not held(interface))
        await made.extend(clock.boottime_ms() + 60_000)
        assert held(interface)


async def test_what_a_predecessor_left_is_dropped(interface: str) -> None:
    _ip("addr", "add", ADDRESS, "dev", interface)
    async with holder(interface) as made:
        await made.release()
        assert not held(interface)


async def test_a_dead_guard_is_replaced(interface: str) -> None:
    clock = SystemClock()
    async with holder(interface) as made:
        await made.claim(clock.boottime_ms() + 60_000)
        first = made.pid
        os.kill(first, signal.SIGKILL)
        await made.extend(clock.boottime_ms() + 60_000)
        assert held(interface)
        await until(lambda: not _lives(first))
        await made.extend(clock.boottime_ms() + 60_000)
        assert made.pid != first
        assert held(interface)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_an_interface_that_is_not_there_is_said() -> None:
    async with holder("vmrnone0") as made:
        with pytest.raises(OSError, match=r"[Nn]o such|guard"):
            await made.claim(SystemClock().boottime_ms() + 1_000)


async def test_neighbours_are_told(interface: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as peer:
        peer.bind((f"{interface}p", 0x0806))
        peer.settimeout(5)
        async with holder(interface) as made:
            await made.claim(SystemClock().boottime_ms() + 60_000)
            frame = await asyncio.to_thread(peer.recv, 200)
    assert frame[:6] == b"\xff" * 6
    assert frame[28:32] == socket.inet_aton(ADDRESS.split("/", maxsplit=1)[0])


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_it_falls_when_the_broker_is_killed_or_frozen(interface: str, how: int) -> None:
    """The parent claims for two seconds ahead again and again, as a broker does."""
    parent = f"""
import asyncio
from broker.address_process import AddressProcess
from vmreplica.adapters.system_clock import SystemClock
async def main():
    clock = SystemClock()
    made = AddressProcess({ADDRESS!r}, {interface!r})
    while True:
        await made.claim(clock.boottime_ms() + 2000)
        await asyncio.sleep(0.1)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:
        await until(lambda: held(interface), 10)
        process.send_signal(how)
        await until(lambda: not held(interface), 5)
    finally:
        process.kill()
        process.wait()
