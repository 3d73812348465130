"""How long work is shown while a command waits for it: always on standard error.

A terminal gets a moving bar; anything else gets one plain line a step or a tenth; a quiet
command, or a machine-readable one without a terminal, gets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from vmrctl.output import plain
from vmrctl.values import shown_bytes

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


@dataclass(frozen=True, slots=True)
class Step:
    """One report: what is being done, and how much of it (``total`` 0 = unknown)."""

    text: str
    done: int = 0
    total: int = 0
    unit: str = ""


class Progress(Protocol):
    """Something that shows steps between ``with`` and its end."""

    def show(self, step: Step) -> None:
        """Report where the work stands."""
        ...

    def __enter__(self) -> Progress:
        """Begin showing."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop showing."""
        ...


def progress_for(
    title: str, stream: TextIO, *, quiet: bool, output: str, environ: Mapping[str, str]
) -> Progress:
    """The kind of progress that fits the stream, the format and the environment."""
    is_terminal = stream.isatty() and environ.get("TERM") != "dumb"
    if quiet or (output not in ("table", "wide") and not is_terminal):
        return Silent()
    if is_terminal:
        return Bar(title, stream, colour="NO_COLOR" not in environ)
    return Lines(title, stream)


class Silent:
    """Shows nothing."""

    def show(self, step: Step) -> None:
        """Ignore the step."""

    def __enter__(self) -> Silent:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""


class Lines(Silent):
    """One line when the step's text changes or another tenth is done."""

    def __init__(self, title: str, stream: TextIO) -> None:
        self._title = plain(title)
        self._stream = stream
        self._last: tuple[str, int] | None = None

    def show(self, step: Step) -> None:
        """Print the step if it says something new."""
        tenth = step.done * 10 // step.total if step.total else 0
        if (step.text, tenth) == self._last:
            return
        self._last = (step.text, tenth)
        self._stream.write(f"{self._title}: {line(step)}\n")
        self._stream.flush()


class Bar:
    """A moving bar with percentage, amount, rate and time, drawn by rich."""

    def __init__(self, title: str, stream: TextIO, *, colour: bool) -> None:
        self._title = plain(title)
        self._stream = stream
        self._colour = colour
        self._progress: RichProgress | None = None
        self._task: TaskID | None = None

    def show(self, step: Step) -> None:
        """Move the bar."""
        if self._progress is None:
            return
        fields: dict[str, Any] = {"amount": amount(step), "text": plain(step.text)}
        total = step.total or None
        if self._task is None:
            self._task = self._progress.add_task(self._title, total=total, **fields)
        self._progress.update(self._task, completed=step.done, total=total, **fields)

    def __enter__(self) -> Bar:
        """Begin drawing."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        console = Console(file=self._stream, no_color=not self._colour, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[amount]}", markup=False),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=8,
        )
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state of the bar standing."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def amount(step: Step) -> str:
    """``12.0 MiB of 2.0 GiB``, ``3 of 8 replicas``, or nothing."""
    if not step.total and not step.done:
        return ""
    if step.unit == "bytes":
        done, total = shown_bytes(step.done), shown_bytes(step.total)
        return f"{done} of {total}" if step.total else done
    tail = f" {plain(step.unit)}" if step.unit else ""
    return (f"{step.done} of {step.total}" if step.total else str(step.done)) + tail


def line(step: Step) -> str:
    """A step as one plain line."""
    percent = f" {step.done * 100 // step.total} %" if step.total else ""
    tail = f" ({amount(step)})" if amount(step) else ""
    return f"{plain(step.text) or 'working'}{percent}{tail}"
