"""``make test``: the checks, then every room of tests, with a summary that hides nothing.

    tools/check_rooms.py            checks and all rooms
    tools/check_rooms.py ROOM...    only these (``checks`` is one of the names)

The last line reads like pytest's closing line, over everything. Exit 1 when anything failed, when
a room crashed, or when a room has no tests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import check

ROOT = check.ROOT
RESULTS = ROOT / "build" / "test"
CLOSING = RESULTS / "closing-line"
ROOMS = ("unit", "golden", "contract", "sim", "system", "e2e", "packaging")
CHECKS = "checks"
PARALLEL = {"unit", "golden", "contract", "sim"}
"""Rooms whose tests share nothing: two at a time. The others have the machine for themselves."""
BUDGET_S = 20 * 60
NO_TESTS = 5


@dataclass(slots=True)
class Room:
    """What one room came to."""

    name: str
    passed: int = 0
    failed: int = 0
    errors: int = 0
    skipped: int = 0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not self.failed and not self.errors


def run_checks() -> Room:
    """The checks as a room."""
    begun = time.monotonic()
    room = Room(CHECKS)
    for verdict in check.run_checks(list(check.CHECKS)):
        if verdict.skipped:
            room.skipped += 1
            room.reasons[f"{verdict.name}: {verdict.skipped}"] += 1
        elif verdict.ok:
            room.passed += 1
        else:
            room.failed += 1
            room.faults.append(f"check {verdict.name}")
    room.seconds = time.monotonic() - begun
    return room


def run_room(name: str) -> Room:
    """One room by a pytest of its own."""
    begun = time.monotonic()
    report = RESULTS / f"{name}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", f"tests/{name}", "-q", f"--junitxml={report}"]
    if name in PARALLEL:
        command += ["-n", str(min(2, os.cpu_count() or 1))]
    code = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode
    room = read_report(name, report)
    room.seconds = time.monotonic() - begun
    if code == NO_TESTS or not (room.passed or room.failed or room.errors or room.skipped):
        room.errors += 1
        room.faults.append(f"room {name} has no tests")
    elif code not in (0, 1) or (code == 1 and room.ok):
        room.errors += 1 if room.ok else 0
        room.faults.append(f"room {name}: pytest ended with {code}")
    return room


def read_report(name: str, report: Path) -> Room:
    """Count a room's JUnit report; one that is missing or broken counts nothing."""
    room = Room(name)
    try:
        tree = ET.parse(report)
    except (OSError, ET.ParseError):
        return room
    for case in tree.iter("testcase"):
        where = f"{case.get('classname', '')}::{case.get('name', '')}".replace(".", "/")
        skipped = case.find("skipped")
        if case.find("failure") is not None:
            room.failed += 1
            room.faults.append(where)
        elif case.find("error") is not None:
            room.errors += 1
            room.faults.append(where)
        elif skipped is not None:
            room.skipped += 1
            room.reasons[skipped.get("message") or "no reason given"] += 1
        else:
            room.passed += 1
    return room


def summary(rooms: list[Room]) -> str:
    """The table, the faults, and why anything was skipped."""
    lines = [
        "",
        f"{'room':<10} {'passed':>7} {'failed':>7} {'errors':>7} {'skipped':>8} {'time':>9}",
    ]
    lines += [
        f"{room.name:<10} {room.passed:>7} {room.failed:>7} {room.errors:>7} {room.skipped:>8} "
        f"{room.seconds:>7.1f} s"
        for room in rooms
    ]
    for room in rooms:
        lines += [f"FAILED   {fault}" for fault in room.faults]
        lines += [f"SKIPPED  {room.name} ×{n}: {why}" for why, n in sorted(room.reasons.items())]
    total_s = sum(room.seconds for room in rooms)
    if total_s > BUDGET_S:
        lines.append(f"OVER THE BUDGET of {BUDGET_S // 60} minutes: {total_s / 60:.1f} minutes")
    return "\n".join(lines)


def closing_line(rooms: list[Room]) -> str:
    """Pytest's closing line over all rooms."""
    counts = {
        "failed": sum(room.failed for room in rooms),
        "passed": sum(room.passed for room in rooms),
        "skipped": sum(room.skipped for room in rooms),
        "errors": sum(room.errors for room in rooms),
    }
    words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    seconds = sum(room.seconds for room in rooms)
    clock = f" ({int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02})"
    text = f" {words or 'no tests ran'} in {seconds:.2f}s{clock if seconds >= 60 else ''} "
    return text.center(80, "=")


def main(names: list[str]) -> int:
    """Run rooms in order and close with the one line."""
    known = (CHECKS, *ROOMS)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"test: there is no room {unknown[0]!r}; there are: {', '.join(known)}.")
        return 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    CLOSING.unlink(missing_ok=True)
    rooms = []
    for name in names or known:
        print(f"\n### {name}", flush=True)
        rooms.append(run_checks() if name == CHECKS else run_room(name))
    print(summary(rooms))
    line = closing_line(rooms)
    CLOSING.write_text(line + "\n", encoding="utf-8")
    print(line, flush=True)
    return 0 if all(room.ok for room in rooms) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
