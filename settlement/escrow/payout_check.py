"""Whether the token would pay out what is owed: asked before it is owed, not when it is settled.

A token that is paused, or has the payee or the escrow on its blacklist, refuses every settle while
vouchers are as good as ever (F-87, O-13). So the very transfer that a settle ends in is run without
effect, as the escrow, and judged as the escrow judges it.
"""

from typing import Final

from channel.types import Address
from settlement import abi
from settlement.errors import ContractRevertedError
from settlement.escrow.reader import EscrowReader

__all__ = ["find_payout_obstacle"]

_TRANSFER_GAS: Final = 2_000_000
"""More than a sound token takes ten times over; one that burns all it gets is found out soon."""
_TRUE: Final = (1).to_bytes(32)


async def find_payout_obstacle(
    reader: EscrowReader, token: Address, payee: Address, *, owed: int
) -> str | None:
    """Return why the token does not pay the payee `owed` base units from the escrow now, or None.

    Where nothing is owed one base unit is tried, or none if the escrow has nothing: then only a
    refusal of the payee itself counts, since some tokens move no amount of 0 at all, and one that
    is paused takes no deposit either.

    Raises:
        ChainUnavailableError: No node says.
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
        return refusal.text or f"a transfer is refused: {refusal.reason.value}"
    if answer == b"":
        return None if await reader.has_code(token) else "there is no contract at its address"
    return None if answer[:32] == _TRUE else "it answers that it moved nothing"
