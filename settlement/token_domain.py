"""A token's EIP-712 domain: its name and version differ from chain to chain (F-21).

Both are read from the token and held against the separator that it says it uses: what is signed
can then be valid for this token on this chain and for nothing else, whatever a token claims.
"""

from channel.types import Address
from channel.verify.typed_data import token_domain_separator
from settlement import abi
from settlement.errors import ContractRevertedError
from settlement.rpc import Rpc

__all__ = ["read_token_domain"]


async def read_token_domain(rpc: Rpc, token: Address) -> bytes | None:
    """Return the separator under which the token takes signatures.

    None when it has none, or one that does not follow from its name, its version, this chain
    and its own address.
    """
    said = await _ask(rpc, token, abi.token_domain_separator)
    names = await _read_names(rpc, token)
    if said is None or names is None:
        return None
    expected = token_domain_separator(*names, rpc.chain_id, token)
    return expected if said[0] == expected else None


async def _read_names(rpc: Rpc, token: Address) -> tuple[str, str] | None:
    """Return name and version: by EIP-5267 where there is that, else by their own getters."""
    domain = await _ask(rpc, token, abi.eip712_domain)
    if domain is not None:
        return str(domain[1]), str(domain[2])
    name = await _ask(rpc, token, abi.name)
    version = await _ask(rpc, token, abi.version)
    return None if name is None or version is None else (str(name[0]), str(version[0]))


async def _ask(rpc: Rpc, token: Address, question: abi.Function) -> tuple[object, ...] | None:
    """Return what the token says; None when it has no such function, or answers otherwise."""
    try:
        answer = await rpc.call(token, question.encode())
    except ContractRevertedError:
        return None
    return question.decode_or_none(answer)
