"""Faulty versions of the fake's model, one wrong habit each: the facts must notice them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vmreplica.ports.cluster_store import (
    CompareTarget,
    Delete,
    Put,
    WatchEvent,
)
from vmreplica.testing import etcd_model as model


def _is_write(request: Any) -> bool:
    return isinstance(request, model.Transaction)


def revision_for_each_key_of_a_lease(state: Any, request: Any) -> Any:
    if isinstance(request, model.Revoke | model.Expire) and request.lease_id in state.leases:
        keys = [key for key in state.order if state.live[key].lease_id == request.lease_id]
        events: tuple[WatchEvent, ...] = ()
        for key in keys:
            state, _, more = model.step(state, model.Transaction((), (Delete(key),)))
            events += more
        state, response, _ = model.step(state, request)
        return state, response, events
    return model.step(state, request)


def unequal_value_holds_for_missing(state: Any, request: Any) -> Any:
    if _is_write(request):
        kept = tuple(
            c
            for c in request.compares
            if not (
                c.target is CompareTarget.VALUE and c.operator == "!=" and c.key not in state.live
            )
        )
        request = replace(request, compares=kept)
    return model.step(state, request)


def only_the_branch_taken_is_checked(state: Any, request: Any) -> Any:
    if _is_write(request):
        taken = all(model.holds(c, state.live.get(c.key)) for c in request.compares)
        request = replace(request, **{"failure" if taken else "success": ()})
    return model.step(state, request)


def unknown_lease_is_ignored(state: Any, request: Any) -> Any:
    if _is_write(request):
        known = {0, *state.leases}
        request = replace(
            request,
            success=tuple(
                replace(o, lease_id=0) if isinstance(o, Put) and o.lease_id not in known else o
                for o in request.success
            ),
        )
    return model.step(state, request)


def deleting_nothing_raises_the_revision(state: Any, request: Any) -> Any:
    after, response, events = model.step(state, request)
    if _is_write(request) and not events and any(isinstance(o, Delete) for o in request.success):
        after = replace(after, revision=after.revision + 1)
        response = replace(response, revision=after.revision)
    return after, response, events


def the_same_value_is_no_change(state: Any, request: Any) -> Any:
    if _is_write(request) and len(request.success) == 1 and isinstance(request.success[0], Put):
        put = request.success[0]
        old = state.live.get(put.key)
        if old and (old.value, old.lease_id) == (put.value, put.lease_id):
            request = replace(request, success=())
    return model.step(state, request)


def a_put_without_lease_keeps_the_lease(state: Any, request: Any) -> Any:
    if _is_write(request):
        request = replace(
            request,
            success=tuple(
                replace(o, lease_id=state.live[o.key].lease_id)
                if isinstance(o, Put) and not o.lease_id and o.key in state.live
                else o
                for o in request.success
            ),
        )
    return model.step(state, request)


def compaction_forgets_nothing(state: Any, request: Any) -> Any:
    if isinstance(request, model.Compact):
        return state, None, ()
    return model.step(state, request)


def a_dead_lease_is_revived(state: Any, request: Any) -> Any:
    after, response, events = model.step(state, request)
    return after, 60 if isinstance(request, model.Keepalive) and not response else response, events


def a_filtered_count(state: Any, request: Any) -> Any:
    after, response, events = model.step(state, request)
    if isinstance(request, model.Range) and not request.count_only:
        response = replace(response, count=len(response.items))
    return after, response, events


def leases_run_out_early(state: Any, request: Any) -> Any:
    if isinstance(request, model.Grant):
        after, lease, events = model.step(state, request)
        short = replace(after, leases={**after.leases, request.lease_id: 1})
        return short, lease, events
    after, response, events = model.step(state, request)
    return after, 2 if isinstance(request, model.Keepalive) and response else response, events


PLANTED = [
    revision_for_each_key_of_a_lease,
    unequal_value_holds_for_missing,
    only_the_branch_taken_is_checked,
    unknown_lease_is_ignored,
    deleting_nothing_raises_the_revision,
    the_same_value_is_no_change,
    a_put_without_lease_keeps_the_lease,
    compaction_forgets_nothing,
    a_dead_lease_is_revived,
    a_filtered_count,
    leases_run_out_early,
]
