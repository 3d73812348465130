"""The lab as the rows use it: hosts, vmrctl, and watchers that run inside a host."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deploy.lab.guests import prepare
from deploy.lab.hosts import HostControl
from deploy.lab.lifecycle import Lab
from deploy.lab.model import BROKER_PORT, CAP_NAME, DEFAULT_HOSTS, Settings, host_table
from deploy.lab.place import CHECKOUT, VENV_BIN, Place
from deploy.lab.processes import environment

T = TypeVar("T")
CAP = f"{CAP_NAME}:{BROKER_PORT}"
CLIENT = "c1"
PYTHON = str(VENV_BIN / "python")


class BenchFailed(Exception):
    """A row cannot be measured; the text says why."""


@dataclass(slots=True)
class Watcher:
    """A process inside a host that writes one JSON object a line."""

    process: subprocess.Popen[bytes]
    out: Path

    def lines(self) -> list[dict[str, Any]]:
        """All complete lines so far."""
        text = self.out.read_text("utf-8") if self.out.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        return [json.loads(line) for line in whole.splitlines()]


class BenchLab:
    """A whole cluster on this machine, for one run of the benchmark."""

    def __init__(self, directory: Path) -> None:
        self.lab = Lab(Place(directory))
        self.directory = directory

    def up(self) -> None:
        """From nothing; what an interrupted run left is removed first."""
        with self.lab.place.locked():
            self.lab.down()
            prepare(self.lab.say)
            self.lab.up(Settings(hosts=host_table(list(DEFAULT_HOSTS), [])))

    def down(self) -> None:
        """All processes and data gone; logs stay."""
        with self.lab.place.locked():
            self.lab.down()

    def host(self, name: str) -> HostControl:
        """One host."""
        return self.lab.control_named(name)

    def inside(self, host: str, *words: str) -> list[str]:
        """The command line that runs ``words`` in a host, in the checkout."""
        return self.host(host).inside(list(words), str(CHECKOUT))

    def run(self, host: str, *words: str, timeout_s: float = 120) -> str:
        """Run in a host and wait. :raises BenchFailed: it failed"""
        return run(self.inside(host, *words), timeout_s=timeout_s, title=" ".join(words))

    def vmrctl(self, context: str, *words: str, timeout_s: float = 120) -> Any:
        """vmrctl on the client host; its JSON."""
        config = f"VMRCTL_CONFIG={self.lab.place.contexts_file}"
        line = ["env", config, str(VENV_BIN / "vmrctl"), "--context", context, "-o", "json"]
        text = self.run(CLIENT, *line, *words, timeout_s=timeout_s)
        return json.loads(text) if text.strip() else {}

    @contextmanager
    def watching(self, kind: str, context: str, subject: str, period_ms: int) -> Iterator[Watcher]:
        """A watcher on the client host; see ``bench.watch``."""
        out = self.directory / f"watch-{kind}.jsonl"
        out.unlink(missing_ok=True)
        words = (kind, str(self.lab.place.contexts_file), context, subject, str(period_ms))
        line = self.inside(CLIENT, PYTHON, "-m", "bench.watch", *words, "--out", str(out))
        with out.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=log, stderr=log)
        try:
            yield Watcher(process, out)
        finally:
            # The watcher ends with its standard input: killing would only reach nsenter.
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=10)


def run(line: Sequence[str], *, timeout_s: float = 120, title: str = "") -> str:
    """Run and wait; standard output. :raises BenchFailed: it failed"""
    title = title or " ".join(line)
    try:
        done = subprocess.run(
            list(line),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=environment(),
            cwd=CHECKOUT,
        )
    except subprocess.TimeoutExpired:
        raise BenchFailed(f"{title}: no end within {timeout_s:g} s") from None
    if done.returncode != 0:
        raise BenchFailed(f"{title}: exit {done.returncode}: {(done.stderr or done.stdout)[-800:]}")
    return done.stdout


def wait(what: str, ready: Callable[[], T], timeout_s: float, every_s: float = 0.05) -> T:
    """Poll until ``ready`` answers something true. :raises BenchFailed: it does not"""
    until = time.monotonic() + timeout_s
    while True:
        found = ready()
        if found:
            return found
        if time.monotonic() > until:
            raise BenchFailed(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(every_s)
