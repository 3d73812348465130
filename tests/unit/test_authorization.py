"""The one authorization function: every grant and every refusal, row by row."""

from __future__ import annotations

import pytest

from vmreplica.core.authorization import (
    Grant,
    access_point,
    authorize,
    check_pattern,
    matches,
    unknown_replica,
)
from vmreplica.core.problems import Problem, Reason
from vmreplica.core.records import AuthorizationRecord, DiskRecord, ReplicaRecord
from vmreplica.core.settings import Settings

CLOSED = Settings()
OPEN = Settings(any_server=True, default_storage_location="/any")


def entry(primary: str, group: str = "g", location: str = "/g") -> AuthorizationRecord:
    return AuthorizationRecord(primary=primary, storage_location=location, trust_group=group)


def replica(group: str) -> ReplicaRecord:
    return ReplicaRecord(
        replica_id="r-1",
        vm_uuid="u",
        vm_name="vm",
        domain_name="vm",
        trust_group=group,
        primary_access_point="cap.a.org:7443",
        storage_location="/there",
        folder_path="/there/r-1.i",
        disks=(DiskRecord(target="vda", size_bytes=512),),
    )


A = ("p1.a.org", "cap.a.org")
CAP = "cap.a.org:7443"
TWO = (entry("p1.a.org", "g1"), entry("cap.a.org", "g2"))


@pytest.mark.parametrize(
    ("names", "settings", "entries", "existing", "point", "expected"),
    [
        # a new replica
        (A, CLOSED, [entry("cap.a.org")], None, CAP, Grant("g", "/g")),
        (A, CLOSED, [entry("CAP.A.ORG")], None, "Cap.A.org:7443", Grant("g", "/g")),
        (A, CLOSED, [entry("*.a.org")], None, CAP, Grant("g", "/g")),
        (A, CLOSED, [entry("p1.a.org")], None, CAP, Grant("g", "/g")),
        (
            A,
            CLOSED,
            [entry("*.a.org", location="/wide"), entry("cap.a.org", location="/exact")],
            None,
            CAP,
            Grant("g", "/exact"),
        ),
        (
            A,
            CLOSED,
            [entry("p1.a.org", location="/host"), entry("*.a.org", location="/cap")],
            None,
            CAP,
            Grant("g", "/cap"),
        ),
        (A, OPEN, [], None, CAP, Grant("DEFAULT/cap.a.org", "/any")),
        (A, OPEN, [], None, "p1.a.org:7444", Grant("DEFAULT/p1.a.org", "/any")),
        (A, OPEN, [entry("cap.a.org")], None, CAP, Grant("g", "/g")),
        # refusals of a new replica
        ((), OPEN, [], None, CAP, Reason.NO_IDENTITY),
        (A, OPEN, [], None, "", Reason.BAD_FIELD),
        (A, OPEN, [], None, "cap.a.org", Reason.BAD_FIELD),
        (A, OPEN, [], None, "cap.a.org:0", Reason.BAD_FIELD),
        (A, OPEN, [], None, "cap.b.org:7443", Reason.NOT_AUTHORIZED),
        (A, CLOSED, [], None, CAP, Reason.NOT_AUTHORIZED),
        (A, CLOSED, [entry("cap.b.org")], None, CAP, Reason.NOT_AUTHORIZED),
        (A, CLOSED, [entry("*.org")], None, CAP, Reason.NOT_AUTHORIZED),
        (
            ("deep.x.a.org",),
            CLOSED,
            [entry("*.a.org")],
            None,
            "deep.x.a.org:1",
            Reason.NOT_AUTHORIZED,
        ),
        (("a.org",), CLOSED, [entry("*.a.org")], None, "a.org:1", Reason.NOT_AUTHORIZED),
        (("*.a.org",), CLOSED, [entry("*.a.org", "g")], None, "*.a.org:1", Reason.BAD_FIELD),
        (A, CLOSED, TWO, None, CAP, Reason.NOT_AUTHORIZED),
        (A, OPEN, TWO, None, CAP, Reason.NOT_AUTHORIZED),
        (A, Settings(any_server=True), [], None, CAP, Reason.NOT_AUTHORIZED),
        # an existing replica
        (A, CLOSED, [entry("cap.a.org")], "g", "", Grant("g", "/there")),
        (A, CLOSED, [entry("*.a.org")], "g", CAP, Grant("g", "/there")),
        (A, OPEN, [], "DEFAULT/cap.a.org", "", Grant("DEFAULT/cap.a.org", "/there")),
        (
            A,
            OPEN,
            [entry("p1.a.org")],
            "DEFAULT/cap.a.org",
            "",
            Grant("DEFAULT/cap.a.org", "/there"),
        ),
        # refusals of an existing replica
        ((), OPEN, [], "g", "", Reason.NO_IDENTITY),
        (A, CLOSED, [], "g", "", Reason.UNKNOWN_REPLICA),
        (A, CLOSED, [entry("cap.a.org", "other")], "g", "", Reason.UNKNOWN_REPLICA),
        (A, OPEN, [], "DEFAULT/cap.b.org", "", Reason.UNKNOWN_REPLICA),
        (A, CLOSED, [], "DEFAULT/cap.a.org", "", Reason.UNKNOWN_REPLICA),
        (A, CLOSED, TWO, "g1", "", Reason.NOT_AUTHORIZED),
        (A, CLOSED, TWO, "g3", "", Reason.UNKNOWN_REPLICA),
        (A, OPEN, [], "DEFAULT/cap.a.org", "cap.b.org:1", Reason.NOT_AUTHORIZED),
    ],
)
def test_table(
    names: tuple[str, ...],
    settings: Settings,
    entries: list[AuthorizationRecord],
    existing: str | None,
    point: str,
    expected: Grant | Reason,
) -> None:
    record = replica(existing) if existing is not None else None
    decision = authorize(names, settings, entries, record, point)
    if isinstance(expected, Reason):
        assert isinstance(decision, Problem), decision
        assert decision.reason is expected
        assert decision.message.endswith(".")
        assert decision.remedy
    else:
        assert decision == expected


