"""EIP-712 digests, channel ids, nonces and witnesses: every hash the protocol defines.

All structs here have only static words, so `abi.encode` is a sequence of 32-byte words. Formulas
and constants: REQUIREMENTS.md section 0. Tests check each against golden vectors that the
Solidity tests read too.
"""

from collections.abc import Iterable
from functools import lru_cache

import msgspec
from sha3 import keccak_256  # type: ignore[import-untyped]

from channel.chain import EscrowInterface
from channel.types import Address, ChannelId, ChannelKey, ChannelTerms

__all__ = [
    "CANONICAL_PERMIT2",
    "OPEN_WITNESS_TYPE_STRING",
    "TOP_UP_WITNESS_TYPE_STRING",
    "charge_nonce",
    "close_authorization_digest",
    "close_batch_authorization_digest",
    "derive_channel_id",
    "domain_separator",
    "keccak",
    "open_nonce",
    "open_permit_digest",
    "open_witness",
    "permit2_domain_separator",
    "receive_authorization_digest",
    "settle_authorization_digest",
    "settle_batch_authorization_digest",
    "token_domain_separator",
    "top_up_nonce",
    "top_up_permit_digest",
    "top_up_witness",
    "transfer_authorization_digest",
    "voucher_digest",
]

CANONICAL_PERMIT2 = Address(bytes.fromhex("000000000022d473030f116ddee9f6b43ac78ba3"))

_OWN_DOMAIN = EscrowInterface().domain
_PERMITTED = "TokenPermissions(address token,uint256 amount)"
_OPEN_WITNESS = "ChannelOpenWitness(address payee,bytes32 salt,address authorizedSigner)"
_TOP_UP_WITNESS = "ChannelTopUpWitness(bytes32 channelId)"
OPEN_WITNESS_TYPE_STRING = f"ChannelOpenWitness witness){_OPEN_WITNESS}{_PERMITTED}"
TOP_UP_WITNESS_TYPE_STRING = f"ChannelTopUpWitness witness){_TOP_UP_WITNESS}{_PERMITTED}"
_PERMIT_STUB = (
    "PermitWitnessTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,"
    "uint256 deadline,"
)


def keccak(data: bytes) -> bytes:
    """Return the keccak-256 hash that Ethereum uses."""
    return bytes(keccak_256(data).digest())


def _type_hash(type_string: str) -> bytes:
    return keccak(type_string.encode("ascii"))


