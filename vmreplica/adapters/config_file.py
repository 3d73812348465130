"""Configuration: a YAML file and the environment → a tree of frozen dataclasses.

All problems are found at once and told as ``file:key: sentence``. A key that no class knows is a
problem too. ``VMREPLICA_A__B=v`` overrides key ``a.b``; for lists and the like v is YAML.

Classes describe their keys by their fields: ``str int float bool Path``, enums of text, nested
dataclasses, ``tuple[X, ...]``, ``X | None``, each perhaps ``Annotated`` with the rules below. A
field without default is obligatory. ``def faults(self) -> Iterable[tuple[str, str]]`` on a class
adds rules across its fields: (key, sentence).
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Protocol,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import yaml

from vmreplica.core.problems import Problem, Reason

T = TypeVar("T")
ENVIRONMENT_PREFIX = "VMREPLICA_"
MAX_FILE_BYTES = 1 << 20

_DURATION = re.compile(r"(\d+)(ms|s|m|h|d)?")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, None: 1}
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


class Rule(Protocol):
    """A rule on one value; its sentence where the value breaks it, else ""."""

    def fault(self, value: Any) -> str: ...


@dataclass(frozen=True, slots=True)
class NotEmpty:
    """Text or list with something in it."""

    def fault(self, value: Any) -> str:
        """The sentence."""
        return "" if value else "must not be empty"


@dataclass(frozen=True, slots=True)
class HostPort:
    """``HOST:PORT``; ``[v6]:PORT``; with ``port_zero`` a free port may be asked for by 0."""

    port_zero: bool = True
    empty: bool = False

    def fault(self, value: Any) -> str:
        """The sentence."""
        if value == "" and self.empty:
            return ""
        host, _, port = str(value).rpartition(":")
        low = 0 if self.port_zero else 1
        if not (port.isascii() and port.isdecimal() and low <= int(port) <= 65_535):
            return f"must be HOST:PORT with a port from {low} to 65535, not {value!r}"
        if not (_HOST.fullmatch(host) or _is_address(host.removeprefix("[").removesuffix("]"))):
            return f"must be HOST:PORT with a host name or address, not {value!r}"
        return ""


@dataclass(frozen=True, slots=True)
class HostName:
    """A DNS name or an IP address, without port."""

    def fault(self, value: Any) -> str:
        """The sentence."""
        good = _HOST.fullmatch(str(value)) or _is_address(str(value))
        return "" if good else f"must be a host name or address, not {value!r}"


@dataclass(frozen=True, slots=True)
class PlainName:
    """A name fit for keys and files: letters, digits, ``.``, ``_``, ``-``."""

    def fault(self, value: Any) -> str:
        """The sentence."""
        good = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", str(value))
        return "" if good else f"must be a plain name of letters, digits, . _ -, not {value!r}"


@dataclass(frozen=True, slots=True)
class AbsolutePath:
    """A path from the root; ``exists`` also looks whether something is there."""

    exists: bool = False

    def fault(self, value: Any) -> str:
        """The sentence."""
        path = Path(value)
        if not path.is_absolute():
            return f"must be an absolute path, not {str(value)!r}"
        if self.exists and not path.exists():
            return f"does not exist: {str(value)!r}"
        return ""


@dataclass(frozen=True, slots=True)
class Between:
    """A number from ``low`` to ``high``."""

    low: float
    high: float

    def fault(self, value: Any) -> str:
        """The sentence."""
        good = self.low <= value <= self.high
        return "" if good else f"must be from {self.low} to {self.high}, not {value}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few words."""

    words: tuple[str, ...]

    def fault(self, value: Any) -> str:
        """The sentence."""
        return "" if value in self.words else f"must be {' or '.join(self.words)}, not {value!r}"


@dataclass(frozen=True, slots=True)
class DurationMs:
    """On an int field: milliseconds, also written as ``500ms``, ``30s``, ``5m``, ``12h``, ``1d``."""

    def fault(self, value: Any) -> str:
        """The sentence."""
        return "" if value >= 0 else f"must not be negative, but is {value}"


class _FromEnvironment(str):
    """Text of an environment variable: read as YAML where anything but text is wanted."""

    __slots__ = ()


class _Wrong(Exception):
    """This value cannot be used; the sentence has been noted."""


def load_config(path: Path, kind: type[T], environment: Mapping[str, str] | None = None) -> T:
    """Read, override, check.

    :param environment: in place of the process's own.
    :raises Problem: BAD_CONFIG; its message holds one line ``file:key: sentence`` a fault.
    """
    reader = _Reader(str(path))
    data = _override(_read(path), os.environ if environment is None else environment, reader)
    try:
        value = reader.build(kind, data, "")
    except _Wrong:
        value = None
    if reader.faults:
        raise config_problem(reader.faults)
    return cast(T, value)


