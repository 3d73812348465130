"""The arithmetic of leases: until when a holder may act, and which settings cannot work.

Deadline = send time of the last answered keepalive + granted TTL - margin. The store counts the
TTL from when it handled the keepalive, which is later than its sending, so the holder always
stops first.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmreplica.core.problems import Problem, Reason


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """How a lease is kept.

    ``ttl_ms`` is asked for, ``keepalive_ms`` passes between an answer and the next keepalive, one
    try waits ``try_ms``, and the holder stops ``margin_ms`` before the store could let go.
    """

    ttl_ms: int
    keepalive_ms: int
    try_ms: int
    margin_ms: int


NODE_LEASE = LeaseTiming(ttl_ms=6_000, keepalive_ms=1_500, try_ms=1_500, margin_ms=1_000)
BROKER_LEASE = LeaseTiming(ttl_ms=4_000, keepalive_ms=700, try_ms=900, margin_ms=500)


def deadline_ms(sent_ms: int, granted_ttl_ms: int, margin_ms: int) -> int:
    """The moment to stop, on the clock that ``sent_ms`` was read from."""
    return sent_ms + granted_ttl_ms - margin_ms


def check_lease_timing(timing: LeaseTiming, field: str = "lease") -> None:
    """Refuse settings with which one lost keepalive ends the lease.

    :param field: name of the configuration section, for the message.
    :raises Problem: BAD_CONFIG.
    """
    for name in ("ttl_ms", "keepalive_ms", "try_ms"):
        if getattr(timing, name) <= 0:
            raise Problem(
                Reason.BAD_CONFIG,
                f"{field}.{name} must be above 0.",
                field=f"{field}.{name}",
                value=str(getattr(timing, name)),
                remedy="Leave it out to get the default.",
            )
    if timing.margin_ms < 0:
        raise Problem(
            Reason.BAD_CONFIG,
            f"{field}.margin_ms must not be negative.",
            field=f"{field}.margin_ms",
            value=str(timing.margin_ms),
            remedy="Leave it out to get the default.",
        )
    needed_ms = timing.keepalive_ms + 2 * timing.try_ms
    usable_ms = timing.ttl_ms - timing.margin_ms
    if needed_ms > usable_ms:
        raise Problem(
            Reason.BAD_CONFIG,
            f"{field}: a keepalive and two tries take {needed_ms} ms, "
            f"but the lease is usable for {usable_ms} ms only.",
            field=f"{field}.ttl_ms",
            value=str(timing.ttl_ms),
            remedy=f"Set {field}.ttl_ms to at least {needed_ms + timing.margin_ms}, "
            f"or lower {field}.keepalive_ms or {field}.try_ms.",
        )
