"""Leadership: the lowest create revision, and a deadline that is exclusive."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmreplica.core.leadership import Candidate, leader_of, may_act, standing

A, B, C = (Candidate(key, revision) for key, revision in (("a", 3), ("b", 5), ("c", 9)))


def test_the_first_leads_the_others_wait_for_the_one_before() -> None:
    assert standing(A, [C, A, B]).leads
    place = standing(C, [A, C, B])
    assert (place.leads, place.before, place.leader) == (False, "b", "a")
    assert standing(B, [B, C]).leads


def test_a_key_made_anew_is_not_mine() -> None:
    other = Candidate("a", 12)
    assert not standing(A, [other, B]).present
    assert standing(A, [other, B]).leader == "b"
    assert not standing(None, [B]).present
    assert standing(A, []).leader == ""


@given(
    st.lists(
        st.builds(Candidate, st.text("abc"), st.integers(1, 9)),
        unique_by=lambda c: c.create_revision,
    )
)
def test_exactly_one_leads(candidates: list[Candidate]) -> None:
    leading = [c for c in candidates if standing(c, candidates).leads]
    assert leading == ([leader_of(candidates)] if candidates else [])


def test_at_the_deadline_it_is_over() -> None:
    assert may_act(9, 10)
    assert not may_act(10, 10)
    assert not may_act(5, 0)