def config_problem(lines: Iterable[str]) -> Problem:
    """BAD_CONFIG from finished lines."""
    found = list(lines)
    return Problem(
        Reason.BAD_CONFIG,
        "\n".join(found),
        field=found[0].split(": ")[0],
        remedy="Correct the file; --check tries it without starting anything.",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise config_problem([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(text) > MAX_FILE_BYTES:
        raise config_problem([f"{path}: is larger than {MAX_FILE_BYTES} bytes"])
    try:
        data = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "not YAML"
        raise config_problem([f"{path}{where}: {what}"]) from error
    except (UnicodeDecodeError, RecursionError, ValueError) as error:
        raise config_problem([f"{path}: is not YAML"]) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise config_problem([f"{path}: must hold keys and values, not a {type(data).__name__}"])
    return data


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused below, with its place
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _override(
    data: dict[str, Any], environment: Mapping[str, str], reader: _Reader
) -> dict[str, Any]:
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        *parents, last = name[len(ENVIRONMENT_PREFIX) :].lower().split("__")
        place: Any = data
        for parent in parents:
            place = place.setdefault(parent, {}) if isinstance(place, dict) else None
        if isinstance(place, dict) and last:
            place[last] = _FromEnvironment(environment[name])
            reader.named[".".join([*parents, last])] = name
        else:
            reader.faults.append(f"{name}: names no key")
    return data


class _Reader:
    """Builds values and collects faults."""

    def __init__(self, file: str) -> None:
        self.faults: list[str] = []
        self.named: dict[str, str] = {}
        self._file = file

    def fail(self, key: str, sentence: str) -> _Wrong:
        """Note one fault."""
        place = f"environment {self.named[key]}" if key in self.named else self._file
        self.faults.append(f"{place}:{key}: {sentence}" if key else f"{place}: {sentence}")
        return _Wrong()

    def build(self, kind: Any, data: Any, key: str) -> Any:
        """``data`` as ``kind``. :raises _Wrong: noted"""
        if isinstance(data, _FromEnvironment) and not _wants_text(kind):
            try:
                data = yaml.safe_load(data)
            except yaml.YAMLError:
                raise self.fail(key, f"cannot be read: {str(data)!r}") from None
        origin = get_origin(kind)
        if origin is Annotated:
            return self._ruled(kind, data, key)
        if origin in (types.UnionType, Union):
            if data is None:
                return None
            (inner,) = (arm for arm in get_args(kind) if arm is not type(None))
            return self.build(inner, data, key)
        if origin is tuple:
            return self._list(get_args(kind)[0], data, key)
        if is_dataclass(kind):
            return self._tree(kind, data, key)
        return self._scalar(kind, data, key)

    def _ruled(self, kind: Any, data: Any, key: str) -> Any:
        inner, *rules = get_args(kind)
        if any(isinstance(rule, DurationMs) for rule in rules) and isinstance(data, str):
            found = _DURATION.fullmatch(data.strip())
            if found is None:
                raise self.fail(key, f"must be a duration like 500ms, 30s or 5m, not {data!r}")
            data = int(found[1]) * _UNIT_MS[found[2]]
        value = self.build(inner, data, key)
        if value is None:
            return None
        for rule in rules:
            sentence = rule.fault(value)
            if sentence:
                raise self.fail(key, sentence)
        return value

    def _list(self, inner: Any, data: Any, key: str) -> tuple[Any, ...]:
        if not isinstance(data, list):
            raise self.fail(key, f"must be a list, not {data!r}")
        values, wrong = [], False
        for number, item in enumerate(data):
            try:
                values.append(self.build(inner, item, f"{key}[{number}]"))
            except _Wrong:
                wrong = True
        if wrong:
            raise _Wrong
        return tuple(values)

    def _tree(self, kind: Any, data: Any, key: str) -> Any:
        if data is None:
            data = {}
        if not isinstance(data, dict):
            raise self.fail(key, f"must hold keys and values, not {data!r}")
        hints = get_type_hints(kind, include_extras=True)
        known = {field.name: field for field in fields(kind)}
        before = len(self.faults)
        for name in data:
            if name not in known:
                self.fail(_join(key, str(name)), _unknown(str(name), known))
        values: dict[str, Any] = {}
        for name, field in known.items():
            place = _join(key, name)
            if name in data:
                try:
                    values[name] = self.build(hints[name], data[name], place)
                except _Wrong:
                    continue
            elif field.default is MISSING and field.default_factory is MISSING:
                self._missing(hints[name], place)
        if len(self.faults) > before:
            raise _Wrong
        value = kind(**values)
        across = getattr(value, "faults", None)
        for name, sentence in across() if callable(across) else ():
            self.fail(_join(key, name), sentence)
        return value

    def _missing(self, kind: Any, key: str) -> None:
        """A tree that is left out whole is told by its own obligatory keys."""
        if not is_dataclass(kind):
            self.fail(key, "is missing")
            return
        try:
            self.build(kind, {}, key)
        except _Wrong:
            return
        self.fail(key, "is missing")

    def _scalar(self, kind: Any, data: Any, key: str) -> Any:
        match kind:
            case _ if kind is bool and isinstance(data, bool):
                return data
            case _ if kind is int and isinstance(data, int) and not isinstance(data, bool):
                return data
            case _ if (
                kind is float and isinstance(data, int | float) and not isinstance(data, bool)
            ):
                return float(data)
            case _ if kind is str and isinstance(data, str):
                return str(data)
            case _ if kind is Path and isinstance(data, str) and data:
                return Path(data)
            case _ if isinstance(kind, type) and issubclass(kind, StrEnum):
                words = [member.value for member in kind]
                if data in words:
                    return kind(data)
                raise self.fail(key, f"must be {' or '.join(words)}, not {data!r}")
        wanted = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "text",
            Path: "a path",
        }[kind]
        raise self.fail(key, f"must be {wanted}, not {data!r}")


def _wants_text(kind: Any) -> bool:
    if get_origin(kind) is Annotated:
        inner, *rules = get_args(kind)
        return _wants_text(inner) or any(isinstance(rule, DurationMs) for rule in rules)
    if get_origin(kind) in (types.UnionType, Union):
        return any(_wants_text(arm) for arm in get_args(kind))
    return kind in (str, Path) or (isinstance(kind, type) and issubclass(kind, StrEnum))


def _unknown(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f"is not a key here; did you mean {close[0]}?" if close else "is not a key here"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
