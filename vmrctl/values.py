"""Values as people type and read them: durations, rates, times, sizes."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import click

_DURATION_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
    "kbit": 125, "mbit": 125_000, "gbit": 125_000_000,
}  # fmt: skip
_U64 = 2**64


def duration_ms(text: str) -> int:
    """``5s``, ``1h30m``, ``500ms`` as milliseconds. :raises ValueError: with the reason."""
    parts = re.findall(r"(\d+)(ms|s|m|h|d)", text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise ValueError(f"{text!r} is not a duration: write 5s, 5m, 1h or 1h30m.")
    total = sum(int(number) * _DURATION_MS[unit] for number, unit in parts)
    if total >= _U64:
        raise ValueError(f"{text!r} is too long a duration.")
    return total


def bytes_per_s(text: str) -> int:
    """``10MiB/s``, ``1Gbit/s`` as bytes a second; ``0`` = no limit.

    A number without a unit is refused: ``10`` would be taken for ten bytes a second, and stop a VM's
    replication without a word.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)(?:/s)?", text)
    if not found or found[2].lower() not in _SIZE:
        raise ValueError(f"{text!r} is not a rate: write 10MiB/s, 100MB/s or 1Gbit/s.")
    if not found[2] and float(found[1]):
        raise ValueError(f"{text!r} is not a rate without its unit: write {text}MiB/s.")
    rate = int(float(found[1]) * _SIZE[found[2].lower()])
    if rate >= _U64:
        raise ValueError(f"{text!r} is too high a rate.")
    return rate


def time_ms(text: str) -> int:
    """An RFC 3339 time as milliseconds since 1970 UTC."""
    shape = r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)"
    if not re.fullmatch(shape, text):
        raise ValueError(f"{text!r} is not an RFC 3339 time: write 2026-11-23T04:05:06Z.")
    try:
        moment = datetime.fromisoformat(text.replace("z", "Z").replace("t", "T"))
    except ValueError as error:
        raise ValueError(f"{text!r} is not a time that exists: {error}.") from error
    return round((moment - datetime.fromtimestamp(0, UTC)).total_seconds() * 1000)


def since_ms(text: str) -> int:
    """An RFC 3339 time, or a duration back from now, as milliseconds since 1970 UTC."""
    try:
        ago_ms = duration_ms(text)
    except ValueError:
        try:
            return time_ms(text)
        except ValueError as error:
            raise ValueError(f"{error} Or write how long ago: 30m, 1h.") from error
    # Imported late: asyncio comes with it, and most commands have no use for that.
    from vmreplica.adapters.system_clock import SystemClock

    return max(SystemClock().wall_ms() - ago_ms, 1)


class Duration(click.ParamType[int]):
    """A duration; the value is milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Text to milliseconds, or a usage error."""
        return _converted(self, duration_ms, value, param, ctx)


class Rate(click.ParamType[int]):
    """A rate; the value is bytes a second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Text to bytes a second, or a usage error."""
        return _converted(self, bytes_per_s, value, param, ctx)


class Time(click.ParamType[int]):
    """An RFC 3339 time; the value is milliseconds since 1970 UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Text to milliseconds, or a usage error."""
        return _converted(self, time_ms, value, param, ctx)


class Since(click.ParamType[int]):
    """A time, or how long ago; the value is milliseconds since 1970 UTC."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Text to milliseconds, or a usage error."""
        return _converted(self, since_ms, value, param, ctx)


def _converted(
    kind: click.ParamType[int],
    parse: Any,
    value: Any,
    param: click.Parameter | None,
    ctx: click.Context | None,
) -> int:
    if isinstance(value, int):
        return value
    try:
        return int(parse(value))
    except ValueError as error:
        kind.fail(str(error), param, ctx)


DURATION = Duration()
RATE = Rate()
TIME = Time()
SINCE = Since()


def shown_bytes(value: int | float) -> str:
    """1536 as ``1.5 KiB``."""
    amount = float(value)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(amount) < 1024 or unit == "TiB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    raise AssertionError("the last unit ends the loop")


def shown_duration(value_ms: int | float) -> str:
    """Milliseconds as ``250ms``, ``5s``, ``1h30m``."""
    if value_ms < 1000:
        return f"{value_ms:.0f}ms"
    seconds = value_ms / 1000
    if seconds < 60:
        return f"{seconds:.1f}s" if seconds % 1 else f"{seconds:.0f}s"
    whole = int(seconds)
    parts = [(whole // 86_400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m")]
    parts.append((whole % 60, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)
