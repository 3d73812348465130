"""The identity that a broker vouches for when it relays a call (``vmreplica-relay-identity-bin``).

Form: u16 length of the text, the text (JSON), the signature of that text with the key of the
broker's certificate. A node takes it only on a connection whose peer certificate bears the role
broker of the same cluster, and checks the signature with that very certificate's public key.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from vmreplica.core.identity import Identity
from vmreplica.core.problems import Problem, Reason
from vmreplica.wire.role_uri import parse_role, role_uri

LIFETIME_MS = 60_000
_SKEW_MS = 5 * 60_000
"""How far a broker's clock may be ahead of the node's before its word counts as forged."""
MAX_BYTES = 16_384


@dataclass(frozen=True, slots=True)
class RelayedIdentity:
    """Who asked the broker, and for which replica ("" where the call names none)."""

    identity: Identity
    replica_id: str
    expiry_ms: int


def sign(identity: Identity, replica_id: str, now_ms: int, private_key: object) -> bytes:
    """The metadata value for one call. :raises TypeError: a key that cannot sign."""
    text = json.dumps(
        {
            "dns_names": identity.dns_names,
            "roles": [role_uri(role) for role in identity.roles],
            "fingerprint": identity.fingerprint,
            "local_root": identity.local_root,
            "replica_id": replica_id,
            "expiry_ms": now_ms + LIFETIME_MS,
        },
        separators=(",", ":"),
    ).encode()
    return struct.pack(">H", len(text)) + text + _sign(private_key, text)


def verify(value: bytes, now_ms: int, public_key: object) -> RelayedIdentity:
    """The identity inside. :raises Problem: NOT_AUTHORIZED, whatever is wrong with it."""
    if len(value) > MAX_BYTES or len(value) < 2:
        raise _refused("its length is wrong")
    (length,) = struct.unpack_from(">H", value)
    text, signature = value[2 : 2 + length], value[2 + length :]
    try:
        _verify(public_key, signature, text)
    except (InvalidSignature, TypeError) as error:
        raise _refused("its signature is not that of the broker's certificate") from error
    try:
        data = json.loads(text)
        expiry_ms = int(data["expiry_ms"])
        identity = Identity(
            dns_names=tuple(str(name) for name in data["dns_names"]),
            roles=tuple(role for role in map(parse_role, data["roles"]) if role is not None),
            fingerprint=str(data["fingerprint"]),
            local_root=data["local_root"] is True,
        )
        replica_id = str(data["replica_id"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused("it cannot be read") from error
    if not now_ms < expiry_ms + _SKEW_MS or expiry_ms > now_ms + LIFETIME_MS + _SKEW_MS:
        raise _refused("its time is over, or the clocks of broker and node differ")
    return RelayedIdentity(identity, replica_id, expiry_ms)


def _refused(why: str) -> Problem:
    return Problem(
        Reason.NOT_AUTHORIZED,
        f"The identity passed on by the broker is refused: {why}.",
        field="vmreplica-relay-identity-bin",
        remedy="Check the clocks and certificates of broker and node.",
    )


def _sign(key: object, text: bytes) -> bytes:
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(text, ec.ECDSA(hashes.SHA256()))
        case rsa.RSAPrivateKey():
            return key.sign(text, padding.PKCS1v15(), hashes.SHA256())
        case ed25519.Ed25519PrivateKey():
            return key.sign(text)
        case _:
            raise TypeError(f"a key of type {type(key).__name__} cannot sign")


def _verify(key: object, signature: bytes, text: bytes) -> None:
    match key:
        case ec.EllipticCurvePublicKey():
            key.verify(signature, text, ec.ECDSA(hashes.SHA256()))
        case rsa.RSAPublicKey():
            key.verify(signature, text, padding.PKCS1v15(), hashes.SHA256())
        case ed25519.Ed25519PublicKey():
            key.verify(signature, text)
        case _:
            raise TypeError(f"a key of type {type(key).__name__} cannot verify")
