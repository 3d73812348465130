"""Everything that can be checked without running the product: one line and one time each.

    tools/check.py            all checks
    tools/check.py NAME...    only these
    tools/check.py --list     their names

Exit 1 when a check fails; what it said follows behind the lines. A check that cannot run here is
printed as skipped, with the reason.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tidy import tree_files

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
TOOLS = ROOT / "build" / "tools"
BUF_VERSION = "1.75.0"
BUF = TOOLS / "node_modules" / ".bin" / "buf"
WORKERS = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a check ended. ``skipped`` holds the reason why it could not run."""

    name: str
    ok: bool
    seconds: float
    text: str = ""
    skipped: str = ""

    def __str__(self) -> str:
        word = "skip" if self.skipped else "ok" if self.ok else "FAIL"
        tail = f"  {self.skipped}" if self.skipped else ""
        return f"{word:<4}  {self.name:<14} {self.seconds:6.1f} s{tail}"


class Skipped(Exception):
    """This check cannot run on this machine."""


def run(*command: str | Path) -> tuple[bool, str]:
    """Run a command in the root of the tree: whether it ended well, and what it said."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode == 0, done.stdout


def python_tool(name: str, *arguments: str) -> Callable[[], tuple[bool, str]]:
    """A tool of this directory."""
    return lambda: run(sys.executable, ROOT / "tools" / name, *arguments)


def scripts() -> tuple[bool, str]:
    """Parse every shell script with the shell that it names."""
    faults = []
    for name in tree_files():
        with (ROOT / name).open("rb") as file:
            first = file.readline(80)
        if first.startswith(b"#!") and first.rstrip().endswith((b"bash", b"/sh")):
            shell = "bash" if first.rstrip().endswith(b"bash") else "sh"
            good, text = run(shell, "-n", name)
            faults += [] if good else [text]
    return not faults, "".join(faults)


def buf(*arguments: str) -> Callable[[], tuple[bool, str]]:
    """buf, fetched once into build/tools by npm."""

    def check() -> tuple[bool, str]:
        if not (ROOT / "buf.yaml").exists():
            return False, "buf.yaml is missing.\n"
        if not BUF.exists():
            fetch_buf()
        return run(BUF, *arguments)

    return check


def fetch_buf() -> None:
    """Install buf where only this tree uses it. :raises Skipped: where it cannot be had."""
    if shutil.which("npm") is None:
        raise Skipped("npm is missing (apt-get install npm): buf cannot be fetched")
    TOOLS.mkdir(parents=True, exist_ok=True)
    good, text = run(
        "npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", TOOLS,
        f"@bufbuild/buf@{BUF_VERSION}",
    )  # fmt: skip
    if not good or not BUF.exists():
        raise Skipped(f"buf {BUF_VERSION} cannot be fetched: {' '.join(text.split())[-160:]}")


CHECKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "types": lambda: run(BIN / "mypy"),
    "format": lambda: run(BIN / "ruff", "format", "--check", "."),
    "lint": lambda: run(BIN / "ruff", "check", "--quiet", "."),
    "imports": lambda: run(BIN / "lint-imports", "--no-logo"),
    "tidy": python_tool("tidy.py"),
    "stubs": python_tool("gen_protos.py", "--check"),
    "buf lint": buf("lint"),
    "buf breaking": buf("breaking", "--against", "protos/baseline.binpb"),
    "schemas": python_tool("check_schemas.py"),
    "commands": python_tool("check_commands.py"),
    "scripts": scripts,
}


def judge(name: str) -> Verdict:
    """Run one check."""
    begun = time.monotonic()
    try:
        good, text = CHECKS[name]()
    except Skipped as reason:
        return Verdict(name, ok=True, seconds=time.monotonic() - begun, skipped=str(reason))
    except OSError as error:
        return Verdict(name, ok=False, seconds=time.monotonic() - begun, text=f"{error}\n")
    return Verdict(name, ok=good, seconds=time.monotonic() - begun, text=text)


def run_checks(names: list[str]) -> list[Verdict]:
    """Run checks, print a line as each ends, then what the failed ones said."""
    verdicts = []
    first_buf = [name for name in names if name.startswith("buf")][:1]
    if first_buf and not BUF.exists() and (ROOT / "buf.yaml").exists():
        with contextlib.suppress(Skipped):  # each check of buf says so itself
            fetch_buf()
    with ThreadPoolExecutor(WORKERS) as pool:
        futures: list[Future[Verdict]] = [pool.submit(judge, name) for name in names]
        for future in futures:
            verdicts.append(future.result())
            print(verdicts[-1], flush=True)
    for verdict in verdicts:
        if not verdict.ok:
            print(f"\n--- {verdict.name}\n{verdict.text.rstrip()}", flush=True)
    return verdicts


def main(arguments: list[str]) -> int:
    """Run the named checks, or all."""
    if arguments == ["--list"]:
        print("\n".join(CHECKS))
        return 0
    unknown = [name for name in arguments if name not in CHECKS]
    if unknown:
        print(f"check: there is no check {unknown[0]!r}; there are: {', '.join(CHECKS)}.")
        return 2
    begun = time.monotonic()
    verdicts = run_checks(arguments or list(CHECKS))
    failed = [verdict for verdict in verdicts if not verdict.ok]
    print(f"checks: {len(verdicts) - len(failed)} ok, {len(failed)} failed "
          f"in {time.monotonic() - begun:.1f} s")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