def test_the_order_of_names_and_entries_does_not_matter() -> None:
    entries = [entry("p1.a.org", location="/1"), entry("*.a.org", location="/2")]
    answers = {
        str(authorize(names, CLOSED, order, None, CAP))
        for names in (A, A[::-1])
        for order in (entries, entries[::-1])
    }
    assert len(answers) == 1


def test_a_foreign_replica_looks_like_a_missing_one() -> None:
    refused = authorize(A, OPEN, [], replica("g"), "")
    missing = unknown_replica("r-1")
    assert isinstance(refused, Problem)
    assert (refused.reason, refused.message, refused.value, refused.remedy) == (
        missing.reason,
        missing.message,
        missing.value,
        missing.remedy,
    )


@pytest.mark.parametrize("good", ["p1.a.org", "*.a.org", "*.x.a.org", "P1.A.org", "a.b"])
def test_good_patterns(good: str) -> None:
    check_pattern(good)


@pytest.mark.parametrize(
    "bad",
    ["", "*", "*.org", "advertisement*", "*.advertisement.*", "p1", "a.*.org", "*a.org", "a..org",
     "*.*.a.org", "a.org.", " a.org", "-a.org", "x" * 254 + ".org"],
)  # fmt: skip
def test_bad_patterns(bad: str) -> None:
    with pytest.raises(Problem) as refused:
        check_pattern(bad)
    assert refused.value.reason is Reason.BAD_FIELD
    assert refused.value.value == bad


def test_one_label_only_is_covered() -> None:
    assert matches("*.a.org", "x.a.org")
    assert not matches("*.a.org", "x.y.a.org")
    assert not matches("*.a.org", "*.a.org")
    assert not matches("*.a.org", ".a.org")
    assert not matches("*.a.org", "xa.org")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("a.org:1", ("a.org", 1)),
        ("[2001:DB8::1]:7443", ("2001:db8::1", 7443)),
        ("a.org:65536", None),
        ("a.org:", None),
        (":7443", None),
        ("2001:db8::1:7443", None),
        ("a b:1", None),
        ("https://a.org:1", None),
    ],
)
def test_access_points(text: str, parsed: tuple[str, int] | None) -> None:
    assert access_point(text) == parsed
