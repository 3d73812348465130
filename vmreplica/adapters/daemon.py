"""What every daemon's ``main`` does: arguments, configuration, log, signals, exit codes.

SIGTERM and SIGINT stop it cleanly, SIGHUP reads configuration and certificates again. ``--check``
only validates: exit 0 or 2. What goes wrong is told in one line on stderr, never as a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from vmreplica.adapters.config_file import load_config
from vmreplica.core.problems import Problem, Reason

C = TypeVar("C")
_log = logging.getLogger(__name__)
LOG_LEVEL_VARIABLE = "VMR_LOG"
"""debug, info (default), warning or error."""


class Signals:
    """What a daemon's main coroutine hears from outside.

    :ivar stop: set by SIGTERM and SIGINT; a second one ends the process at once.
    """

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self._reload: list[Callable[[], None]] = []

    def on_reload(self, callback: Callable[[], None]) -> None:
        """Call back at SIGHUP. A Problem it raises is logged; what was in use stays."""
        self._reload.append(callback)

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the signals over."""
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopped, number)
        loop.add_signal_handler(signal.SIGHUP, self.reload)

    def reload(self) -> None:
        """As at SIGHUP."""
        for callback in self._reload:
            try:
                callback()
            except Problem as problem:
                for line in problem.message.splitlines():
                    _log.error("reload: %s", line)
        _log.info("reloaded")

    def _stopped(self, number: int) -> None:
        if self.stop.is_set():
            os._exit(128 + number)
        self.stop.set()


class OneLine(logging.Formatter):
    """Each record on one line, exceptions included: frames innermost first."""

    def formatException(self, exc_info: object) -> str:  # noqa: N802 - the library's name
        """The exception as ``Type: text [file:line function < …]``."""
        error = exc_info[1] if isinstance(exc_info, tuple) else None
        return one_line(error) if isinstance(error, BaseException) else ""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        return super().format(record).replace("\n", " | ")


def one_line(error: BaseException) -> str:
    """An exception with the places it came through, innermost first, on one line."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames[-12:])]
    text = f"{type(error).__name__}: {error} [{' < '.join(places)}]"
    causes = [error.__cause__ or (None if error.__suppress_context__ else error.__context__)]
    if isinstance(error, BaseExceptionGroup):
        causes += error.exceptions
    for cause in causes:
        if cause is not None:
            text += f"; from {one_line(cause)}"
    return text.replace("\n", " | ")


def configure_log(program: str) -> None:
    """Log to stderr, a line a record; the journal adds the time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(f"{program}: %(levelname)s %(name)s: %(message)s"))
    level = os.environ.get(LOG_LEVEL_VARIABLE, "info").upper()
    known = logging.getLevelNamesMapping()
    logging.basicConfig(handlers=[handler], level=known.get(level, logging.INFO), force=True)


def run_daemon(
    program: str,
    default_config: Path,
    config_type: type[C],
    main: Callable[[C, Signals], Awaitable[None]],
    argv: Sequence[str] | None = None,
    *,
    check: Callable[[C], None] | None = None,
    version: str = "",
) -> int:
    """Run ``main`` until it returns. Never raises.

    :param main: builds and runs the daemon; returns soon after ``signals.stop`` is set.
    :param check: more checks for ``--check`` and for each start; raises Problem.
    :returns: exit code: 0, the problem's (BAD_CONFIG: 2), 1 for a bug, 130 for Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--config", type=Path, default=default_config, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="validate the configuration and exit")
    parser.add_argument("--version", action="version", version=f"{program} {version}".strip())
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as wanted:
        return wanted.code if isinstance(wanted.code, int) else 2
    configure_log(program)
    try:
        config = load_config(arguments.config, config_type)
        if check is not None:
            check(config)
        if arguments.check:
            return 0
        asyncio.run(_run(main, config))
    except KeyboardInterrupt:
        return 130
    except BaseExceptionGroup as group:
        return _tell(program, _first_problem(group) or group)
    except Exception as error:  # noqa: BLE001 - the last edge: people get a line, never a traceback
        return _tell(program, error)
    return 0


async def _run(main: Callable[[C, Signals], Awaitable[None]], config: C) -> None:
    signals = Signals()
    signals.install(asyncio.get_running_loop())
    await main(config, signals)


def _tell(program: str, error: BaseException) -> int:
    if isinstance(error, Problem):
        for line in error.message.splitlines():
            print(f"{program}: {line}", file=sys.stderr)  # noqa: T201 - meant for people
        if error.remedy and error.reason is not Reason.BAD_CONFIG:
            print(f"{program}: {error.remedy}", file=sys.stderr)  # noqa: T201
        # A daemon that was refused its start for lack of good configuration exits with 2.
        return error.exit_code
    print(f"{program}: internal error: {one_line(error)}", file=sys.stderr)  # noqa: T201
    return 1


def _first_problem(group: BaseExceptionGroup[BaseException]) -> Problem | None:
    for error in group.exceptions:
        if isinstance(error, Problem):
            return error
        if isinstance(error, BaseExceptionGroup) and (found := _first_problem(error)):
            return found
    return None
