"""RFC 9530 digests of a request body, for prices that depend on it (CHAL-11, AMB-03)."""

import hmac
from binascii import b2a_base64
from hashlib import sha256

__all__ = ["format_body_digest", "is_body_digest"]


def format_body_digest(body: bytes) -> str:
    """Return `sha-256=:<base64>:`, the form of RFC 9530."""
    return f"sha-256=:{_hash(body)}:"


def is_body_digest(digest: str, body: bytes) -> bool:
    """Return whether `digest` is the body's, in RFC 9530's form or without the colons."""
    value = _hash(body)
    given = digest.encode("utf-8", "replace")
    return any(
        hmac.compare_digest(form.encode("ascii"), given)
        for form in (f"sha-256=:{value}:", f"sha-256={value}")
    )


def _hash(body: bytes) -> str:
    return b2a_base64(sha256(body).digest(), newline=False).decode("ascii")
