"""Keeps the tree readable: sizes of files and functions, exact names, no traces of workplaces.

Run alone it prints every fault as ``file:line: sentence`` and exits 1 when there is one. It is
also a unit test.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70
GENERATED = ("vmreplica/v1/",)
CODE_SUFFIXES = {".py", ".sh", ".js", ".mjs", ".c", ".h", ".zsh", ".bash"}

BANNED_NAMES = {
    "cfg": "config",
    "cnt": "count",
    "conn": "connection",
    "idx": "index",
    "mgr": "what it does",
    "msg": "message",
    "num": "number or count",
    "req": "request",
    "res": "result or answer",
    "resp": "response or answer",
    "ret": "result",
    "svc": "service",
    "val": "value",
    "whitelist": "allowed",
    "blacklist": "refused",
}
BANNED_MODULES = {
    "utils": "one noun a file",
    "util": "one noun a file",
    "helpers": "one noun a file",
    "helper": "one noun a file",
    "common": "one noun a file",
    "misc": "one noun a file",
    "base": "the thing itself",
}
BANNED_CLASS_ENDINGS = {"Manager": "what it does", "Helper": "what it does", "Util": "a function"}

# Put together from pieces, so that this file passes its own check.
_TEAM = "/tmp/" + "team"
_PLACES = "|".join(
    ["/wo" + "rk/", _TEAM, "/home/" + r"\w+/", "BRIEF" + r"\.md", "CLAUDE" + r"\.md"]
)
WORKPLACE = re.compile(_PLACES)
WORKPLACE_WORDS = re.compile(
    r"\bissue " + r"#?\d+\b|\bindex-" + "url|" + r"\bco-authored" + "-by", re.I
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing to put right."""

    path: str
    line: int
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.sentence}"


def tree_files(root: Path = ROOT) -> list[str]:
    """Files of the tree: tracked, or new and not ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return sorted(name for name in listed.split("\0") if name and (root / name).is_file())


def faults_of_tree(root: Path = ROOT) -> list[Fault]:
    """All faults of the tree."""
    found: list[Fault] = []
    for name in tree_files(root):
        if name.startswith(GENERATED):
            continue
        try:
            text = (root / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += faults_of_file(name, text)
    return found


def faults_of_file(name: str, text: str) -> list[Fault]:
    """All faults of one file, given by its name in the tree and its text."""
    found = list(_places(name, text))
    if not _is_code(name, text):
        return found
    lines = text.count("\n") + (not text.endswith("\n"))
    if lines > MAX_FILE_LINES:
        found.append(Fault(name, lines, f"has {lines} lines; at most {MAX_FILE_LINES}. Split it."))
    if Path(name).suffix == ".py":
        found += _python(name, text)
    elif text.startswith("#!") or Path(name).suffix == ".sh":
        found += _shell(name, text)
    return found


def _is_code(name: str, text: str) -> bool:
    return Path(name).suffix in CODE_SUFFIXES or text.startswith("#!")


def _places(name: str, text: str) -> Iterator[Fault]:
    for number, line in enumerate(text.splitlines(), 1):
        for pattern in (WORKPLACE, WORKPLACE_WORDS):
            match = pattern.search(line)
            if match:
                yield Fault(name, number, f"names a workplace: {match[0]!r}. Say it without.")


def _python(name: str, text: str) -> Iterator[Fault]:
    stem = Path(name).stem
    if stem in BANNED_MODULES:
        yield Fault(name, 1, f"is called {stem!r}: {BANNED_MODULES[stem]}.")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield Fault(name, error.lineno or 1, f"is not Python: {error.msg}.")
        return
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION_LINES:
                    sentence = f"{node.name} has {length} lines; at most {MAX_FUNCTION_LINES}."
                    yield Fault(name, node.lineno, sentence)
            case ast.ClassDef():
                for ending, better in BANNED_CLASS_ENDINGS.items():
                    if node.name.endswith(ending):
                        yield Fault(name, node.lineno, f"class {node.name}: name it by {better}.")
        for used in _names(node):
            if used in BANNED_NAMES:
                line = getattr(node, "lineno", 1)
                yield Fault(name, line, f"{used!r}: write {BANNED_NAMES[used]}.")


def _names(node: ast.AST) -> Iterable[str]:
    """The names that a node makes; names that it only uses were made by others."""
    match node:
        case ast.Name(id=made, ctx=ast.Store()):
            return (made,)
        case ast.Attribute(attr=made, ctx=ast.Store()):
            return (made,)
        case ast.arg(arg=made):
            return (made,)
        case ast.FunctionDef(name=made) | ast.AsyncFunctionDef(name=made):
            return (made,)
        case _:
            return ()


def _shell(name: str, text: str) -> Iterator[Fault]:
    lines = text.splitlines()
    for start, line in enumerate(lines):
        begun = re.match(r"(?:function )?([\w-]+) ?\(\) ?[{(] *$", line)
        if begun is None:
            continue
        end = next((i for i in range(start + 1, len(lines)) if lines[i][:1] in ("}", ")")), start)
        length = end - start + 1
        if length > MAX_FUNCTION_LINES:
            sentence = f"{begun[1]} has {length} lines; at most {MAX_FUNCTION_LINES}."
            yield Fault(name, start + 1, sentence)


def main() -> int:
    """Print all faults; 1 when there is one."""
    faults = faults_of_tree()
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
