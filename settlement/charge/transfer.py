"""A transfer that its payer signed (EIP-3009), and how to find it on the chain.

Anyone may submit a `transferWithAuthorization`, and its tokens can go to the payee only. So another
sender's transaction is as good as ours (F-83): ours then reverts, and the chain shows the transfer.
"""

from collections.abc import Sequence

from channel.types import Address, Redacted, TxHash
from channel.verify.typed_data import keccak
from settlement import abi
from settlement.errors import RpcRefusedError
from settlement.node.rpc import Rpc
from settlement.types import Log

__all__ = ["SignedTransfer", "build_transfer_call", "find_transfer", "transfer_id"]

_BLOCKS_PER_QUERY = 1000
_WORD = 32
_LOW_V = 27  # some wallets write the recovery id as 0 or 1


class SignedTransfer(Redacted, frozen=True, kw_only=True):
    """An authorization to transfer tokens to the payee, verified under the token's domain."""

    payer: Address
    payee: Address
    amount: int
    """Base units."""
    valid_after: int
    """Unix seconds of the chain; both ends of the window are exclusive."""
    valid_before: int
    nonce: bytes
    signature: bytes
    """65 bytes."""


def transfer_id(chain_id: int, token: Address, transfer: SignedTransfer) -> bytes:
    """Return 32 bytes that identify an authorization: the token takes a nonce of a payer once."""
    return keccak(chain_id.to_bytes(_WORD) + token + transfer.payer + transfer.nonce)


def build_transfer_call(transfer: SignedTransfer) -> bytes:
    """Return the calldata that makes the transfer."""
    signature = transfer.signature
    v = signature[-1] + (_LOW_V if signature[-1] < _LOW_V else 0)
    return abi.transfer_with_authorization.encode(
        transfer.payer,
        transfer.payee,
        transfer.amount,
        transfer.valid_after,
        transfer.valid_before,
        transfer.nonce,
        v,
        signature[:_WORD],
        signature[_WORD : 2 * _WORD],
    )


async def find_transfer(
    rpc: Rpc,
    token: Address,
    *,
    payer: Address,
    payee: Address,
    amount: int,
    nonce: bytes,
    from_block: int,
) -> TxHash | None:
    """Return the transaction in which exactly this authorization paid the payee, or None.

    The token must log the transfer directly after the authorization's use, as Circle's does.
    Otherwise one transfer could be shown for two authorizations of the same transaction.

    Raises:
        ChainUnavailableError: No node answers.
    """
    topics = [abi.AUTHORIZATION_USED_TOPIC, _word(payer), nonce]
    for used in await _search(rpc, token, topics, from_block):
        receipt = await rpc.receipt(used.tx_hash)
        if receipt is None or not receipt.is_success:
            continue
        for before, after in zip(receipt.logs, receipt.logs[1:], strict=False):
            if (before.address, before.topics) != (token, tuple(topics)):
                continue
            paid = (abi.TRANSFER_TOPIC, _word(payer), _word(payee))
            is_paid = (after.address, after.topics) == (token, paid)
            if is_paid and after.payload == amount.to_bytes(_WORD):
                return used.tx_hash
    return None


async def _search(rpc: Rpc, token: Address, topics: Sequence[bytes], from_block: int) -> list[Log]:
    """Return the token's logs since a block, in pieces that the node accepts."""
    size, found = _BLOCKS_PER_QUERY, list[Log]()
    head = await rpc.block_number()
    while from_block <= head:
        last = min(from_block + size - 1, head)
        try:
            found += await rpc.logs(token, topics, from_block=from_block, to_block=last)
        except RpcRefusedError:
            if from_block == last:
                raise
            size = (last - from_block + 1) // 2
        else:
            from_block = last + 1
    return found


def _word(address: Address) -> bytes:
    return bytes(_WORD - len(address)) + address
