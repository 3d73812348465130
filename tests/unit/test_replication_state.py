"""The state table of a primary, every pair of it."""

from __future__ import annotations

import pytest

from vmreplica.core.problems import Problem, Reason
from vmreplica.core.replication_health import Health, HealthFacts, health_of
from vmreplica.core.replication_state import (
    TABLE,
    VERBS,
    Input,
    ReplicationState,
    Standing,
    ask,
    standing,
    step,
)

S = ReplicationState
WORKING = (S.WAITING_FOR_INITIAL, S.REPLICATING, S.WAITING_FOR_RESYNC, S.RESYNCHRONIZING)


def origins(state: S) -> tuple[S, ...]:
    match state:
        case S.ERROR:
            return WORKING
        case S.SUSPENDED:
            return (S.WAITING_FOR_INITIAL, S.REPLICATING)
        case S.RESYNC_SUSPENDED:
            return (S.WAITING_FOR_RESYNC,)
        case _:
            return (state,)


# What each verb leads to, written down apart from the table.
EXPECTED: dict[tuple[S, Input], S] = {
    (S.NOT_ENABLED, Input.ENABLE): S.READY_FOR_INITIAL,
    (S.READY_FOR_INITIAL, Input.START): S.WAITING_FOR_INITIAL,
    (S.WAITING_FOR_INITIAL, Input.STOP_INITIAL): S.READY_FOR_INITIAL,
    (S.WAITING_FOR_INITIAL, Input.SUSPEND): S.SUSPENDED,
    (S.WAITING_FOR_INITIAL, Input.FULL_ACKNOWLEDGED): S.REPLICATING,
    (S.WAITING_FOR_INITIAL, Input.DELTA_ACKNOWLEDGED): S.REPLICATING,
    (S.REPLICATING, Input.SUSPEND): S.SUSPENDED,
    (S.REPLICATING, Input.TRACKING_LOST): S.WAITING_FOR_RESYNC,
    (S.WAITING_FOR_RESYNC, Input.RESYNC_BEGINS): S.RESYNCHRONIZING,
    (S.WAITING_FOR_RESYNC, Input.SUSPEND): S.RESYNC_SUSPENDED,
    (S.WAITING_FOR_RESYNC, Input.FULL_ACKNOWLEDGED): S.REPLICATING,
    (S.WAITING_FOR_RESYNC, Input.DELTA_ACKNOWLEDGED): S.REPLICATING,
    (S.RESYNCHRONIZING, Input.SUSPEND): S.RESYNC_SUSPENDED,
    (S.RESYNCHRONIZING, Input.TRACKING_LOST): S.WAITING_FOR_RESYNC,
    (S.RESYNCHRONIZING, Input.FULL_ACKNOWLEDGED): S.REPLICATING,
    (S.RESYNCHRONIZING, Input.DELTA_ACKNOWLEDGED): S.REPLICATING,
    (S.ERROR, Input.FULL_ACKNOWLEDGED): S.REPLICATING,
    (S.ERROR, Input.DELTA_ACKNOWLEDGED): S.REPLICATING,
    (S.ERROR, Input.RESYNC_BEGINS): S.RESYNCHRONIZING,
    (S.RESYNC_SUSPENDED, Input.RESUME): S.WAITING_FOR_RESYNC,
    **{(state, Input.FAILED): S.ERROR for state in WORKING},
    **{
        (state, Input.REMOVE): S.NOT_ENABLED
        for state in S
        if state not in (S.SYNCED_COMPLETE, S.FAIL_OVER_WAITING_COMPLETION)
    },
}
DEPENDS_ON_ORIGIN = {
    (S.ERROR, Input.SUSPEND),
    (S.ERROR, Input.RESUME),
    (S.SUSPENDED, Input.RESUME),
}


