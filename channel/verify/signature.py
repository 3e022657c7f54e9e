"""Recovers the signer of a digest; accepts only the canonical form, like the escrow (ENC-06).

This module recovers the key instead of verifying with a cached one. Verification ignores `v`, so
it would accept a signature that the contract, which recovers, refuses: the server would deliver
and never be paid. Recovery costs a quarter more and cannot disagree with the chain (figures:
docs/decisions/0003-wire-choices.md). The cache holds the step from the recovered point to its
address.
"""

from functools import lru_cache

from coincurve import PrivateKey
from coincurve._libsecp256k1 import ffi, lib  # type: ignore[import-not-found]
from coincurve.context import GLOBAL_CONTEXT

from channel.errors import InvalidSignatureError
from channel.limits import SIGNATURE_BYTES
from channel.types import Address
from channel.verify.typed_data import keccak

__all__ = ["address_of", "recover", "require_canonical", "sign"]

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_HALF_ORDER_BYTES = (_ORDER // 2).to_bytes(32, "big")
_ORDER_BYTES = _ORDER.to_bytes(32, "big")
_ZERO = bytes(32)
_V_EVEN = 27
_V_ODD = 28
_DIGEST_BYTES = 32
_KEY_BYTES = 32
_ENTROPY_BYTES = 32
_UNCOMPRESSED = 2  # SECP256K1_EC_UNCOMPRESSED
_POINT_BYTES = 65

_Signature = ffi.typeof("secp256k1_ecdsa_recoverable_signature *")
_PublicKey = ffi.typeof("secp256k1_pubkey *")


def require_canonical(signature: bytes) -> None:
    """Check the form: 65 bytes, v of 27 or 28, 0 < r < n, 0 < s <= n/2.

    Raises:
        InvalidSignatureError: The escrow would not accept the form (F-16).
    """
    if len(signature) != SIGNATURE_BYTES:
        raise InvalidSignatureError(f"Expected a signature of 65 bytes, found {len(signature)}.")
    if signature[64] not in (_V_EVEN, _V_ODD):
        raise InvalidSignatureError(
            f"Expected a signature with v of 27 or 28, found {signature[64]}."
        )
    if not _ZERO < signature[:32] < _ORDER_BYTES:  # big-endian bytes sort like numbers
        raise InvalidSignatureError("A signature's r is out of range.")
    if not _ZERO < signature[32:64] <= _HALF_ORDER_BYTES:
        raise InvalidSignatureError("A signature's s is not in the lower half of its range.")


def recover(digest: bytes, signature: bytes) -> Address:
    """Return the signer; another digest or signature yields another address.

    Raises:
        InvalidSignatureError: Not canonical, or no key could have made it (F-17).
    """
    require_canonical(signature)
    _require_digest(digest)
    parsed = ffi.new(_Signature)
    point = ffi.new(_PublicKey)
    context = GLOBAL_CONTEXT.ctx
    if not (
        lib.secp256k1_ecdsa_recoverable_signature_parse_compact(
            context, parsed, signature, signature[64] - _V_EVEN
        )
        and lib.secp256k1_ecdsa_recover(context, point, parsed, digest)
    ):
        raise InvalidSignatureError("No key could have made this signature.")
    return _address_of_point(ffi.buffer(point)[:])


def _require_digest(digest: bytes) -> None:
    if len(digest) != _DIGEST_BYTES:  # the C code reads 32 bytes without a check
        raise ValueError("a digest has 32 bytes")


@lru_cache(maxsize=16_384)
def _address_of_point(point: bytes) -> Address:
    """Return the address of a point as libsecp256k1 holds it; cached, since signers repeat."""
    parsed = ffi.new(_PublicKey)
    ffi.memmove(parsed, point, len(point))
    written = ffi.new("unsigned char[65]")
    size = ffi.new("size_t *", _POINT_BYTES)
    lib.secp256k1_ec_pubkey_serialize(GLOBAL_CONTEXT.ctx, written, size, parsed, _UNCOMPRESSED)
    return Address(keccak(ffi.buffer(written)[1:])[12:])


def sign(private_key: bytes, digest: bytes, *, entropy: bytes | None = None) -> bytes:
    """Return a canonical 65-byte signature: low s, v of 27 or 28 (ENC-06).

    It depends on key and digest alone (RFC 6979). With 32 bytes of `entropy` mixed in, each
    entropy yields another, equally valid signature.

    Raises:
        ValueError: The key is out of range, or key, digest or entropy is not 32 bytes long.
    """
    _require_digest(digest)
    if len(private_key) != _KEY_BYTES:  # the C code reads 32 bytes without a check
        raise ValueError("a private key has 32 bytes")
    if entropy is not None and len(entropy) != _ENTROPY_BYTES:
        raise ValueError("entropy has 32 bytes")
    context = GLOBAL_CONTEXT.ctx
    made = ffi.new(_Signature)
    extra = ffi.NULL if entropy is None else ffi.from_buffer(entropy)
    if not lib.secp256k1_ecdsa_sign_recoverable(
        context, made, digest, private_key, ffi.NULL, extra
    ):
        raise ValueError("a private key is between 0 and the order of the curve")
    compact = ffi.new("unsigned char[64]")
    parity = ffi.new("int *")
    lib.secp256k1_ecdsa_recoverable_signature_serialize_compact(context, compact, parity, made)
    return bytes(ffi.buffer(compact)) + bytes((_V_EVEN + parity[0],))


def address_of(private_key: bytes) -> Address:
    """Return the address of a private key, or raise `ValueError` if it is out of range."""
    point = PrivateKey(private_key).public_key.format(compressed=False)
    return Address(keccak(point[1:])[12:])
