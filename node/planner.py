"""The compaction rules of the core, as the compactor takes them."""

from __future__ import annotations

from node.service.compactor import Planner
from vmreplica.core.compaction import plan_merge, with_merged


def planner() -> Planner:
    """What to merge next, and the manifest after it."""
    return Planner(plan_merge, with_merged)
