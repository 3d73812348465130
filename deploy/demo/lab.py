"""The demo's hands: the lab tool and vmrctl, run as a person would run them."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "deploy" / "lab" / "lab"
LAB_DIR = Path(os.environ.get("LAB_DIR", ROOT / "build" / "lab"))
PYTHON = ROOT / ".venv" / "bin" / "python"
CLIENT = "c1"


class CommandFailed(Exception):
    """A command that had to succeed did not; the text is what it said."""


@dataclass(slots=True)
class Hands:
    """Runs commands; remembers the processes it started."""

    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def lab(self, *words: str, timeout_s: float = 180, check: bool = True) -> str:
        """``deploy/lab/lab WORDS``; its output."""
        done = subprocess.run(
            [str(LAB), *words], capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check and done.returncode != 0:
            raise CommandFailed(f"lab {' '.join(words)}: {done.stderr.strip() or done.stdout}")
        return done.stdout

    def status(self) -> list[dict[str, Any]]:
        """The lab's hosts."""
        items: list[dict[str, Any]] = json.loads(self.lab("status", "-o", "json"))["items"]
        return items

    def pid_of(self, host: str) -> int:
        """A host's init, as seen from outside."""
        return int(next(item["pid"] for item in self.status() if item["name"] == host))

    def vmrctl(self, context: str, *words: str, timeout_s: float = 120) -> Any:
        """``vmrctl`` on the client host, against one context; its JSON."""
        done = subprocess.run(
            self._vmrctl_line(context, *words),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise CommandFailed(f"vmrctl {' '.join(words)}: {done.stderr.strip()}")
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def try_vmrctl(self, context: str, *words: str) -> Any | None:
        """The same, None where it failed."""
        try:
            return self.vmrctl(context, *words, timeout_s=20)
        except (CommandFailed, subprocess.TimeoutExpired):
            return None

    def _vmrctl_line(self, context: str, *words: str) -> list[str]:
        return [str(LAB), "vmrctl", "--", "--context", context, "-o", "json", *words]

    def observe(self, kind: str, context: str, subject: str, out: Path, period_ms: int) -> None:
        """Start an observer process on the client host."""
        out.unlink(missing_ok=True)
        line = [
            str(LAB),
            "shell",
            CLIENT,
            "--",
            str(PYTHON),
            str(Path(__file__).with_name("observer.py")),
            kind,
            str(LAB_DIR / "vmrctl.yaml"),
            context,
            subject,
            str(out),
            str(period_ms),
        ]
        log = out.with_suffix(".log").open("ab")
        self.children.append(
            subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        )

    def stop_children(self) -> None:
        """End the observers."""
        for child in self.children:
            child.kill()
            child.wait()
        self.children.clear()


def answers(path: Path) -> list[dict[str, Any]]:
    """What an observer has written so far."""
    if not path.exists():
        return []
    lines = path.read_text("utf-8").splitlines()
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the last line is still being written
    return found
