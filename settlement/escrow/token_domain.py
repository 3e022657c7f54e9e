"""Reads a token's EIP-712 domain: name and version differ from chain to chain (F-21).

The separator computed from the token's name and version must equal the one the token reports. A
signature is then valid only for this token on this chain, even if the token lies.
"""

import asyncio

import msgspec

from channel.types import Address
from channel.verify.typed_data import token_domain_separator
from settlement import abi
from settlement.errors import ContractRevertedError
from settlement.node.rpc import Rpc

__all__ = ["TokenDomain", "read_token_domain"]


class TokenDomain(msgspec.Struct, frozen=True):
    """The EIP-712 domain under which a token accepts signatures on its chain."""

    name: str
    version: str
    separator: bytes


async def read_token_domain(rpc: Rpc, token: Address) -> TokenDomain | None:
    """Return the domain under which the token accepts signatures, in one round trip.

    None if the token has none, or reports one that does not follow from its name, its version, this
    chain and its own address.
    """
    said, domain, name, version = await asyncio.gather(
        _ask(rpc, token, abi.token_domain_separator),
        _ask(rpc, token, abi.eip712_domain),
        _ask(rpc, token, abi.name),
        _ask(rpc, token, abi.version),
    )
    if domain is not None:  # EIP-5267: the domain the token reports
        name, version = domain[1:2], domain[2:3]
    if said is None or name is None or version is None:
        return None
    texts = str(name[0]), str(version[0])
    separator = token_domain_separator(*texts, rpc.chain_id, token)
    return TokenDomain(*texts, separator) if said[0] == separator else None


async def _ask(rpc: Rpc, token: Address, question: abi.Function) -> tuple[object, ...] | None:
    """Return the token's answer; None if it lacks the function or answers in another shape."""
    try:
        answer = await rpc.call(token, question.encode())
    except ContractRevertedError:
        return None
    return question.decode_or_none(answer)
