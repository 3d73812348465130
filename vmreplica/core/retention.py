"""Which recovery points stay."""

from __future__ import annotations

from collections.abc import Sequence

from vmreplica.core.manifest import RecoveryPoint
from vmreplica.core.problems import Problem, Reason

MAX_CHAIN_FILES = 64
"""QEMU opens longer chains too, but every file costs time and memory at a failover."""

SPARE_FILES = 16
"""Files a chain may have beyond its kept points, for cycles not yet merged."""

MAX_RECOVERY_POINTS = MAX_CHAIN_FILES - SPARE_FILES


def check_recovery_points(count: int) -> int:
    """``count`` if a chain of 64 files can hold that many points.

    :raises Problem: BAD_FIELD
    """
    if 0 <= count <= MAX_RECOVERY_POINTS:
        return count
    raise Problem(
        Reason.BAD_FIELD,
        f"{count} recovery points need chains of more than {MAX_CHAIN_FILES} files.",
        field="recovery_points",
        value=str(count),
        remedy=f"Keep at most {MAX_RECOVERY_POINTS} recovery points.",
    )


def kept_points(points: Sequence[RecoveryPoint], count: int) -> tuple[RecoveryPoint, ...]:
    """The newest point, which is the head, and ``count`` older ones.

    :param points: by rising seq.
    """
    check_recovery_points(count)
    return tuple(points[-(count + 1) :])


def chain_limit(points: int) -> int:
    """The most files a chain may have at any instant with that many kept points."""
    return min(max(points, 1) + SPARE_FILES, MAX_CHAIN_FILES)
