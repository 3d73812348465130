"""The tree is tidy, and the check that says so finds what it is for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tidy", ROOT / "tools" / "tidy.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tidy"] = module
    spec.loader.exec_module(module)
    return module


tidy = _load()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout: no list of files")
def test_the_tree_is_tidy() -> None:
    assert [str(fault) for fault in tidy.faults_of_tree(ROOT)] == []


LONG = "def f():\n" + "    pass\n" * 70
PLACE = "# see /wo" + "rk/shared\n"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.py", "x = 1\n" * 501, "has 501 lines"),
        ("a.sh", "true\n" * 501, "has 501 lines"),
        ("a.py", LONG, "f has 71 lines"),
        ("a.sh", "f() {\n" + "true\n" * 70 + "}\n", "f has 72 lines"),
        ("b/run", "#!/bin/bash\nf() {\n" + "true\n" * 70 + "}\n", "f has 72 lines"),
        ("utils.py", "", "is called 'utils'"),
        ("a.py", "class DiskManager:\n    pass\n", "class DiskManager"),
        ("a.py", "def f(cfg: int) -> None:\n    pass\n", "'cfg': write config"),
        ("a.py", "msg = 1\n", "'msg': write message"),
        ("a.py", "self.idx = 1\n", "'idx': write index"),
        ("a.py", "def (:\n", "is not Python"),
        ("docs/a.md", PLACE, "names a workplace"),
        ("docs/a.md", "see " + "issue" + " 2\n", "names a workplace"),
    ],
)
def test_each_kind_of_fault_is_found(name: str, text: str, sentence: str) -> None:
    faults = tidy.faults_of_file(name, text)
    assert any(sentence in str(fault) for fault in faults), faults


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", "x = 1\n" * 500),
        ("a.md", "words\n" * 900),
        ("a.py", "def f():\n" + "    pass\n" * 69),
        ("a.py", "print(other.msg, buf)\n"),
    ],
)
def test_what_is_allowed_is_left_alone(name: str, text: str) -> None:
    assert tidy.faults_of_file(name, text) == []
