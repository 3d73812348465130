"""Names, filters, page tokens and tickets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmreplica.core.filters import MAX_PAGE, key_of, page, page_size, parse_filter, token_after
from vmreplica.core.location_ticket import Ticket, read_ticket, write_ticket
from vmreplica.core.names import (
    Named,
    check_disks,
    check_folder,
    check_vm,
    domain_name,
    folder_name,
    pick,
)
from vmreplica.core.problems import Problem, Reason

UUID = "11111111-2222-3333-4444-555555555555"
WEB, TWIN = Named("r1", "u1", "web"), Named("r2", "u2", "web")


def test_pick_prefers_ids_and_refuses_two() -> None:
    assert pick("r1", [WEB, TWIN]) == WEB
    assert pick("u2", [WEB, TWIN]) == TWIN
    assert pick("no", [WEB]) is None
    assert pick("r1", [Named("r9", "u9", "r1"), WEB]) == WEB
    assert pick("u1", [Named("r9", "u9", "u1"), WEB]) == WEB
    with pytest.raises(Problem) as refused:
        pick("web", [TWIN, WEB])
    assert refused.value.reason is Reason.AMBIGUOUS_NAME
    assert "r1, r2" in refused.value.message


def test_domain_and_folder_names() -> None:
    assert domain_name("web", "abcdef0123", []) == "web"
    assert domain_name("web", "abcdef0123", ["web"]) == "web (abcdef01)"
    assert domain_name("web", "abcdef0123", ["web - Test"]) == "web (abcdef01)"
    assert folder_name("", "id", "inc") == "id.inc"
    assert folder_name("mine", "id", "inc") == "mine.inc"


@pytest.mark.parametrize("bad", [".x", "a/b", "..", "a\0", "x" * 101, "ü", "-rf"])
def test_bad_folders(bad: str) -> None:
    with pytest.raises(Problem):
        check_folder(bad)
    check_folder("Web 1_a.b-c")
    check_folder("")


@pytest.mark.parametrize(
    ("uuid", "name"),
    [("x", "web"), (UUID.upper().replace("1", "A"), "web"), (UUID, ""), (UUID, "a/b"),
     (UUID, "x" * 201), (UUID, "a\nb")],
)  # fmt: skip
def test_bad_vms(uuid: str, name: str) -> None:
    with pytest.raises(Problem):
        check_vm(uuid, name)
    check_vm(UUID, "Büro 1 (neu)")


@pytest.mark.parametrize(
    "disks",
    [
        [],
        [("vda", 512, True)],
        [("vda", 0, False)],
        [("vda", 513, False)],
        [("vda", 512, False), ("vda", 512, False)],
        [("../x", 512, False)],
        [("VDA", 512, False)],
    ],
)
def test_bad_disks(disks: list[tuple[str, int, bool]]) -> None:
    with pytest.raises(Problem) as refused:
        check_disks(disks)
    assert refused.value.field == "disks"
    check_disks([("vda", 512, False), ("hdc", 1024, True)])


def test_filters() -> None:
    terms = parse_filter("state=Error, state=Suspended,vm_name=web")
    assert terms.accepts({"state": "Error", "vm_name": "web"})
    assert not terms.accepts({"state": "Error", "vm_name": "db"})
    assert not terms.accepts({"vm_name": "web"})
    assert parse_filter("").accepts({})
    assert terms.values_of("state") == {"Error", "Suspended"}
    assert terms.values_of("owner") == frozenset()
    for bad in ("nonsense", "no_key=1", "state"):
        with pytest.raises(Problem) as refused:
            parse_filter(bad)
        assert refused.value.field == "filter"


@given(st.sets(st.text(max_size=5), max_size=40), st.integers(1, 7))
def test_pages_give_everything_once_in_order(items: set[str], size: int) -> None:
    seen: list[str] = []
    token = ""
    while True:
        got, token = page(items, str, size, token)
        assert len(got) <= size
        seen.extend(got)
        if not token:
            break
    assert seen == sorted(i for i in items if i)


@pytest.mark.parametrize("bad", ["x", "!!!!", "äöü", "YWJj"])
def test_foreign_tokens(bad: str) -> None:
    with pytest.raises(Problem) as refused:
        key_of(bad)
    assert refused.value.field == "page_token"
    assert key_of(token_after("k/1")) == "k/1"


def test_page_sizes() -> None:
    assert page_size(0) == 100
    assert page_size(MAX_PAGE) == MAX_PAGE
    for bad in (-1, MAX_PAGE + 1):
        with pytest.raises(Problem):
            page_size(bad)


TICKET = Ticket(replica_id="r", node="n", incarnation="i", epoch=3, expires_ms=1_000)


def test_tickets_live_until_their_time_and_never_raise() -> None:
    text = write_ticket(TICKET)
    assert read_ticket(text, 999) == TICKET
    assert read_ticket(text, 1_000) is None
    for bad in ("", "x", text[:-4], "bnVsbA==", "e30=", "ü"):
        assert read_ticket(bad, 0) is None
