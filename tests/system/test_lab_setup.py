"""The set-up script: quick when there is nothing to do, exact about what is missing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "setup.sh"


def setup(*words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    before = f"{path}:" if path else ""
    return subprocess.run(
        ["/bin/bash", str(SCRIPT), *words],
        env={**os.environ, "PATH": before + os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Programs of a machine where one package is missing and we are not root."""
    installed = subprocess.run(
        ["dpkg-query", "-W", "-f=${db:Status-Abbrev}${Package}\n"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    listing = "\n".join(line for line in installed.splitlines() if "etcd-server" not in line)
    (tmp_path / "listing").write_text(listing)
    for name, body in (("dpkg-query", f"cat {tmp_path}/listing"), ("id", "echo 1000")):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    return tmp_path


def test_a_machine_that_is_set_up_is_left_alone() -> None:
    assert setup("--check").stdout.strip() == "setup: complete"


def test_without_root_it_names_what_is_missing_and_the_command(bare: Path) -> None:
    refused = setup("--force", path=bare)
    assert refused.returncode == 2
    command = "apt-get install -y --no-install-recommends etcd-server"
    assert command in refused.stderr


def test_check_changes_nothing_and_says_what_is_missing(bare: Path) -> None:
    checked = setup("--check", path=bare)
    assert checked.returncode == 2
    assert "missing packages: etcd-server" in checked.stdout


def test_an_unknown_argument_is_refused() -> None:
    refused = setup("--frobnicate")
    assert refused.returncode == 2 and "--frobnicate" in refused.stderr
