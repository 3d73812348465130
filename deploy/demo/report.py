"""build/demo/report.json: what a demo measured, for people and programs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_FIELDS = (
    "ok",
    "cycles_acked",
    "counter_at_last_ack",
    "counter_in_failover_vm",
    "relocation_ms",
    "broker_takeover_ms",
    "initial_mb_per_s",
    "delta_bytes_on_wire",
    "owner_before",
    "owner_after",
    "epoch_before",
    "epoch_after",
    "cycle_kind_after",
    "console_log",
    "seed",
    "git_commit",
    "hosts",
    "killed_pids",
    "progress_answers",
)


class Report(dict[str, Any]):
    """The fields, null until known."""

    def __init__(self, path: Path, seed: int) -> None:
        super().__init__(dict.fromkeys(_FIELDS))
        self.path = path
        self.update(ok=False, seed=seed, git_commit=_commit(), hosts=[], killed_pids=[])

    def killed(self, pid: int) -> None:
        """A process this demo sent SIGKILL to."""
        self["killed_pids"].append(pid)

    def save(self) -> None:
        """Write it, whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".tmp")
        draft.write_text(json.dumps(self, indent=2) + "\n", "utf-8")
        draft.replace(self.path)


def _commit() -> str | None:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
