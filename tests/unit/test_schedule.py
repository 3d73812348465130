"""When cycles are due, and how long failures wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.core.problems import Problem
from vmreplica.core.schedule import Due, check_frequency, next_due, retry_delay_ms


@pytest.mark.parametrize(
    ("begun", "now", "due"),
    [
        (0, 0, Due(5_000, 0)),
        (0, 4_999, Due(5_000, 0)),
        (0, 5_000, Due(5_000, 0)),
        (0, 5_001, Due(5_001, 1)),
        (0, 9_999, Due(9_999, 1)),
        (0, 17_000, Due(17_000, 3)),
        (100, 50, Due(5_100, 0)),
    ],
)
def test_next_due(begun: int, now: int, due: Due) -> None:
    assert next_due(begun, 5_000, now) == due


@given(st.integers(0, 10**9), st.integers(5_000, 10**7), st.integers(0, 10**9))
def test_never_in_the_past_and_never_two_at_a_time(begun: int, frequency: int, later: int) -> None:
    now = begun + later
    due = next_due(begun, frequency, now)
    assert due.at_ms >= now or due.at_ms == begun + frequency >= now
    assert due.at_ms >= begun + min(frequency, later)
    assert due.missed == (later // frequency if later > frequency else 0)


@pytest.mark.parametrize("frequency", [0, -1, 4_999, 24 * 3_600_000 + 1])
def test_bad_frequencies(frequency: int) -> None:
    with pytest.raises(Problem) as caught:
        check_frequency(frequency)
    assert (caught.value.field, caught.value.value) == ("frequency_ms", str(frequency))


def test_good_frequencies() -> None:
    for frequency in (5_000, 30_000, 300_000, 900_000, 24 * 3_600_000):
        check_frequency(frequency)


@given(st.integers(1, 1000), st.integers(0, 59_999), st.integers(5_000, 10**6), st.floats(0, 0.999))
def test_an_owner_in_doubt_is_asked_every_half_second(
    failures: int, doubt: int, frequency: int, jitter: float
) -> None:
    assert 250 <= retry_delay_ms(failures, doubt, True, frequency, jitter) <= 500


@given(st.integers(1, 1000), st.integers(5_000, 10**6), st.floats(0, 0.999), st.booleans())
def test_an_outage_backs_off_up_to_the_frequency(
    failures: int, frequency: int, jitter: float, in_doubt: bool
) -> None:
    delay = retry_delay_ms(failures, 60_000, in_doubt, frequency, jitter)
    assert 500 <= delay <= frequency
    if failures > 12:
        assert delay >= frequency // 2


def test_backing_off_grows() -> None:
    delays = [retry_delay_ms(n, 0, False, 300_000, 0.5) for n in range(1, 12)]
    assert delays == sorted(delays)
    assert delays[0] < 1_000 < delays[5]
    assert delays[-1] == delays[-2]
