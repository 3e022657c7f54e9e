"""Finds out what this chain, escrow and token can do for a payer without gas.

Nothing is concluded from names. A token supports EIP-3009 authorizations if, in a simulation, it
accepts one signed under its own domain by a throw-away key, and refuses the same one with a bit
changed (F-21, F-88). This finds a paused token, a blacklisted escrow, a bridged token without the
`bytes` overload, and a contract that accepts every call, all at start.
"""

import secrets
from typing import Final, Literal

import msgspec

from channel.errors import ConfigError
from channel.types import Address, ChannelId
from channel.verify.signature import address_of, sign
from channel.verify.typed_data import (
    permit2_domain_separator,
    receive_authorization_digest,
)
from settlement import abi
from settlement.addresses import PERMIT2
from settlement.errors import ContractRevertedError
from settlement.escrow.reader import EscrowReader
from settlement.types import RevertReason

__all__ = ["Capabilities", "DepositType", "probe"]

DepositType = Literal["authorization", "permit2"]

_FAR_FUTURE: Final = 2**48
_UNKNOWN: Final = Address(b"\xff" * 20)


class Capabilities(msgspec.Struct, frozen=True):
    """What the server can promise."""

    able: tuple[DepositType, ...]
    """Working deposit types, the preferred one first."""
    token_domain: bytes
    """The token's EIP-712 domain separator; empty if it has none."""
    obstacles: dict[str, str]
    """By name of a deposit type, why it does not work."""

    def require(self, wanted: tuple[DepositType, ...]) -> tuple[DepositType, ...]:
        """Return the types to promise: the wanted ones, or all that work if none is named.

        Raises:
            ConfigError: A wanted type does not work, or no type works (CHAL-04, decision 15).
        """
        for name in wanted:
            if name in self.obstacles:
                raise ConfigError(f"`sponsoring.types` promises {name}, but {self.obstacles[name]}")
        if not wanted and not self.able:
            why = "; ".join(f"{name}: {text}" for name, text in self.obstacles.items())
            raise ConfigError(f"`sponsoring.fee_payer` cannot be promised: {why}")
        return wanted or self.able


async def probe(reader: EscrowReader, token: Address) -> Capabilities:
    """Simulate on the chain what works now.

    Raises:
        ChainUnavailableError: No node answered.
    """
    obstacles: dict[str, str] = {}
    domain = await _read_domain(reader, token)
    why = await _authorization_obstacle(reader, token, domain)
    if why:
        obstacles["authorization"] = why
    why = await _permit2_obstacle(reader)
    if why:
        obstacles["permit2"] = why
    names: tuple[DepositType, ...] = ("authorization", "permit2")
    able = tuple(name for name in names if name not in obstacles)
    return Capabilities(able=able, token_domain=domain, obstacles=obstacles)


async def _read_domain(reader: EscrowReader, token: Address) -> bytes:
    try:
        answer = await reader.rpc.call(token, abi.token_domain_separator.encode())
    except ContractRevertedError:
        return b""
    return answer if len(answer) == 32 else b""  # noqa: PLR2004 -- a word


async def _authorization_obstacle(reader: EscrowReader, token: Address, domain: bytes) -> str:
    if not domain:
        return "the token has no DOMAIN_SEPARATOR, so it takes no signed authorization"
    key = secrets.token_bytes(32)
    funder, nonce = address_of(key), secrets.token_bytes(32)
    digest = receive_authorization_digest(
        domain,
        funder=funder,
        to=reader.escrow,
        value=0,
        valid_after=0,
        valid_before=_FAR_FUTURE,
        nonce=nonce,
    )
    signature = sign(key, digest)
    if why := await _refusal(reader, token, _receive(reader, funder, nonce, signature)):
        return f"the token does not take an EIP-3009 authorization with `bytes`: {why}"
    forged = bytes([signature[0] ^ 1]) + signature[1:]
    if not await _refusal(reader, token, _receive(reader, funder, nonce, forged)):
        return "the token takes an EIP-3009 authorization with an invalid signature"
    return await _escrow_obstacle(
        reader,
        {
            "openWithAuthorization": (
                abi.open_with_authorization.encode(
                    _UNKNOWN, _UNKNOWN, 1, bytes(32), _UNKNOWN, _UNKNOWN, 0, 0, bytes(32), b""
                ),
                RevertReason.NONCE_MISMATCH,
            ),
            "topUpWithAuthorization": (
                abi.top_up_with_authorization.encode(
                    bytes(32), 1, _UNKNOWN, bytes(32), 0, 0, bytes(32), b""
                ),
                RevertReason.NONCE_MISMATCH,
            ),
        },
    )


def _receive(reader: EscrowReader, funder: Address, nonce: bytes, signature: bytes) -> bytes:
    return abi.receive_with_authorization.encode(
        funder, reader.escrow, 0, 0, _FAR_FUTURE, nonce, signature
    )


async def _permit2_obstacle(reader: EscrowReader) -> str:
    if not await reader.rpc.code(PERMIT2):
        return f"there is no Permit2 at 0x{PERMIT2.hex()}"
    try:
        domain = await reader.rpc.call(PERMIT2, abi.token_domain_separator.encode())
    except ContractRevertedError:
        domain = b""
    if domain != permit2_domain_separator(reader.chain_id):
        return f"the contract at 0x{PERMIT2.hex()} does not sign as Permit2 does"
    unknown = ChannelId(secrets.token_bytes(32))
    return await _escrow_obstacle(
        reader,
        {
            "openWithPermit2": (
                abi.open_with_permit2.encode(
                    _UNKNOWN, _UNKNOWN, 1, bytes(32), _UNKNOWN, _UNKNOWN, 0, 0, b""
                ),
                RevertReason.INVALID_TOKEN,
            ),
            "topUpWithPermit2": (
                abi.top_up_with_permit2.encode(unknown, 1, _UNKNOWN, 0, 0, b""),
                RevertReason.CHANNEL_NOT_FOUND,
            ),
        },
    )


async def _escrow_obstacle(
    reader: EscrowReader, calls: dict[str, tuple[bytes, RevertReason]]
) -> str:
    """Call each function so that the escrow refuses it with a reason of its own."""
    for name, (calldata, expected) in calls.items():
        try:
            await reader.rpc.call(reader.escrow, calldata)
        except ContractRevertedError as error:
            if error.reason is expected:
                continue
        return f"the escrow has no {name}"
    return ""


async def _refusal(reader: EscrowReader, token: Address, calldata: bytes) -> str:
    """Return why the token refuses the escrow's call, or an empty string if it accepts it."""
    try:
        await reader.rpc.call(token, calldata, sender=reader.escrow)
    except ContractRevertedError as error:
        return error.text or error.reason.value
    return ""