@pytest.mark.parametrize("state", list(S))
@pytest.mark.parametrize("what", list(Input))
def test_every_pair(state: S, what: Input) -> None:
    for origin in origins(state):
        now = Standing(state, origin)
        after = step(now, what)
        assert (after is not None) == (what in TABLE[state])
        if after is None:
            if what in VERBS:
                with pytest.raises(Problem) as caught:
                    ask(now, what, "guest1")
                assert caught.value.reason is Reason.STATE_REFUSES
                assert caught.value.value == state.value
                assert caught.value.remedy
            continue
        assert after.origin in origins(after.state), "no standing outside the table"
        if (state, what) not in DEPENDS_ON_ORIGIN:
            assert after.state is EXPECTED.get((state, what), state)


@pytest.mark.parametrize("origin", WORKING)
def test_errors_and_suspensions_go_back_where_they_came_from(origin: S) -> None:
    error = step(standing(origin), Input.FAILED)
    assert error is not None and error.sends
    assert step(error, Input.RESUME) == standing(origin)
    suspended = step(error, Input.SUSPEND)
    assert suspended is not None and not suspended.sends
    resync = origin in (S.WAITING_FOR_RESYNC, S.RESYNCHRONIZING)
    assert suspended.state is (S.RESYNC_SUSPENDED if resync else S.SUSPENDED)
    resumed = step(suspended, Input.RESUME)
    assert resumed == standing(S.WAITING_FOR_RESYNC if resync else origin)


def test_an_error_that_lost_its_tracker_resynchronizes() -> None:
    error = Standing(S.ERROR, S.REPLICATING)
    assert step(error, Input.TRACKING_LOST) == Standing(S.ERROR, S.WAITING_FOR_RESYNC)
    first = Standing(S.ERROR, S.WAITING_FOR_INITIAL)
    assert step(first, Input.TRACKING_LOST) == first


def test_every_state_of_this_side_is_reached() -> None:
    seen = {standing(S.NOT_ENABLED)}
    todo = list(seen)
    while todo:
        now = todo.pop()
        for what in Input:
            after = step(now, what)
            if after is not None and after not in seen:
                seen.add(after)
                todo.append(after)
    later = {S.SYNCED_COMPLETE, S.FAIL_OVER_WAITING_COMPLETION, S.FAILED_OVER}
    assert {now.state for now in seen} == set(S) - later


@pytest.mark.parametrize(
    ("facts", "health", "words"),
    [
        ({"state": S.NOT_ENABLED}, Health.NOT_APPLICABLE, ""),
        ({"state": S.REPLICATING}, Health.NORMAL, ""),
        ({"state": S.WAITING_FOR_INITIAL, "unacked_ms": 10**9}, Health.NORMAL, ""),
        ({"state": S.READY_FOR_INITIAL}, Health.WARNING, "not been started"),
        ({"state": S.REPLICATING, "unacked_ms": 15_000}, Health.WARNING, "for 15 s"),
        ({"state": S.REPLICATING, "unacked_ms": 26_000}, Health.CRITICAL, "for 26 s"),
        ({"state": S.REPLICATING, "problem": "cut"}, Health.WARNING, "cut"),
        ({"state": S.REPLICATING, "deferred": "a backup runs"}, Health.WARNING, "a backup runs"),
        ({"state": S.REPLICATING, "relayed_by_need": True}, Health.WARNING, "broker"),
        ({"state": S.REPLICATING, "warnings": ("snapshots",)}, Health.WARNING, "snapshots"),
        ({"state": S.ERROR, "problem": "damaged"}, Health.CRITICAL, "damaged"),
        ({"state": S.RESYNCHRONIZING}, Health.WARNING, "resynchronization is running"),
        ({"state": S.SUSPENDED}, Health.WARNING, "suspended"),
    ],
)
def test_health(facts: dict[str, object], health: Health, words: str) -> None:
    found, reasons = health_of(HealthFacts(frequency_ms=5_000, **facts))  # type: ignore[arg-type]
    assert found is health
    assert words in "; ".join(reasons)
    assert bool(words) == bool(reasons)


def test_a_reason_is_said_once() -> None:
    said = "the VM is not running"
    facts = HealthFacts(state=S.REPLICATING, frequency_ms=5_000, problem=said, deferred=said)
    assert health_of(facts) == (Health.WARNING, (said,))
