"""Finds a deposit that was already made, by any sender (AMB-10, F-83).

A signed deposit is public once it is in a transaction pool, and anyone may submit it. The payer's
or sponsor's own transaction then reverts although the deposit exists. After a refusal the caller
therefore reads the chain once: the intended state, and the log of the transaction that made it,
count as success.
"""

from channel.limits import SIGNATURE_BYTES
from channel.types import ChannelId, TxHash
from settlement import abi
from settlement.escrow.deposit_calls import DepositCall
from settlement.escrow.reader import EscrowReader
from settlement.node import questions
from settlement.node.values import parse_bytes
from settlement.types import Log

__all__ = ["find_made"]


async def find_made(
    reader: EscrowReader, channel_id: ChannelId, call: DepositCall
) -> TxHash | None:
    """Return the transaction that made exactly this deposit, or None.

    An opening is identified by the channel: its id follows from payer, payee, token, salt and
    signer. A top-up is identified by its authorization: an equal amount in the same channel may
    come from another one.

    Raises:
        ChainUnavailableError: No node answers.
    """
    if call.opens:
        fact = await reader.read_channel(channel_id)
        if fact is None or fact.deposit < call.amount:
            return None
        opened = await reader.find_opening(channel_id)
        return None if opened is None else opened.tx_hash
    for log in reversed(await reader.find_top_ups(channel_id)):
        if int.from_bytes(log.payload[:32]) == call.amount and await _is_by(reader, log, call):
            return log.tx_hash
    return None


async def _is_by(reader: EscrowReader, log: Log, call: DepositCall) -> bool:
    """Whether exactly this authorization funded the top-up."""
    nonce = call.authorization_nonce
    if nonce is None:  # Permit2 emits no nonce: the calldata of the sender holds the signature
        if len(call.signature) < SIGNATURE_BYTES:
            return False  # a contract wallet's signature, short enough to match by chance
        method, params = questions.transaction(log.tx_hash)
        tx = await reader.rpc.read(method, *params)
        return isinstance(tx, dict) and call.signature in parse_bytes(tx.get("input"))
    receipt = await reader.rpc.receipt(log.tx_hash)
    topics = (abi.AUTHORIZATION_USED_TOPIC, bytes(12) + call.funder, nonce)
    return receipt is not None and any(other.topics == topics for other in receipt.logs)
