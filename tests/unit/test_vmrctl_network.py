"""What vmrctl does when certificates do not fit, and when the transport is cut."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vmrctl_room import CLOCK, OPERATION_ID, Side, Vmrctl, operation, serving
from vmrctl import contexts
from vmreplica.adapters import certificates
from vmreplica.v1 import operation_pb2


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    yield from serving(tmp_path_factory.mktemp("room"))


@pytest.fixture
def side(served: Side, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Side:
    served.reset()
    monkeypatch.setenv("VMRCTL_CONFIG", str(tmp_path / "none.yaml"))
    for name, value in served.environ.items():
        monkeypatch.setenv(name, value)
    return served


@pytest.fixture
def vmrctl(side: Side, capsys: pytest.CaptureFixture[str]) -> Vmrctl:
    return Vmrctl(side, capsys)


def stranger(directory: Path) -> certificates.Issued:
    """A certificate of an authority that the side has never heard of."""
    certificates.create_ca(directory, "elsewhere", CLOCK.wall_ms())
    return certificates.issue(directory, directory / "me", ["localhost"], CLOCK.wall_ms())


def test_a_server_that_we_do_not_trust(
    vmrctl: Vmrctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stranger(tmp_path)
    monkeypatch.setenv("VMRCTL_CA", str(tmp_path / "ca.pem"))
    result = vmrctl("node", "list", "-o", "json")
    assert (result.code, result.problem["reason"]) == (5, "CERTIFICATE_INVALID")
    assert "--against localhost:" in result.problem["remedy"]


def test_a_server_that_does_not_trust_us(
    vmrctl: Vmrctl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    issued = stranger(tmp_path)
    monkeypatch.setattr("vmrctl.client.RETRY_WAIT_S", 0.2)
    monkeypatch.setenv("VMRCTL_CERTIFICATE", str(issued.certificate))
    monkeypatch.setenv("VMRCTL_KEY", str(issued.key))
    result = vmrctl("node", "list", "-o", "json")
    assert result.code in (5, 6) and vmrctl.side.heard == []
    assert "vmrctl cert verify" in result.problem["remedy"]


def test_a_name_that_the_server_does_not_show(vmrctl: Vmrctl) -> None:
    result = vmrctl("--endpoint", f"127.0.0.1:{vmrctl.side.port}", "node", "list", "-o", "json")
    assert (result.code, result.problem["reason"]) == (5, "CERTIFICATE_INVALID")
    assert vmrctl.side.heard == []


def test_verify_against_a_server(vmrctl: Vmrctl, tmp_path: Path) -> None:
    assert vmrctl.side.files is not None
    address = f"localhost:{vmrctl.side.port}"
    own = str(vmrctl.side.files.certificate)
    good = vmrctl("cert", "verify", own, "--against", address, "-o", "json")
    assert good.code == 0, good.out
    rows = {row["name"]: row["detail"] for row in good.json["items"]}
    assert rows["our certificate"] == "Taken by the server."
    assert rows["server's certificate"].startswith("TLSv1.3; it shows localhost")
    issued = stranger(tmp_path / "x")
    ca = str(vmrctl.side.files.ca)
    line = ["cert", "verify", str(issued.certificate), "--against", address, "-o", "json"]
    bad = vmrctl(*line, "--ca", ca)
    assert bad.code == 8
    assert {row["name"] for row in bad.json["items"] if not row["ok"]} == {
        "chain",
        "our certificate",
    }
    bad = vmrctl(*line)  # judged by its own authority, which the server is not of
    assert bad.code == 8
    assert [row["name"] for row in bad.json["items"] if not row["ok"]] == ["server's certificate"]
    gone = vmrctl("cert", "verify", own, "--against", "localhost:1", "-o", "json")
    assert gone.code == 8 and gone.json["items"][-1]["name"] == "tcp"
    issued.key.unlink()
    assert vmrctl(*line).json["items"][-1]["name"] == "key"


def test_root_talks_to_the_local_socket(vmrctl: Vmrctl, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vmrctl.side.socket is not None
    for name in vmrctl.side.environ:
        monkeypatch.delenv(name)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    local = functools.partial(contexts.resolve, socket_dir=vmrctl.side.socket.parent)
    monkeypatch.setattr("vmrctl.session.resolve", local)
    result = vmrctl("node", "undrain", "r1", "-o", "json")
    assert (result.code, result.json) == (0, {"changed": True})
    assert vmrctl.side.heard[0].request_id
    assert vmrctl("version").code == 0


class Cutter:
    """A TCP proxy whose connections can be cut from another thread."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open: list[asyncio.StreamWriter] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def cut(self) -> None:
        """Cut what is connected; returns when it is done."""

        async def abort() -> None:
            for writer in self._open:
                writer.transport.abort()
            self._open.clear()

        asyncio.run_coroutine_threadsafe(abort(), self._loop).result(10)

    def close(self) -> None:
        """Cut, and stop listening."""

        async def stop() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.cut()
        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("localhost", self._target)
        self._open += [writer, back]
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    sink.close()


@pytest.fixture
def cutter(side: Side, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cutter]:
    made = Cutter(side.port)
    monkeypatch.setenv("VMRCTL_ENDPOINT", f"localhost:{made.port}")
    yield made
    made.close()


@pytest.mark.parametrize(("cuts", "code"), [(1, 0), (99, 6)])
def test_a_cut_write_is_repeated_once_with_the_same_id(
    vmrctl: Vmrctl, cutter: Cutter, cuts: int, code: int
) -> None:
    """The server has acted, and its answer never arrives."""

    def answer(_request: object) -> operation_pb2.CancelOperationResponse:
        if len(vmrctl.side.heard) <= cuts:
            cutter.cut()
        return operation_pb2.CancelOperationResponse(operation=operation("Cancelled"))

    vmrctl.side.answers["cancel_operation"] = answer
    result = vmrctl("operation", "cancel", OPERATION_ID, "-o", "json")
    assert result.code == code, result.err
    if code:
        assert result.problem["reason"] == "NODE_UNREACHABLE"
    ids = [heard.request_id for heard in vmrctl.side.heard]
    assert len(ids) == 2 and len(set(ids)) == 1


def test_interrupting_a_wait_leaves_the_work(side: Side, tmp_path: Path) -> None:
    waiting = threading.Event()

    def endless(_request: object) -> Iterator[operation_pb2.WatchOperationResponse]:
        waiting.set()
        yield operation_pb2.WatchOperationResponse(operation=operation("Running"))

    side.answers["watch_operation"] = endless
    process = subprocess.Popen(
        [sys.executable, "-m", "vmrctl", "node", "drain", "r1", "--wait"],
        env=os.environ | side.environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.wait(20)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert f"The work goes on. Next: vmrctl operation wait {OPERATION_ID}" in said
    assert not side.requests("cancel_operation")
