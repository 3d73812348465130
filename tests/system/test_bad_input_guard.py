"""The guard against a real libvirt: a backup whose agent cannot end it is ended, the guest stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.contract.libvirt_room import LibvirtRoom, TinyVm, libvirt_room
from tests.support.commands import ROOT

pytestmark = [pytest.mark.needs("root", "libvirt", "qemu"), pytest.mark.timeout(90)]
AGE_MS = 1_500
AGENT = """
import asyncio, sys
from node.guard_page import boottime_ms
from node.host.guard_client import GuardClient
from node.host.libvirt_change_source import LibvirtChangeSource
from node.host.libvirt_connection import LibvirtConnection
from vmreplica.adapters.system_clock import SystemClock
from vmreplica.core.cycle import CycleKind, Disk
from vmreplica.ports.change_source import BackupRequest

uri, vm_uuid, scratch, age_ms = sys.argv[1:]

class Guard(GuardClient):
    # The backup is of the kind that waits for its reader; only the limit told is a delta's.
    async def job_begins(self, vm, paths, until):
        await super().job_begins(vm, paths, boottime_ms() + int(age_ms) if int(age_ms) else until)

async def main():
    guard = Guard("n1", uri, [], lambda: sys.exit(70))
    await guard.start()
    source = LibvirtChangeSource(
        LibvirtConnection(uri), scratch_dir=scratch, guard=guard, clock=SystemClock(),
        min_scratch_bytes=1 << 20,
    )
    job = await source.begin(BackupRequest(
        vm_uuid=vm_uuid, kind=CycleKind.FULL, cycle_id=b"1" * 16, since_cycle_id=b"",
        disks=(Disk("vda", 16 << 20),), compression="none",
    ))
    print("begun", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def room() -> Iterator[LibvirtRoom]:
    with libvirt_room() as made:
        yield made


@pytest.fixture
def vm(room: LibvirtRoom) -> Iterator[TinyVm]:
    made = TinyVm(room, f"guarded{time.monotonic_ns()}", {"vda": 16})
    with room.connection() as connection:
        connection.lookupByName(made.name).resume()
    made.write("vda", 0, 1 << 20, 7)
    yield made
    made.remove()


def agent(room: LibvirtRoom, vm: TinyVm, age_ms: int) -> subprocess.Popen[str]:
    """A process that holds an open backup of the VM, as the node's main process does."""
    scratch = room.path / "scratch" / vm.name
    scratch.mkdir()
    command = [sys.executable, "-c", AGENT, room.uri, vm.uuid, str(scratch), str(age_ms)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def job_runs(room: LibvirtRoom, vm: TinyVm) -> bool:
    with room.connection() as connection:
        domain = connection.lookupByName(vm.name)
        return bool(domain.jobInfo()[0] != libvirt.VIR_DOMAIN_JOB_NONE)


def ended(room: LibvirtRoom, vm: TinyVm) -> None:
    """The job goes; the guest runs on."""
    give_up = time.monotonic() + 20
    while job_runs(room, vm):
        assert time.monotonic() < give_up, "nobody ended the backup"
        time.sleep(0.05)
    with room.connection() as connection:
        assert connection.lookupByName(vm.name).state()[0] == libvirt.VIR_DOMAIN_RUNNING


def test_a_job_past_its_age_is_aborted_while_the_agent_stands_still(
    room: LibvirtRoom, vm: TinyVm
) -> None:
    process = agent(room, vm, AGE_MS)
    try:
        process.send_signal(signal.SIGSTOP)
        assert job_runs(room, vm), "the job was over before anything was tried"
        ended(room, vm)
        assert _state(process.pid) == "T", "it must have been the guard"
    finally:
        process.kill()
        process.wait()


def test_a_job_without_age_is_aborted_when_the_agent_is_gone(room: LibvirtRoom, vm: TinyVm) -> None:
    process = agent(room, vm, 0)
    time.sleep(AGE_MS / 1000)  # an initial replication is never ended by time
    assert job_runs(room, vm)
    process.kill()
    process.wait()
    ended(room, vm)


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
