"""The small authority and the loading of TLS files: each fault named with its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmreplica.adapters import certificates, tls
from vmreplica.core.identity import Role, RoleKind
from vmreplica.core.problems import Problem, Reason

NOW = 1_800_000_000_000
DAY = 86_400_000
SANS = ["n1.Example", "127.0.0.1", "::1", "spiffe://c1/node/n1"]


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    certificates.create_ca(tmp_path / "ca", "lab", NOW)
    return tmp_path / "ca"


def files(ca: Path, name: str = "n1", sans: list[str] | None = None, days: int = 9) -> tls.TlsFiles:
    issued = certificates.issue(ca, ca / name, sans or SANS, NOW, days=days)
    return tls.TlsFiles(issued.certificate, issued.key, ca / "ca.pem")


def refused(paths: tls.TlsFiles, now_ms: int = NOW) -> Problem:
    with pytest.raises(Problem) as caught:
        tls.load(paths, now_ms)
    assert caught.value.reason is Reason.CERTIFICATE_INVALID
    assert caught.value.remedy
    return caught.value


def test_good_files(ca: Path) -> None:
    material = tls.load(files(ca), NOW)
    assert material.identity.dns_names == ("n1.example",)
    assert material.identity.roles == (Role("c1", RoleKind.NODE, "n1"),)
    assert material.expires_ms == NOW + 9 * DAY
    assert (ca / "n1.key").stat().st_mode & 0o777 == 0o600
    assert (ca / "ca.key").stat().st_mode & 0o777 == 0o600
    assert ca.stat().st_mode & 0o777 == 0o700


def test_an_authority_is_made_once(ca: Path) -> None:
    before = (ca / "ca.key").read_bytes()
    certificates.create_ca(ca, "lab", NOW)
    assert (ca / "ca.key").read_bytes() == before
    (ca / "ca.key").unlink()
    with pytest.raises(Problem, match="only one of"):
        certificates.create_ca(ca, "lab", NOW)


def test_missing_files(ca: Path) -> None:
    good = files(ca)
    for name in ("certificate", "key", "ca"):
        paths = {n: getattr(good, n) for n in ("certificate", "key", "ca")}
        paths[name] = ca / "none"
        problem = refused(tls.TlsFiles(**paths))
        assert problem.field == str(ca / "none") and "No such file" in problem.message


def test_not_pem(ca: Path) -> None:
    good = files(ca)
    for path, word in (
        (good.certificate, "not a PEM certificate"),
        (good.ca, "not a PEM certificate"),
        (good.key, "PEM private key"),
    ):
        content = path.read_bytes()
        for rubbish in (b"", b"rubbish", content[: len(content) // 2], b"\xff" * 100):
            path.write_bytes(rubbish)
            problem = refused(good)
            assert word in problem.message and problem.field == str(path)
        path.write_bytes(content)
    tls.load(good, NOW)


def test_key_of_another_certificate(ca: Path) -> None:
    one, two = files(ca), files(ca, "n2")
    problem = refused(tls.TlsFiles(one.certificate, two.key, one.ca))
    assert problem.field == str(two.key) and "does not belong" in problem.message


def test_times(ca: Path) -> None:
    good = files(ca)
    assert "expired" in refused(good, NOW + 9 * DAY).message
    assert "clock" in refused(good, NOW - DAY).remedy
    tls.load(good, NOW - 5 * 60_000)


def test_names_are_needed(ca: Path) -> None:
    for sans in (["10.0.0.1"], []):
        with pytest.raises(Problem) as caught:
            certificates.issue(ca, ca / "x", sans, NOW)
        assert caught.value.field == "--san"
    foreign = files(ca, "x", ["https://elsewhere/x"])
    assert "shows no DNS name and no role" in refused(foreign).message


@pytest.mark.parametrize(
    "san", ["a b", "-x", "x..y", "spiffe://c1/king/x", "a/b", "x" * 300, "*.*.example", ""]
)
def test_names_that_cannot_be(ca: Path, san: str) -> None:
    with pytest.raises(Problem) as caught:
        certificates.issue(ca, ca / "x", ["good.example", san], NOW)
    assert caught.value.reason is Reason.BAD_FIELD


def test_prefixed_names(ca: Path) -> None:
    sans = ["DNS:a.example", "IP:10.0.0.1", "URI:spiffe://c1/operator/blue/eve"]
    identity = certificates.identity_in(files(ca, "x", sans).certificate)
    assert identity.dns_names == ("a.example",)
    assert identity.roles == (Role("c1", RoleKind.OPERATOR, "eve", "blue"),)


def test_revocation_list(ca: Path, tmp_path: Path) -> None:
    good = files(ca)
    crl = ca / "crl.pem"
    listed = tls.TlsFiles(good.certificate, good.key, good.ca, crl)
    assert refused(listed).field == str(crl)
    certificates.revoke(ca, crl, [7, 9], NOW)
    assert tls.load(listed, NOW).revoked_serials == {7, 9}
    crl.write_bytes(b"rubbish")
    assert "revocation list" in refused(listed).message
    certificates.create_ca(tmp_path / "other", "other", NOW)
    certificates.revoke(tmp_path / "other", crl, [7], NOW)
    assert "signed this revocation list" in refused(listed).message


def rows(checks: list[certificates.Check]) -> dict[str, bool]:
    return {check.name: check.ok for check in checks}


def test_verify(ca: Path, tmp_path: Path) -> None:
    good = files(ca)
    checks = certificates.verify(good.certificate, good.ca, NOW, server_name="N1.example")
    assert all(rows(checks).values()) and len(checks) == 6
    other = certificates.create_ca(tmp_path / "other", "other", NOW)
    found = rows(
        certificates.verify(good.certificate, other, NOW + 10 * DAY, server_name="n2.example")
    )
    assert found == {
        "validity": False,
        "names": True,
        "server name": False,
        "key usage": True,
        "chain": False,
        "authority's validity": True,
    }
    for check in certificates.verify(good.certificate, other, NOW):
        assert check.ok or check.remedy
    wild = files(ca, "w", ["*.example"]).certificate
    assert rows(certificates.verify(wild, None, NOW, server_name="n7.example"))["server name"]
    deeper = certificates.verify(wild, None, NOW, server_name="a.n7.example")
    assert not rows(deeper)["server name"]
    with pytest.raises(Problem):
        certificates.verify(ca / "none", None, NOW)


def test_an_unlooked_at_chain_is_said(ca: Path) -> None:
    checks = certificates.verify(files(ca).certificate, None, NOW)
    (chain,) = [check for check in checks if check.name == "chain"]
    assert "Not looked at" in chain.detail and "--ca" in chain.remedy


def test_directories_that_cannot_be_made(ca: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Problem, match="cannot be made"):
        certificates.create_ca(tmp_path / "file" / "ca", "x", NOW)
    with pytest.raises(Problem, match="cannot be made"):
        certificates.issue(ca, tmp_path / "file" / "n1", SANS, NOW)


def test_a_role_that_cannot_be_is_told_the_kinds(ca: Path) -> None:
    with pytest.raises(Problem) as caught:
        certificates.issue(ca, ca / "x", ["spiffe://c1/admin/anna"], NOW)
    assert "administrator" in caught.value.remedy and "manual" not in caught.value.remedy
