"""Holds the client access point's IP address in a process of its own.

``python -m broker.address_guard --address 192.0.2.9/24 --interface eth0``; started by the broker,
driven over stdin, one answer a line on stdout:

``hold DEADLINE``  hold it until CLOCK_BOOTTIME shows DEADLINE (ms) → ``held`` or ``error …``
``drop``           drop it now → ``dropped`` or ``error …``

It drops the address by itself when the deadline passes (the broker is frozen or cut off) and when
stdin closes (the broker is dead). It has no event loop, takes no lock and allocates next to
nothing: what it promises must hold when its parent is in trouble.
"""

from __future__ import annotations

import argparse
import ctypes
import ipaddress
import os
import select
import signal
import sys
import time
from types import FrameType

from broker.netlink import InterfaceAddress

_LOOK_MS = 50
"""Longest sleep while holding: a suspended host must notice its deadline at once."""
_ANNOUNCE_AFTER_MS = (0, 100, 400)
_ANNOUNCE_EVERY_MS = 2_000
"""A frozen former leader's kernel still answers for the address: neighbours are told again and
again who has it now."""
_MCL_CURRENT_AND_FUTURE = 3


class Guard:
    """The state: a deadline, and announcements still to be made."""

    def __init__(self, address: InterfaceAddress) -> None:
        self._address = address
        self._deadline_ms = 0
        self._announce_at_ms: list[int] = []

    def hold(self, deadline_ms: int) -> None:
        """Hold until then; announced when it was not held before. :raises OSError:"""
        now_ms = boottime_ms()
        if deadline_ms <= now_ms:
            self.drop()
            return
        if not self._deadline_ms:
            self._address.add()
            self._announce_at_ms = [now_ms + after for after in _ANNOUNCE_AFTER_MS]
        self._deadline_ms = deadline_ms
        self.look()

    def drop(self) -> None:
        """Drop now. :raises OSError:"""
        self._deadline_ms = 0
        self._announce_at_ms = []
        self._address.remove()

    def look(self) -> None:
        """Do what is due by the clock."""
        now_ms = boottime_ms()
        if self._deadline_ms and now_ms >= self._deadline_ms:
            self.drop()
        while self._announce_at_ms and now_ms >= self._announce_at_ms[0]:
            del self._announce_at_ms[0]
            if not self._announce_at_ms:
                self._announce_at_ms.append(now_ms + _ANNOUNCE_EVERY_MS)
            try:
                self._address.announce()
            except OSError as error:
                print(f"announcement failed: {error}", file=sys.stderr)  # noqa: T201

    def wait_s(self) -> float | None:
        """How long to sleep at most; None = for ever."""
        return _LOOK_MS / 1000 if self._deadline_ms else None


def boottime_ms() -> int:
    """CLOCK_BOOTTIME in milliseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def obey(guard: Guard, line: str) -> str:
    """One command; the answer."""
    words = line.split()
    try:
        match words:
            case ["hold", deadline] if deadline.isdecimal():
                guard.hold(int(deadline))
                return "held"
            case ["drop"]:
                guard.drop()
                return "dropped"
            case _:
                return f"error unknown command {line!r}"
    except OSError as error:
        return f"error {error}"


def serve(guard: Guard, commands: int, answers: int) -> None:
    """Until the parent closes its end."""
    os.set_blocking(commands, False)
    pending = b""
    while True:
        readable, _, _ = select.select([commands], [], [], guard.wait_s())
        guard.look()
        if not readable:
            continue
        data = os.read(commands, 4_096)
        if not data:
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            answer = obey(guard, line.decode(errors="replace"))
            try:
                os.write(answers, answer.encode() + b"\n")
            except BrokenPipeError:
                return


def main() -> int:
    """Exit 0 when the parent went, 1 where the address could not be dropped."""
    parser = argparse.ArgumentParser(prog="python -m broker.address_guard")
    parser.add_argument("--address", required=True, type=ipaddress.ip_interface)
    parser.add_argument("--interface", required=True)
    options = parser.parse_args()
    guard = Guard(InterfaceAddress(options.address, options.interface))
    signal.signal(signal.SIGTERM, _leave)
    # Ctrl-C in a terminal goes to the whole group; the broker decides when the address goes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).mlockall(_MCL_CURRENT_AND_FUTURE)  # refused without the right: no harm
    try:
        guard.drop()  # what a predecessor left behind
        serve(guard, sys.stdin.fileno(), sys.stdout.fileno())
    finally:
        try:
            guard.drop()
        except OSError as error:
            print(f"the address could not be dropped: {error}", file=sys.stderr)  # noqa: T201
            return 1
    return 0


def _leave(_: int, __: FrameType | None) -> None:
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
