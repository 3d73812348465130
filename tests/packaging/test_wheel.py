"""The wheel: what is in it, and that it works where nothing else of this tree is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = {"vmreplica", "broker", "node", "vmrctl"}
COMMANDS = ("vmreplica-broker", "vmreplica-node", "vmrctl")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the tracked files, so that litter of the checkout is not in it."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    script = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", script, str(out)], cwd=source, check=True, capture_output=True
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are those of this environment."""
    place = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    options = ["--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([*pip, *options, str(wheel)], check=True, stdin=subprocess.DEVNULL)
    borrowed = place / "borrowed"
    borrowed.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        # Not this tree's own (editable) installation, which would hide what the wheel lacks.
        if "vm_replica_broker" not in entry.name and entry.name not in PACKAGES:
            (borrowed / entry.name).symlink_to(entry)
    site = sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)})
    (Path(site) / "borrowed.pth").write_text(f"{borrowed}\n", encoding="utf-8")
    return place


def run(installed: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VMRCTL_"))}
    return subprocess.run(
        [str(installed / "bin" / command[0]), *command[1:]],
        cwd=installed, env=environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_nothing_but_the_four_packages_is_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert not [n for n in names if "conftest" in n or n.endswith((".pyc", ".key", ".pem"))]
    for module in ("vmreplica/v1/cycle_pb2.py", "vmrctl/commands/replication.py"):
        assert module in names


def test_every_python_file_of_the_packages_is_inside(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", *(f"{package}/*.py" for package in sorted(PACKAGES))],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    with zipfile.ZipFile(wheel) as archive:
        missing = {name for name in listed if (ROOT / name).exists()} - set(archive.namelist())
    assert not missing


def test_the_packages_belong_to_one_distribution(installed: Path) -> None:
    script = (
        "import importlib.metadata as m, json; d = m.packages_distributions();"
        f"print(json.dumps({{p: d.get(p) for p in {sorted(PACKAGES)!r}}}))"
    )
    found = json.loads(run(installed, "python", "-c", script).stdout)
    assert found == {package: ["vm-replica-broker"] for package in PACKAGES}


def test_the_modules_come_from_the_wheel(installed: Path) -> None:
    script = "import broker, node, vmrctl, vmreplica as v; print(v.__file__, node.__file__)"
    done = run(installed, "python", "-c", script)
    assert done.returncode == 0, done.stderr
    assert all(path.startswith(str(installed)) for path in done.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_start(installed: Path, command: str) -> None:
    done = run(installed, command, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().startswith("usage: " + command)


def test_the_version_is_the_distribution_s(installed: Path, wheel: Path) -> None:
    shown = json.loads(run(installed, "vmrctl", "version", "-o", "json").stdout)
    assert wheel.name.startswith(f"vm_replica_broker-{shown['client']['version']}-")


@pytest.mark.parametrize("command", ["vmreplica-broker", "vmreplica-node"])
def test_the_daemons_say_that_there_is_no_configuration(installed: Path, command: str) -> None:
    done = run(installed, command, "--config", "/no/such.yaml", "--check")
    said = done.stdout + done.stderr
    assert done.returncode == 2 and "/no/such.yaml" in said and "Traceback" not in said
