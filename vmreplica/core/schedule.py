"""When the next cycle of a VM is due, and how long to wait after a failure.

Times are milliseconds of one host's boot clock. Pure: jitter comes in as a number in [0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from vmreplica.core.problems import Problem, Reason

MIN_FREQUENCY_MS = 5_000
MAX_FREQUENCY_MS = 24 * 3_600_000
IN_DOUBT_RETRY_MS = 500
"""While the owner is in doubt (it may just be moving) it is asked this often at the latest."""
IN_DOUBT_FOR_MS = 60_000
"""After this long in doubt it is an outage: back off."""
FIRST_BACKOFF_MS = 1_000


def check_frequency(frequency_ms: int) -> None:
    """:raises Problem: BAD_FIELD outside 5 s … 24 h."""
    if not MIN_FREQUENCY_MS <= frequency_ms <= MAX_FREQUENCY_MS:
        raise Problem(
            Reason.BAD_FIELD,
            "the replication frequency must lie between 5 s and 24 h",
            field="frequency_ms",
            value=str(frequency_ms),
            remedy="Give for example --frequency 30s, 5m or 15m",
        )


@dataclass(frozen=True, slots=True)
class Due:
    """``at_ms``: when the next cycle begins. ``missed``: due times that passed in the meantime."""

    at_ms: int
    missed: int


def next_due(begun_ms: int, frequency_ms: int, now_ms: int) -> Due:
    """The next due time after a cycle that became due at ``begun_ms``.

    A cycle that outlasts its interval misses the due times it covers; the next one begins at once
    and the rhythm goes on from there: never two at a time, never a burst to catch up.
    """
    elapsed = max(0, now_ms - begun_ms)
    if elapsed <= frequency_ms:
        return Due(begun_ms + frequency_ms, 0)
    return Due(now_ms, elapsed // frequency_ms)


def retry_delay_ms(
    failures: int, in_doubt_ms: int, owner_in_doubt: bool, frequency_ms: int, jitter: float
) -> int:
    """How long to wait before the next try.

    :param failures: failures in a row, counted from 1.
    :param in_doubt_ms: how long the trouble has lasted.
    :param owner_in_doubt: the owner may be moving right now.
    :param jitter: evenly drawn from [0, 1), so that a thousand senders do not knock together.
    """
    if owner_in_doubt and in_doubt_ms < IN_DOUBT_FOR_MS:
        return int(IN_DOUBT_RETRY_MS * (0.5 + jitter / 2))
    grown = FIRST_BACKOFF_MS * 2 ** min(max(failures - 1, 0), 20)
    return int(min(grown, frequency_ms) * (0.5 + jitter / 2))
