"""``make bench``: measure all rows, write the report, say one line.

Environment: QUICK=1 few and small samples (under 5 minutes); ONLY=name,name some groups of rows;
STRICT=1 a missed target is an error; SIZE_MIB=n content of the disks.
Exit: 0 everything was measured (missed targets are shown, and are an error only with STRICT=1),
1 something could not be measured, or STRICT and missed.
``docs/benchmarks.md`` is written by whole runs only; others write ``build/bench/benchmarks.md``.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType

from bench.context import BUILD, ROOT, Bench
from bench.machine import Machine
from bench.report import Report
from bench.result import Result
from bench.rows import initial, relay, relocation, takeover

Row = Callable[[Bench], list[Result]]

ROWS: dict[str, Row] = {
    "relay": relay.measure,
    "initial": initial.measure,
    "takeover": takeover.measure,
    "relocation": relocation.measure,
}
"""What can be named in ONLY, in the order it is measured."""


def main() -> int:
    """See above."""
    signal.signal(signal.SIGTERM, _terminated)
    quick = _flag("QUICK")
    chosen = [name for name in os.environ.get("ONLY", "").split(",") if name] or list(ROWS)
    unknown = sorted(set(chosen) - set(ROWS))
    if unknown:
        print(f"bench: no row {', '.join(unknown)}; there are: {', '.join(ROWS)}", file=sys.stderr)
        return 2
    size_mib = int(os.environ.get("SIZE_MIB") or (256 if quick else 1024))
    bench = Bench(quick=quick, size_mib=size_mib)
    report = Report(Machine.look(ROOT), quick)
    try:
        for name in chosen:
            _measure(name, bench, report)
    finally:
        bench.close()
    report.seconds = bench.seconds
    whole = not quick and len(chosen) == len(ROWS) and "SIZE_MIB" not in os.environ
    document = ROOT / "docs" / "benchmarks.md" if whole else BUILD / "benchmarks.md"
    report.write(BUILD / "report.json", document)
    print(report.to_markdown())
    print(report.verdict())
    if report.failures or not report.results:
        return 1
    return 1 if report.missed and _flag("STRICT") else 0


def _measure(name: str, bench: Bench, report: Report) -> None:
    bench.say(f"{name} begins")
    try:
        report.results += ROWS[name](bench)
    except Exception as error:  # noqa: BLE001 - one row must not cost the others; it is reported
        traceback.print_exc()
        report.failures[name] = f"{type(error).__name__}: {error}"
        bench.say(f"{name} could not be measured: {error}")


def _flag(name: str) -> bool:
    return os.environ.get(name, "") not in ("", "0")


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
