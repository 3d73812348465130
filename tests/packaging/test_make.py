"""What `make test` says must be true: its counts, its last line, its refusal to hide anything."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PYTEST_CLOSING = re.compile(
    r"^=+ (\d+ (failed|passed|skipped|errors?)(, )?)+ in \d+\.\d\ds( \(\d+:\d\d:\d\d\))? =+$"
)


@pytest.fixture
def rooms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """tools/check_rooms.py over a tree of its own, with three small rooms."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    module = importlib.import_module("check_rooms")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "build")
    monkeypatch.setattr(module, "CLOSING", tmp_path / "build" / "closing-line")
    monkeypatch.setattr(module, "PARALLEL", set())
    for name, text in {
        "unit": "def test_good(): pass\ndef test_better(): pass\n",
        "golden": (
            "import pytest\ndef test_bad(): assert 0\n"
            "@pytest.mark.skip(reason='no moon')\ndef test_left_out(): pass\n"
            "@pytest.fixture\ndef broken(): raise OSError\ndef test_error(broken): pass\n"
        ),
        "sim": "",
        "e2e": "import nothing_like_this\n",
    }.items():
        (tmp_path / "tests" / name).mkdir(parents=True)
        (tmp_path / "tests" / name / "test_it.py").write_text(text)
    yield module
    for name in ("check_rooms", "check", "tidy"):
        sys.modules.pop(name, None)


def test_good_rooms_close_with_pytest_s_line(
    rooms: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert rooms.main(["unit"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert PYTEST_CLOSING.match(last) and " 2 passed in " in last
    assert (tmp_path / "build" / "closing-line").read_text() == last + "\n"


def test_whatever_goes_wrong_is_counted_and_named(
    rooms: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rooms.main(["unit", "golden", "sim", "e2e"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert PYTEST_CLOSING.match(lines[-1])
    assert " 1 failed, 2 passed, 1 skipped, 3 errors in " in lines[-1]
    said = "\n".join(lines)
    assert re.search(r"FAILED .*test_bad", said) and re.search(r"FAILED .*test_error", said)
    assert "FAILED   room sim has no tests" in said
    assert "SKIPPED  golden ×1: no moon" in said


def test_minutes_are_told_as_pytest_tells_them(rooms: Any) -> None:
    room = rooms.Room("unit", passed=3, seconds=3_725.5)
    assert " 3 passed in 3725.50s (1:02:05) " in rooms.closing_line([room])
    assert "OVER THE BUDGET" in rooms.summary([room])


def test_checks_are_a_room(rooms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot() -> tuple[bool, str]:
        raise rooms.check.Skipped("no tool")

    checks = {"a": lambda: (True, ""), "b": lambda: (False, "why"), "c": cannot}
    monkeypatch.setattr(rooms.check, "CHECKS", checks)
    room = rooms.run_checks()
    assert (room.passed, room.failed, room.skipped) == (1, 1, 1)
    assert room.faults == ["check b"] and list(room.reasons) == ["c: no tool"]


def test_help_lists_every_target() -> None:
    shown = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for target in ("setup", "test", "check", "demo", "bench", "lab", "e2e", "clean"):
        assert re.search(rf"^ +make {target}  +\w", shown, re.MULTILINE), target


def test_the_ci_run_closes_with_the_line_even_when_make_complains(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_bytes((ROOT / ".ci" / "run").read_bytes())
    makefile = (
        'test:\n\t@test "$$CI" = true && ! read line\n\t@mkdir -p build/test\n'
        "\t@echo '= 1 failed in 1.00s =' > build/test/closing-line; cat build/test/closing-line; "
        "exit 1\n"
    )
    (tmp_path / "Makefile").write_text(makefile)
    done = subprocess.run(
        ["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, check=False, input="x"
    )
    assert done.returncode == 2 and done.stdout.splitlines()[-1] == "= 1 failed in 1.00s ="
    (tmp_path / "Makefile").write_text("test:\n\t@exit 1\n")
    done = subprocess.run(
        ["bash", ".ci/run"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "did not start" in done.stdout.splitlines()[-1]
