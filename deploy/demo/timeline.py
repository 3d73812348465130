"""What a person watches: numbered steps, a running clock, one progress line, a table at the end."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

_BAR_CELLS = 32


@dataclass(slots=True)
class Row:
    """One line of the closing table."""

    what: str
    at_s: float
    took_ms: int | None
    note: str


@dataclass(slots=True)
class Timeline:
    """Prints as things happen; remembers what the closing table needs."""

    started: float = field(default_factory=time.monotonic)
    rows: list[Row] = field(default_factory=list)
    _bar_open: bool = False

    def seconds(self) -> float:
        """Since the demo began."""
        return time.monotonic() - self.started

    def say(self, text: str) -> None:
        """One line of the running timeline."""
        self._close_bar()
        print(f"[{self.seconds():6.1f} s] {text}", flush=True)

    def step(self, number: int, text: str) -> None:
        """A heading."""
        self._close_bar()
        print(f"\n[{self.seconds():6.1f} s] {number}. {text}", flush=True)

    def note(self, what: str, took_ms: float | None = None, note: str = "") -> None:
        """A result: printed now and kept for the table."""
        took = None if took_ms is None else round(took_ms)
        self.rows.append(Row(what, self.seconds(), took, note))
        shown = "" if took is None else f" in {_duration(took)}"
        self.say(f"   {what}{shown}{': ' + note if note else ''}")

    def bar(
        self, label: str, done: int, total: int, unit: str = "MiB", scale: int = 1 << 20
    ) -> None:
        """A progress bar: redrawn on a terminal, one line per tenth otherwise."""
        fraction = min(1.0, done / total) if total else 0.0
        filled = round(fraction * _BAR_CELLS)
        cells = "█" * filled + "·" * (_BAR_CELLS - filled)
        text = f"{label} {cells} {fraction:4.0%} {done / scale:,.0f} of {total / scale:,.0f} {unit}"
        if sys.stdout.isatty():
            print(f"\r[{self.seconds():6.1f} s]    {text}\x1b[K", end="", flush=True)
            self._bar_open = True
        else:
            print(f"[{self.seconds():6.1f} s]    {text}", flush=True)

    def _close_bar(self) -> None:
        if self._bar_open:
            print(flush=True)
            self._bar_open = False

    def table(self) -> None:
        """What happened, when, how long."""
        self._close_bar()
        width = max((len(row.what) for row in self.rows), default=10)
        print(f"\n{'what':<{width}}  {'when':>8}  {'how long':>9}  note")
        print("-" * (width + 60))
        for row in self.rows:
            took = "" if row.took_ms is None else _duration(row.took_ms)
            print(f"{row.what:<{width}}  {row.at_s:>6.1f} s  {took:>9}  {row.note}")
        print(flush=True)


def _duration(took_ms: int) -> str:
    return f"{took_ms} ms" if took_ms < 10_000 else f"{took_ms / 1000:.1f} s"
