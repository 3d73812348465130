"""Daemon main, probes, event ring: as processes and sockets where that is what counts."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vmreplica.adapters.daemon import OneLine, one_line
from vmreplica.adapters.event_ring import CAPACITY, EventRing
from vmreplica.adapters.http_health import HttpHealth
from vmreplica.core.problems import Problem, Reason
from vmreplica.ports.event_log import Severity
from vmreplica.wire.event_filter import EventFilter

PROGRAM = """
import asyncio, sys
from dataclasses import dataclass
from pathlib import Path
from vmreplica.adapters.daemon import run_daemon
from vmreplica.core.problems import Problem, Reason

@dataclass(frozen=True)
class Config:
    mode: str = "wait"

async def main(config, signals):
    if config.mode == "problem":
        raise Problem(Reason.NO_SPACE, "The disk is full.", remedy="Delete something.")
    if config.mode == "bug":
        raise ValueError("planted")
    if config.mode == "group":
        async with asyncio.TaskGroup() as tasks:
            async def fail():
                raise Problem(Reason.STORE_UNAVAILABLE, "No store.")
            tasks.create_task(fail())
    def reload():
        print("reloaded", flush=True)
        raise Problem(Reason.BAD_CONFIG, "reload refused")
    signals.on_reload(reload)
    print("up", flush=True)
    await signals.stop.wait()
    print("stopped", flush=True)

def check(config):
    if config.mode == "unchecked":
        raise Problem(Reason.BAD_CONFIG, "F:mode: is not allowed")

sys.exit(run_daemon("vmreplica-x", Path("/nonexistent/x.yaml"), Config, main, check=check))
"""


def run(tmp_path: Path, mode: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "x.yaml"
    path.write_text(f"mode: {mode}\n")
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, "--config", str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("mode", "arguments", "code", "words"),
    [
        ("problem", [], 7, "vmreplica-x: The disk is full.\nvmreplica-x: Delete something."),
        ("bug", [], 1, "vmreplica-x: internal error: ValueError: planted ["),
        ("group", [], 6, "vmreplica-x: No store."),
        ("wait", ["--check"], 0, ""),
        ("unchecked", ["--check"], 2, "F:mode: is not allowed"),
        ("unchecked", [], 2, "F:mode: is not allowed"),
        ("[]", ["--check"], 2, "mode: must be text"),
        ("wait", ["--nonsense"], 2, "unrecognized"),
        ("wait", ["--config", "/nonexistent/y.yaml"], 2, "/nonexistent/y.yaml: cannot be read"),
        ("wait", ["--version"], 0, ""),
    ],
)
def test_exit_codes_and_sentences(
    tmp_path: Path, mode: str, arguments: list[str], code: int, words: str
) -> None:
    ended = run(tmp_path, mode, *arguments)
    assert ended.returncode == code, ended.stderr
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("mode: wait\n")
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "reloaded\n"
    process.send_signal(number)
    rest, errors = process.communicate(timeout=60)
    assert rest == "stopped\n" and process.returncode == 0
    assert "reload refused" in errors and "Traceback" not in errors


def test_one_line_tells_the_whole_chain() -> None:
    def inner() -> None:
        raise ValueError("in\nner")

    try:
        try:
            inner()
        except ValueError as error:
            raise RuntimeError("outer") from error
    except RuntimeError as error:
        text = one_line(error)
        record = logging.LogRecord("x", 40, "p", 1, "m", None, (RuntimeError, error, None))
    assert "RuntimeError: outer [test_wire_daemon.py:" in text
    assert "; from ValueError: in | ner [test_wire_daemon.py:" in text and "inner <" in text
    assert "\n" not in OneLine().format(record) and "outer" in OneLine().format(record)


async def ask(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    if not request.endswith(b"\r\n\r\n"):
        writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def test_probes() -> None:
    ready = False
    health = HttpHealth("127.0.0.1:0", lambda: True, lambda: ready)
    port = await health.start()

    async def status(line: str) -> int:
        answer = await ask(port, f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return int(answer.split()[1])

    assert await status("GET /livez") == 200
    assert await status("GET /readyz") == 503
    ready = True
    assert await status("GET /readyz?verbose") == 200
    assert await status("HEAD /readyz") == 200
    assert await status("GET /metrics") == 404
    assert await status("POST /livez") == 405
    assert await ask(port, b"\x16\x03\x01garbage") == b""
    assert await ask(port, b"G" * 100_000 + b"\r\n\r\n") == b""
    assert await status("GET /livez") == 200
    with pytest.raises(Problem) as caught:
        await HttpHealth(f"127.0.0.1:{port}", lambda: True, lambda: True).start()
    assert caught.value.reason is Reason.BAD_CONFIG
    await health.stop()
    await health.stop()


class StepClock:
    """A clock that the test moves."""

    def __init__(self, wall_ms: int) -> None:
        self.now = wall_ms

    def boottime_ms(self) -> int:
        return self.now

    def wall_ms(self) -> int:
        return self.now

    async def sleep(self, duration_ms: float) -> None:
        raise AssertionError("not used")


def test_event_ids_rise_whatever_the_clock_and_restarts_do(tmp_path: Path) -> None:
    clock = StepClock(1_700_000_000_000)
    path = tmp_path / "log" / "events.jsonl"
    ring = EventRing(clock, "n1", path)
    ring.write("cycle.failed", "m", severity=Severity.WARNING, vm_name="v", data={"seq": "1"})
    clock.now -= 86_400_000
    ring.write("cycle.acknowledged", "m")
    ring.close()
    again = EventRing(clock, "n1", path)
    again.write("cycle.acknowledged", "m")
    again.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    ids = [line["event_id"] for line in lines]
    assert len(ids) == 3 and ids == sorted(set(ids))
    assert lines[0] == {
        "event_id": ids[0],
        "time": "2023-11-14T22:13:20.000Z",
        "name": "cycle.failed",
        "severity": "Warning",
        "replica_id": None,
        "vm_name": "v",
        "node": "n1",
        "message": "m",
        "data": {"seq": "1"},
    }


def test_ring_keeps_the_newest_and_survives_an_unwritable_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ring = EventRing(StepClock(1), "n1", tmp_path / "file" / "below")
    for number in range(CAPACITY + 5):
        ring.write("node.joined", str(number))
    ring.close()
    kept = ring.newest()
    assert len(kept) == CAPACITY and kept[0].message == "5"


def test_file_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmreplica.adapters.event_ring.MAX_FILE_BYTES", 1_000)
    path = tmp_path / "events.jsonl"
    for number in range(40):
        ring = EventRing(StepClock(1 + number), "n1", path)
        ring.write("node.joined", "x" * 100)
        ring.close()
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names[-3:] == ["events.jsonl.1", "events.jsonl.2", "events.jsonl.3"]
    assert len(names) <= 4
    assert all(p.stat().st_size < 2_000 for p in tmp_path.iterdir())


async def test_watching() -> None:
    ring = EventRing(StepClock(5_000), "n1")
    ring.write("node.joined", "before")
    listed = [e.message async for e in ring.watch(EventFilter(name_glob="node.*"), follow=False)]
    assert listed == ["before"]
    follower = ring.watch(EventFilter(name_glob="node.*"), follow=True)
    assert (await anext(follower)).message == "before"
    ring.write("cycle.failed", "unwanted")
    ring.write("node.lost", "after")
    assert (await anext(follower)).message == "after"
    for number in range(3_000):  # a watcher that does not read loses the oldest
        ring.write("node.lost", str(number))
    assert (await anext(follower)).message == "2000"
    await follower.aclose()
    ring.write("node.lost", "nobody listens")
