"""Our commands as processes, and what must hold of every failure that a person sees."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vmreplica.adapters.tls import TlsFiles

ROOT = Path(__file__).resolve().parents[2]


def vmrctl(
    files: TlsFiles, endpoint: str, *words: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """The command with one certificate; nothing of the caller's own contexts."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("VMRCTL_")}
    wanted = {
        "VMRCTL_CONFIG": "/nonexistent/config.yaml",
        "VMRCTL_ENDPOINT": endpoint,
        "VMRCTL_CA": str(files.ca),
        "VMRCTL_CERTIFICATE": str(files.certificate),
        "VMRCTL_KEY": str(files.key),
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-m", "vmrctl", *words],
        env=own | wanted | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def told(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    """It failed with this code and these words on stderr, said nothing on stdout, no traceback."""
    shown = done.stdout + done.stderr
    assert done.returncode == exit_code, shown
    assert "Traceback" not in shown, shown
    assert done.stderr.strip(), "a failure without a sentence"
    for word in words:
        assert word in done.stderr, shown


def run_daemon(module: str, config: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """A daemon that is to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", module, "--config", str(config), *more],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
