"""Checks whether the token would pay out, before the payee accepts vouchers for it.

A token that is paused, or blacklists the payee or the escrow, refuses every settle although the
vouchers are valid (F-87, O-13). This check simulates the transfer of a settle, as the escrow, and
judges the result as the escrow does.
"""

from typing import Final

from channel.types import Address
from settlement import abi
from settlement.errors import ContractRevertedError
from settlement.escrow.reader import EscrowReader

__all__ = ["find_payout_obstacle"]

_TRANSFER_GAS: Final = 2_000_000
"""Ten times what a sound token uses. A token that burns all of it is detected quickly."""
_TRUE: Final = (1).to_bytes(32)


async def find_payout_obstacle(
    reader: EscrowReader, token: Address, payee: Address, *, owed: int
) -> str | None:
    """Return why the token would not pay `owed` base units to the payee now, or None.

    If nothing is owed, one base unit is tried, or zero if the escrow holds none. With zero only a
    refusal of the payee itself counts, because some tokens never transfer zero, and a paused token
    accepts no deposit either.

    Raises:
        ChainUnavailableError: No node answers.
    """
    amount = owed
    if not owed:
        holds = await reader.rpc.call(token, abi.balance_of.encode(reader.escrow))
        amount = 1 if abi.balance_of.decode_int(holds) else 0
    why = await _refusal(reader, token, payee, amount)
    if why is None or amount or await _refusal(reader, token, reader.escrow, 0) is None:
        return why
    return None


async def _refusal(reader: EscrowReader, token: Address, to: Address, amount: int) -> str | None:
    try:
        answer = await reader.rpc.call(
            token, abi.transfer.encode(to, amount), sender=reader.escrow, gas=_TRANSFER_GAS
        )
    except ContractRevertedError as refusal:
        return refusal.text or f"the token refuses a transfer: {refusal.reason.value}"
    if answer == b"":
        return None if await reader.has_code(token) else "there is no contract at its address"
    return None if answer[:32] == _TRUE else "the token returned that it transferred nothing"
