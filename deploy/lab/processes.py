"""Running programs: outside, in a control group, and inside a host's namespaces."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from deploy.lab.cgroups import Group
from deploy.lab.model import LabError
from deploy.lab.place import VENV_BIN

T = TypeVar("T")

_PATH = f"{VENV_BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CLONE_NEWNET = 0x40000000
# nsenter leaves the working directory at /; the caller's is wanted.
_INSIDE = 'cd "$1" 2>/dev/null || cd /; shift; exec "$@"'
_JOIN = 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"'


def run(
    argv: Sequence[str],
    *,
    text: str | None = None,
    timeout_s: float = 30,
    check: bool = True,
    title: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run outside, capture everything; LabError with the program's own words when it fails.

    ``title`` stands for the command line in problems.
    """
    title = title or " ".join(argv)
    try:
        done = subprocess.run(
            list(argv),
            input=text,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            env=environment(),
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{title}: no answer within {timeout_s:g} s") from None
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is not installed (see tools/setup.sh)") from None
    if check and done.returncode != 0:
        words = (done.stderr or done.stdout).strip()
        raise LabError(f"{title}: exit {done.returncode}: {words}")
    return done


def joining(group: Group, argv: Sequence[str]) -> list[str]:
    """``argv``, started as a member of ``group``."""
    return ["sh", "-c", _JOIN, "join", str(group.path), *argv]


def entering(init_pid: int, argv: Sequence[str], directory: str = "/") -> list[str]:
    """``argv``, in all namespaces of the host whose pid 1 is ``init_pid``."""
    enter = ["nsenter", "-t", str(init_pid), "-m", "-u", "-i", "-n", "-p", "--"]
    return [*enter, "sh", "-c", _INSIDE, "inside", directory, *argv]


def environment() -> dict[str, str]:
    """For programs in hosts: the venv first, so that `python` and the daemons are ours."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYENV"))}
    return {**kept, "PATH": _PATH}


def spawn(argv: Sequence[str], log: Path) -> None:
    """Start ``argv`` as an orphan in a session of its own; output is appended to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        subprocess.run(
            ["setsid", "-f", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(),
            check=True,
            cwd="/",
        )


def namespace_inode(pid: int, kind: str) -> int | None:
    """Number of the namespace ``kind`` (net, mnt, pid …) that ``pid`` lives in."""
    try:
        return int(os.stat(f"/proc/{pid}/ns/{kind}").st_ino)
    except OSError:
        return None


def inner_pids(pid: int) -> list[int]:
    """The pids a process has, outermost first; [] when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return []
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            return [int(number) for number in line.split()[1:]]
    return []


def command_line(pid: int) -> list[str]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return raw.decode(errors="replace").rstrip("\0").split("\0")


def parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def in_network_of(pid: int, work: Callable[[], T]) -> T:
    """Call ``work`` in a thread that has moved into ``pid``'s network namespace.

    Sockets made there belong to that network; this process as a whole stays where it is.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            with open(f"/proc/{pid}/ns/net") as handle:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
                    number = ctypes.get_errno()
                    raise OSError(number, os.strerror(number))
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - carried over to the calling thread
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
