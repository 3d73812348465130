"""The compaction rules of the core, as the compactor takes them."""

from __future__ import annotations

from collections.abc import Callable

from node.service.compactor import Planner
from vmreplica.core.compaction import MergePlan, plan_merge, with_merged
from vmreplica.core.manifest import Manifest


def planner(clones: Callable[[str], bool] = lambda _: False) -> Planner:
    """What to merge next, and the manifest after it.

    :param clones: whether files share blocks at a storage location.
    """

    def next_merge(manifest: Manifest) -> MergePlan | None:
        return plan_merge(manifest, reflink=clones(manifest.storage_location))

    return Planner(next_merge, with_merged)
