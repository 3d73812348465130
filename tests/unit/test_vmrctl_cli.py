"""The command line itself: usage, later verbs, bugs, quick start, certificates, no server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vmrctl import later
from vmrctl.app import NOUNS, run

VMRCTL = [sys.executable, "-m", "vmrctl"]


@pytest.fixture(autouse=True)
def _no_context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VMRCTL_CONFIG", str(tmp_path / "none.yaml"))
    for name in ("ENDPOINT", "CA", "CERTIFICATE", "KEY", "CONTEXT"):
        monkeypatch.delenv(f"VMRCTL_{name}", raising=False)


def problem(capsys: pytest.CaptureFixture[str], *line: str) -> tuple[int, dict[str, str]]:
    code = run([*line, "-o", "json"])
    return code, json.loads(capsys.readouterr().err)["problem"]


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("frobnicate", "noun"),
        ("replication frobnicate", "verb"),
        ("replication show", "VM"),
        ("replication show a b", ""),
        ("replication show a --nonsense", "--nonsense"),
        ("replication enable a", "--to"),
        ("replication enable a --to b --frequency 5", "--frequency"),
        ("replication enable a --to b --route sideways", "--route"),
        ("replication enable a --to b --start soon", "--start"),
        ("replication enable a --to b:c", "endpoint"),
        ("node list --timeout soon", "--timeout"),
        ("events --since yesterday", "--since"),
        ("completion fish", "{bash|zsh}"),
    ],
)
def test_a_wrong_line_ends_with_two_and_a_sentence(
    capsys: pytest.CaptureFixture[str], line: str, field: str
) -> None:
    code, said = problem(capsys, *line.split())
    assert (code, said["reason"]) == (2, "BAD_FIELD")
    assert said["message"].endswith(".") and len(said["message"]) > 10
    if field:
        assert said["field"] == field


LATER = [
    *(noun for noun in later.NOUNS),
    *(f"{noun} {verb}" for noun, verbs in later.VERBS.items() for verb in verbs),
    "replication resume a --resync",
    "replication resume a --at 2026-11-23T04:00:00Z",
    "replication enable a --to b --recovery-points 3",
    "replication set a --recovery-points 3",
]


@pytest.mark.parametrize("line", sorted(LATER))
def test_what_arrives_later_is_refused(capsys: pytest.CaptureFixture[str], line: str) -> None:
    code, said = problem(capsys, *line.split())
    assert (code, said["reason"]) == (2, "UNIMPLEMENTED")
    assert "arrives later" in said["message"]


@pytest.mark.parametrize("noun", NOUNS)
def test_every_noun_has_help(capsys: pytest.CaptureFixture[str], noun: str) -> None:
    assert run([noun, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: vmrctl {noun}") and "--endpoint" in shown


def test_shared_options_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("-o json version", "version -o json", "-o csv version -o json"):
        assert run(line.split()) == 0
        assert json.loads(capsys.readouterr().out)["server"] is None


def test_a_bug_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmrctl.session import Session

    def broken(_self: Session) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(Session, "target", broken)
    assert run(["version"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said and "ZeroDivisionError: oh" in said and "Next:" in said


def test_files_that_cannot_be_used_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "not.pem").write_text("hello")
    for name in ("CA", "CERTIFICATE", "KEY"):
        monkeypatch.setenv(f"VMRCTL_{name}", str(tmp_path / "missing"))
    code, said = problem(capsys, "--endpoint", "localhost:1", "node", "list")
    assert (code, said["reason"], said["field"]) == (2, "BAD_CONFIG", "ca")
    monkeypatch.setenv("VMRCTL_CA", str(tmp_path / "not.pem"))
    code, said = problem(capsys, "--endpoint", "localhost:1", "node", "list")
    assert said["message"] == f"{tmp_path}/not.pem:ca: is not a PEM file."


def certificates(directory: Path) -> dict[str, str]:
    assert run(["cert", "ca", str(directory), "-q"]) == 0
    out = str(directory / "me")
    line = ["cert", "issue", "--ca", str(directory), "--san", "localhost", out, "-q"]
    assert run([*line, "--role", "site2/administrator/me"]) == 0
    return {
        "VMRCTL_CA": str(directory / "ca.pem"),
        "VMRCTL_CERTIFICATE": out + ".pem",
        "VMRCTL_KEY": out + ".key",
    }


def test_keys_are_replaced_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificates(tmp_path)
    key = tmp_path / "me.key"
    before = key.read_bytes()
    line = ["cert", "issue", "--ca", str(tmp_path), "--san", "localhost", str(tmp_path / "me")]
    code, said = problem(capsys, *line)
    assert (code, said["reason"], said["field"]) == (2, "BAD_FIELD", "OUT")
    assert "--force" in said["remedy"]
    (tmp_path / "me.pem").unlink()
    assert problem(capsys, *line)[0] == 2
    assert key.read_bytes() == before
    assert run([*line, "--force", "-q"]) == 0
    assert key.read_bytes() != before
    # The authority is never replaced: everything it issued would be void.
    authority = (tmp_path / "ca.key").read_bytes()
    assert run(["cert", "ca", str(tmp_path), "-q"]) == 0
    assert (tmp_path / "ca.key").read_bytes() == authority


def test_nobody_at_the_other_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vmrctl.client.RETRY_WAIT_S", 0.2)
    for name, value in certificates(tmp_path / "ca").items():
        monkeypatch.setenv(name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, said = problem(capsys, "--endpoint", f"localhost:{port}", "node", "list")
    assert (code, said["reason"]) == (6, "NODE_UNREACHABLE")
    assert said["value"] == f"localhost:{port}"
    code, said = problem(capsys, "--endpoint", "no.such.host.invalid:1", "node", "list")
    assert (code, said["reason"]) == (6, "NODE_UNREACHABLE")


def test_certificates_are_made_and_verified(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ca = tmp_path / "ca"
    certificates(ca)
    assert (ca / "ca.key").stat().st_mode & 0o777 == 0o600
    assert (ca / "me.key").stat().st_mode & 0o777 == 0o600
    assert run(["cert", "ca", str(ca), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] is False
    assert run(["cert", "verify", str(ca / "me.pem"), "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["items"]
    assert {row["name"] for row in rows} >= {"validity", "names", "chain"}
    assert any("administrator me of site2" in row["detail"] for row in rows)
    other = tmp_path / "other"
    assert run(["cert", "ca", str(other)]) == 0
    line = ["cert", "verify", str(ca / "me.pem"), "--ca", str(other / "ca.pem"), "--san", "x.y"]
    assert run([*line, "-o", "json"]) == 8
    out = capsys.readouterr().out
    rows = json.loads(out[out.index("{") :])["items"]
    assert {row["name"] for row in rows if not row["ok"]} == {"chain", "server name"}


@pytest.mark.parametrize(
    "line",
    ["issue --ca {ca} {out}", "issue --ca {ca} --san a_b {out}", "issue --ca {ca} --role x {out}"],
)
def test_certificates_without_good_names_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, line: str
) -> None:
    certificates(tmp_path / "ca")
    code, _ = problem(
        capsys, "cert", *line.format(ca=tmp_path / "ca", out=tmp_path / "new").split()
    )
    assert code == 2 and not (tmp_path / "new.pem").exists()


def test_help_is_quick() -> None:
    modules = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vmrctl", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    for heavy in ("grpc", "google.protobuf", "cryptography", "rich", "yaml", "asyncio"):
        assert f" {heavy}\n" not in modules, f"--help imports {heavy}"


@pytest.mark.parametrize("noun", ["replication", "replica", "failover", "node", "operation"])
def test_help_of_a_noun_is_quick(noun: str) -> None:
    modules = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "vmrctl", noun, "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    for heavy in ("grpc", "cryptography", "rich", "asyncio"):
        assert f" {heavy}\n" not in modules, f"{noun} --help imports {heavy}"


def test_a_closed_pipe_is_no_error_message() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*VMRCTL, "completion", "bash"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_interrupt_ends_with_130(tmp_path: Path) -> None:
    ca = tmp_path / "ca"
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"localhost:{silent.getsockname()[1]}"
        environ = os.environ | certificates(ca) | {"VMRCTL_ENDPOINT": endpoint}
        process = subprocess.Popen(
            [*VMRCTL, "node", "list"], env=environ, stderr=subprocess.PIPE, text=True
        )
        connection, _ = silent.accept()  # it waits for us now
        with connection:
            connection.recv(16)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
    assert process.returncode == 130 and said.strip() == "Interrupted."
