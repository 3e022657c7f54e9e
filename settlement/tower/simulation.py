"""Simulates presigned settles, to find what the escrow would answer."""

from collections.abc import Sequence
from typing import Final

from channel.types import Address
from settlement.errors import ContractRevertedError, RpcRefusedError
from settlement.node.rpc import Rpc
from settlement.presigned.authorization import PresignedSettle

__all__ = ["Refusal", "simulate"]

Refusal = ContractRevertedError | RpcRefusedError
"""By the escrow; or by the node, which would not run it: then the answer is unknown."""

_AT_ONCE: Final = 100


async def simulate(
    rpc: Rpc, settles: Sequence[PresignedSettle], *, sender: Address
) -> list[Refusal | None]:
    """Return for each settle why it would be refused, or None.

    If the node refuses to run the batch, each settle is simulated alone.

    Raises:
        ChainUnavailableError: No usable answer.
    """
    refusals: list[Refusal | None] = []
    for start in range(0, len(settles), _AT_ONCE):
        asked = settles[start : start + _AT_ONCE]
        try:
            refusals += await _ask(rpc, asked, sender)
        except RpcRefusedError:
            refusals += [await _ask_alone(rpc, settle, sender) for settle in asked]
    return refusals


async def _ask(
    rpc: Rpc, settles: Sequence[PresignedSettle], sender: Address
) -> list[ContractRevertedError | None]:
    calls = [settle.calldata() for settle in settles]
    return await rpc.try_calls(settles[0].key.escrow, calls, sender=sender)


async def _ask_alone(rpc: Rpc, settle: PresignedSettle, sender: Address) -> Refusal | None:
    try:
        (refusal,) = await _ask(rpc, [settle], sender)
    except RpcRefusedError as error:
        return error
    return refusal