_DOMAIN_TYPE = _type_hash(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
_PERMIT2_DOMAIN_TYPE = _type_hash(
    "EIP712Domain(string name,uint256 chainId,address verifyingContract)"
)
_VOUCHER_TYPE = _type_hash("Voucher(bytes32 channelId,uint128 cumulativeAmount)")
_SETTLE_TYPE = _type_hash(
    "SettleAuthorization(bytes32 channelId,uint128 cumulativeAmount,uint256 nonce,uint256 deadline)"
)
_CLOSE_TYPE = _type_hash(
    "CloseAuthorization(bytes32 channelId,uint128 cumulativeAmount,uint256 nonce,uint256 deadline)"
)
_ENTRY = "BatchEntry(bytes32 channelId,uint128 cumulativeAmount,bytes signature)"
_ENTRY_TYPE = _type_hash(_ENTRY)
_SETTLE_BATCH_TYPE = _type_hash(
    "SettleBatchAuthorization(address payee,BatchEntry[] entries,uint256 nonce,uint256 deadline)"
    + _ENTRY
)
_CLOSE_BATCH_TYPE = _type_hash(
    "CloseBatchAuthorization(address payee,BatchEntry[] entries,uint256 nonce,uint256 deadline)"
    + _ENTRY
)
_AUTHORIZATION = (
    "WithAuthorization(address from,address to,uint256 value,uint256 validAfter,"
    "uint256 validBefore,bytes32 nonce)"
)
_RECEIVE_TYPE = _type_hash(f"Receive{_AUTHORIZATION}")
_TRANSFER_TYPE = _type_hash(f"Transfer{_AUTHORIZATION}")
_PERMITTED_TYPE = _type_hash(_PERMITTED)
_OPEN_WITNESS_TYPE = _type_hash(_OPEN_WITNESS)
_TOP_UP_WITNESS_TYPE = _type_hash(_TOP_UP_WITNESS)
_OPEN_PERMIT_TYPE = _type_hash(_PERMIT_STUB + OPEN_WITNESS_TYPE_STRING)
_TOP_UP_PERMIT_TYPE = _type_hash(_PERMIT_STUB + TOP_UP_WITNESS_TYPE_STRING)


def _word(value: int | bytes) -> bytes:
    """Return one ABI word: an integer or an address padded left, 32 bytes as they are."""
    return value.to_bytes(32, "big") if isinstance(value, int) else value.rjust(32, b"\0")


def _hash_words(*values: int | bytes) -> bytes:
    return keccak(b"".join(map(_word, values)))


def _digest(separator: bytes, *values: int | bytes) -> bytes:
    return keccak(b"\x19\x01" + separator + _hash_words(*values))


@lru_cache(maxsize=1024)
def domain_separator(chain_id: int, escrow: Address, domain: str = _OWN_DOMAIN) -> bytes:
    """Return the escrow's EIP-712 domain, version 1; `domain` is the name that its method gives."""
    return token_domain_separator(domain, "1", chain_id, escrow)


def token_domain_separator(name: str, version: str, chain_id: int, token: Address) -> bytes:
    """Return the domain of a token, whose name and version differ from chain to chain (F-21)."""
    return _hash_words(
        _DOMAIN_TYPE, keccak(name.encode()), keccak(version.encode()), chain_id, token
    )


@lru_cache(maxsize=64)
def permit2_domain_separator(chain_id: int, permit2: Address = CANONICAL_PERMIT2) -> bytes:
    """Return Permit2's domain, which has no version."""
    return _hash_words(_PERMIT2_DOMAIN_TYPE, keccak(b"Permit2"), chain_id, permit2)


@lru_cache(maxsize=1024)
def _envelope(chain_id: int, escrow: Address, domain: str) -> bytes:
    return b"\x19\x01" + domain_separator(chain_id, escrow, domain)


def voucher_digest(key: ChannelKey, cumulative_amount: int, domain: str) -> bytes:
    """Return the digest that a voucher's signer signs under the escrow's EIP-712 domain.

    `domain` is the name of the domain, which differs between methods, so that a voucher for the
    escrow of one is none for the escrow of another. The domain is cached: two hashes remain.
    """
    struct = keccak_256(
        _VOUCHER_TYPE + key.channel_id + cumulative_amount.to_bytes(32, "big")
    ).digest()
    return bytes(keccak_256(_envelope(key.chain_id, key.escrow, domain) + struct).digest())


def settle_authorization_digest(
    key: ChannelKey, cumulative_amount: int, *, nonce: int, deadline: int
) -> bytes:
    """Return the digest that a payee signs so that any sender may settle for it (RELAY-01)."""
    separator = domain_separator(key.chain_id, key.escrow)
    return _digest(separator, _SETTLE_TYPE, key.channel_id, cumulative_amount, nonce, deadline)


def close_authorization_digest(
    key: ChannelKey, cumulative_amount: int, *, nonce: int, deadline: int
) -> bytes:
    """Return the digest that a payee signs so that any sender may close for it (RELAY-05)."""
    separator = domain_separator(key.chain_id, key.escrow)
    return _digest(separator, _CLOSE_TYPE, key.channel_id, cumulative_amount, nonce, deadline)


def settle_batch_authorization_digest(
    domain: tuple[int, Address],
    payee: Address,
    entries: Iterable[tuple[bytes, int, bytes]],
    *,
    nonce: int,
    deadline: int,
) -> bytes:
    """Return the digest that lets any sender settle many channels for the payee (RELAY-07).

    `domain` is chain id and escrow; an entry is channel, cumulative amount, voucher signature.
    """
    entries_hash = _hash_entries(entries)
    return _digest(
        domain_separator(*domain), _SETTLE_BATCH_TYPE, payee, entries_hash, nonce, deadline
    )


def close_batch_authorization_digest(
    domain: tuple[int, Address],
    payee: Address,
    entries: Iterable[tuple[bytes, int, bytes]],
    *,
    nonce: int,
    deadline: int,
) -> bytes:
    """Return the digest that lets any sender close many channels for the payee (RELAY-07)."""
    entries_hash = _hash_entries(entries)
    return _digest(
        domain_separator(*domain), _CLOSE_BATCH_TYPE, payee, entries_hash, nonce, deadline
    )


def _hash_entries(entries: Iterable[tuple[bytes, int, bytes]]) -> bytes:
    return keccak(
        b"".join(
            _hash_words(_ENTRY_TYPE, channel_id, amount, keccak(signature))
            for channel_id, amount, signature in entries
        )
    )


def derive_channel_id(
    terms: ChannelTerms, *, salt: bytes, escrow: Address, chain_id: int
) -> ChannelId:
    """Return the id the escrow gives a channel; `authorized_signer` enters raw (OPEN-01)."""
    return ChannelId(
        _hash_words(
            terms.payer,
            terms.payee,
            terms.token,
            salt,
            terms.authorized_signer,
            escrow,
            chain_id,
        )
    )


def open_nonce(terms: ChannelTerms, salt: bytes) -> bytes:
    """Return the EIP-3009 nonce that binds an authorization to one channel (OPEN-05)."""
    return _hash_words(terms.payer, terms.payee, terms.token, salt, terms.authorized_signer)


def top_up_nonce(
    channel_id: ChannelId, *, additional_deposit: int, funder: Address, salt: bytes
) -> bytes:
    """Return the EIP-3009 nonce that binds an authorization to one top-up (TOPUP-04)."""
    return _hash_words(channel_id, additional_deposit, funder, salt)


def receive_authorization_digest(
    separator: bytes,
    *,
    funder: Address,
    to: Address,
    value: int,
    valid_after: int,
    valid_before: int,
    nonce: bytes,
) -> bytes:
    """Return the digest that the funder signs under the token's own domain (EIP-3009)."""
    return _digest(separator, _RECEIVE_TYPE, funder, to, value, valid_after, valid_before, nonce)


def transfer_authorization_digest(
    separator: bytes,
    *,
    funder: Address,
    to: Address,
    value: int,
    valid_after: int,
    valid_before: int,
    nonce: bytes,
) -> bytes:
    """Return the digest for a transfer that anyone may submit; otherwise as the one to receive."""
    return _digest(separator, _TRANSFER_TYPE, funder, to, value, valid_after, valid_before, nonce)


def charge_nonce(challenge_id: str, realm: str) -> bytes:
    """Return the EIP-3009 nonce that binds an authorization to the challenge of a charge.

    The hash of the JSON array of both, as mppx and pympp compute it. The draft's own formula packs
    the two strings without a border, and no released program takes it (AMB-30).
    """
    return keccak(msgspec.json.encode([challenge_id, realm]))


def open_witness(payee: Address, salt: bytes, authorized_signer: Address) -> bytes:
    """Return the hash of the witness that binds a Permit2 transfer to one opening (OPEN-06)."""
    return _hash_words(_OPEN_WITNESS_TYPE, payee, salt, authorized_signer)


def top_up_witness(channel_id: ChannelId) -> bytes:
    """Return the hash of the witness that binds a Permit2 transfer to one channel."""
    return _hash_words(_TOP_UP_WITNESS_TYPE, channel_id)


def open_permit_digest(
    separator: bytes,
    *,
    token: Address,
    amount: int,
    spender: Address,
    nonce: int,
    deadline: int,
    witness: bytes,
) -> bytes:
    """Return the digest for an opening under Permit2's domain; `spender` is the escrow."""
    permitted = _hash_words(_PERMITTED_TYPE, token, amount)
    return _digest(separator, _OPEN_PERMIT_TYPE, permitted, spender, nonce, deadline, witness)


def top_up_permit_digest(
    separator: bytes,
    *,
    token: Address,
    amount: int,
    spender: Address,
    nonce: int,
    deadline: int,
    witness: bytes,
) -> bytes:
    """Return the digest for a top-up under Permit2's domain; `spender` is the escrow."""
    permitted = _hash_words(_PERMITTED_TYPE, token, amount)
    return _digest(separator, _TOP_UP_PERMIT_TYPE, permitted, spender, nonce, deadline, witness)
