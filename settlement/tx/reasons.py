"""Revert reasons: read from the node, stored as text in the journal, raised again."""

from channel.errors import ChainUnavailableError, MppSessionError
from channel.types import Address
from settlement.errors import ContractRevertedError, contract_reverted
from settlement.node.rpc import Rpc
from settlement.tx.state import Event, Included, Inclusion, JournalTx
from settlement.types import RevertReason

__all__ = ["explain", "reason_of", "refusal"]


def reason_of(error: MppSessionError) -> str:
    """Return an error as the journal stores it: a `RevertReason`'s name first, if it has one."""
    if isinstance(error, ContractRevertedError):
        return f"{error.reason.name} {error.text}".strip()
    return str(error)


def refusal(reason: str, inclusion: Inclusion) -> ContractRevertedError:
    """Return the error for a reason that the journal holds."""
    name, _, text = reason.partition(" ")
    known = RevertReason.__members__.get(name, RevertReason.UNKNOWN)
    return contract_reverted(known, text=text, tx_hash=inclusion.tx_hash)


async def explain(rpc: Rpc, sender: Address, tx: JournalTx, event: Event) -> Event:
    """Add the reason to a revert: run the call again before its block, then after it.

    The second run finds a reason that another transaction of the same block caused.
    """
    if not isinstance(event, Included) or event.inclusion.is_success:
        return event
    mined_in = event.inclusion.block_number
    reason = RevertReason.UNKNOWN.name
    for block_number in (mined_in - 1, mined_in):
        try:
            await rpc.call(
                tx.intent.to, tx.intent.calldata, sender=sender, block_number=block_number
            )
        except ContractRevertedError as error:
            reason = reason_of(error)
            break
        except ChainUnavailableError:
            break
    return Included(event.inclusion, reason)
