"""Times on the wire: google.protobuf.Timestamp and RFC 3339, from and to milliseconds UTC."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

from vmreplica.core.problems import Problem, Reason

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_MS = 253_402_300_799_999
"""The last millisecond of the year 9999: what a Timestamp may hold."""


def timestamp(time_ms: int) -> Timestamp | None:
    """Milliseconds since 1970 as a Timestamp; 0 = none."""
    if time_ms == 0:
        return None
    return Timestamp(seconds=time_ms // 1000, nanos=time_ms % 1000 * 1_000_000)


def milliseconds(value: Timestamp, field: str = "time") -> int:
    """A Timestamp as milliseconds since 1970; an unset one is 0.

    :raises Problem: BAD_FIELD outside the years 1970 to 9999.
    """
    time_ms = value.seconds * 1000 + value.nanos // 1_000_000
    if not 0 <= time_ms <= _MAX_MS or not 0 <= value.nanos < 1_000_000_000:
        raise Problem(
            Reason.BAD_FIELD,
            "The time lies outside the years 1970 to 9999.",
            field=field,
            value=f"{value.seconds}.{value.nanos:09d}",
            remedy="Send seconds since 1970 and 0 to 999,999,999 nanoseconds.",
        )
    return time_ms


def rfc3339(time_ms: int) -> str | None:
    """``2026-01-31T09:00:00.000Z``; 0 = None."""
    if time_ms == 0:
        return None
    text = (_EPOCH + timedelta(milliseconds=time_ms)).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{time_ms % 1000:03d}Z"


def parse_rfc3339(text: str, field: str = "time") -> int:
    """RFC 3339 with an offset, as milliseconds since 1970.

    :raises Problem: BAD_FIELD
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or "T" not in text.upper().replace(" ", "T"):
        raise Problem(
            Reason.BAD_FIELD,
            f"{text!r} is not an RFC 3339 time with an offset.",
            field=field,
            value=text,
            remedy="Write it like 2026-01-31T09:00:00Z.",
        )
    return (moment - _EPOCH) // timedelta(milliseconds=1)
