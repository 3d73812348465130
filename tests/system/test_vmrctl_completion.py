"""Completion as a person has it: a real shell on a real terminal, a real server behind it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.vmrctl_room import Side, replication, serving
from vmreplica.v1 import replication_pb2

PROMPT = "READY> "
PATIENCE_S = 30
CONTEXTS = "contexts:\n  primary: {endpoint: 'p1:7444'}\n  replica: {endpoint: 'r:7443'}\n"


class Shell:
    """An interactive shell on a pseudo-terminal."""

    def __init__(self, arguments: list[str], environ: dict[str, str]) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.execvpe(arguments[0], arguments, environ)

    def send(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def expect(self, pattern: str) -> str:
        """Read until the pattern has come. Fails with what came instead."""
        seen = ""
        while not re.search(pattern, seen):
            ready, _, _ = select.select([self._terminal], [], [], PATIENCE_S)
            assert ready, f"waited for {pattern!r}, saw {seen!r}"
            seen += os.read(self._terminal, 65_536).decode(errors="replace")
        return seen

    def close(self) -> None:
        os.close(self._terminal)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    yield from serving(tmp_path_factory.mktemp("room"))


def environ_of(side: Side, tmp_path: Path) -> dict[str, str]:
    config = tmp_path / "contexts.yaml"
    config.write_text(CONTEXTS)
    return {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TERM": "dumb",
        "PS1": PROMPT,
        "LC_ALL": "C.UTF-8",
        "VMRCTL_CONFIG": str(config),
        **side.environ,
    }


SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        "bind 'set enable-bracketed-paste off'; eval \"$(vmrctl completion bash)\"; PS1='READY''> '",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        (
            "unsetopt prompt_sp prompt_cr zle_bracketed_paste; unset zle_bracketed_paste; "
            "autoload -Uz compinit; compinit -u -D; "
            "eval \"$(vmrctl completion zsh)\"; PS1='READY''> '"
        ),
    ),
}


@pytest.fixture(params=sorted(SHELLS))
def shell(request: pytest.FixtureRequest, side: Side, tmp_path: Path) -> Iterator[Shell]:
    arguments, setup = SHELLS[request.param]
    if not any((Path(p) / request.param).exists() for p in os.environ["PATH"].split(":")):
        pytest.skip(f"this machine lacks {request.param} (tools/setup.sh installs it)")
    side.reset()
    side.answers["list_replications"] = replication_pb2.ListReplicationsResponse(
        items=[replication("guest1"), replication("mail server"), replication("other7")]
    )
    opened = Shell(arguments, environ_of(side, tmp_path) | {"PS1": "% "})
    try:
        opened.send(setup + "\n")
        opened.expect(re.escape(PROMPT))
        yield opened
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("vmrctl ope", "operation"),
        ("vmrctl replication stop", "stop-initial"),
        ("vmrctl replication show oth", "other7"),
        ("vmrctl replication show mai", "mail\\ server"),
        ("vmrctl node drain r", "r1[\\s\\S]*r2"),
        ("vmrctl --context prim", "primary"),
        ("vmrctl replication enable --compr", "--compression"),
        ("vmrctl -o js", "json"),
    ],
)
def test_tab_completes(shell: Shell, typed: str, completed: str) -> None:
    shell.send(typed)
    shell.expect(re.escape(typed.rsplit(maxsplit=1)[-1]) + "$")
    shell.send("\t\t")
    rest = completed
    if not completed.startswith("r1"):  # the terminal shows only what was added
        rest = re.escape(completed.removeprefix(typed.rsplit(maxsplit=1)[-1]))
    shell.expect(rest)


def test_a_server_that_is_not_there_offers_nothing_and_says_nothing(
    side: Side, tmp_path: Path
) -> None:
    environ = environ_of(side, tmp_path) | {"VMRCTL_ENDPOINT": "localhost:1"}
    arguments, setup = SHELLS["bash"]
    shell = Shell(arguments, environ)
    try:
        shell.send(setup + "\n")
        shell.expect(re.escape(PROMPT))
        shell.send("vmrctl replication show gue\t")
        shell.send("\x15echo do''ne\n")
        seen = shell.expect("done")
    finally:
        shell.close()
    assert "Error" not in seen and "Traceback" not in seen and "guest1" not in seen
