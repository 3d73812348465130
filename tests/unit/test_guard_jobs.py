"""The guard and backup jobs: ours are aborted until they are gone, those of others never."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.guard import GuardProcess
from node.guard_page import GuardPage, boottime_ms

VM = "11111111-2222-4333-8444-555555555555"
OURS = "/scratch/vmr-11111111-0123456789ab-vda.qcow2"
FAKE_VIRSH = """#!/bin/sh
echo "$3" >> "$ROOM/calls"
case $3 in
  backup-dumpxml) cat "$ROOM/xml" ;;
  domjobabort) [ ! -e "$ROOM/broken" ] ;;
esac
"""


class Room:
    """A guard in this process, its main's end of the channel, and a virsh that writes along."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.main, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.guard = GuardProcess(GuardPage.create(), theirs, os.getpid(), "test:///default")

    def runs(self, xml: str) -> None:
        (self.directory / "xml").write_text(xml)

    def job(self, *, too_old: bool) -> None:
        until = boottime_ms() - 1 if too_old else 0
        self.main.send(
            json.dumps({"say": "job", "vm": VM, "scratch": [OURS], "until": until}).encode()
        )
        assert self.guard._hear()

    def calls(self) -> list[str]:
        file = self.directory / "calls"
        return file.read_text().split() if file.exists() else []

    def tick_until(self, wanted: str, times: int, limit_s: float = 10) -> bool:
        until = time.monotonic() + limit_s
        while time.monotonic() < until:
            self.guard.tick()
            if self.calls().count(wanted) >= times:
                return True
            time.sleep(0.02)
        return False


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    virsh = tmp_path / "virsh"
    virsh.write_text(FAKE_VIRSH)
    virsh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("ROOM", str(tmp_path))
    made = Room(tmp_path)
    yield made
    made.main.close()


def backup(scratch: str) -> str:
    return f"<domainbackup mode='pull'><disks><scratch file='{scratch}'/></disks></domainbackup>"


def test_a_job_that_is_too_old_is_aborted(room: Room) -> None:
    room.runs(backup(OURS))
    room.job(too_old=True)
    assert room.tick_until("domjobabort", 1)


def test_the_job_of_another_is_never_aborted(room: Room) -> None:
    """Ours could not begin, or ended unseen, and somebody else's backup runs now."""
    room.runs(backup("/var/tmp/other-vda.qcow2"))
    room.job(too_old=True)
    assert room.tick_until("backup-dumpxml", 2)
    assert "domjobabort" not in room.calls()
    room.main.shutdown(socket.SHUT_WR)
    room.guard.run()  # main is gone: what it was told of is undone, ours alone
    assert "domjobabort" not in room.calls()


def test_an_abort_that_libvirt_did_not_do_is_tried_again(room: Room) -> None:
    """Meanwhile scratch fills, and a full scratch is the guest's disk error."""
    room.runs(backup(OURS))
    (room.directory / "broken").touch()
    room.job(too_old=True)
    assert room.tick_until("domjobabort", 2)
    (room.directory / "broken").unlink()
    assert room.tick_until("domjobabort", 3)
    room.calls()
    assert not room.tick_until("domjobabort", 4, limit_s=5)


def test_when_main_is_gone_our_job_is_aborted(room: Room) -> None:
    room.runs(backup(OURS))
    room.job(too_old=False)
    room.main.shutdown(socket.SHUT_WR)
    room.guard.run()
    assert room.calls().count("domjobabort") == 1
