"""The settler's part of a close, for tests of the engine: it sends to the chain model."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from channel.ledger.interface import Ledger
from channel.state.channel_state import ChannelState
from channel.types import Address, ChannelKey
from settlement.alarms import Alarms
from settlement.settle.executor import CloseExecutor
from settlement.settle.jobs import CloseResult, SettleResult
from settlement.settle.pending_closes import PendingCloses
from settlement.settle.schedule import Action, Due, Reason
from tests.channel.chain_model import ChainModel


class ModelSettler:
    """Implements `settlement.settle.executor.Settler` on the chain model."""

    def __init__(self, chain: ChainModel) -> None:
        self._chain = chain

    async def close_channel(
        self,
        key: ChannelKey,
        cumulative_amount: int,
        signature: bytes,
        *,
        value: int = 0,  # noqa: ARG002 -- the model has no gas and no queue
        deadline: int = 0,  # noqa: ARG002
    ) -> CloseResult:
        tx_hash, fact = await self._chain.close(key, cumulative_amount, signature)
        return CloseResult(tx_hash=tx_hash, fact=fact, gas_used=60_000)

    async def settle_channel(
        self,
        key: ChannelKey,
        cumulative_amount: int,
        signature: bytes,
        *,
        value: int = 0,
        deadline: int = 0,
    ) -> SettleResult:
        raise NotImplementedError("a close alone is due here")


@asynccontextmanager
async def settling(ledger: Ledger, chain: ChainModel, payee: Address) -> AsyncIterator[None]:
    """Send and record each close that an engine on this ledger decides."""
    executor = CloseExecutor(ledger, ModelSettler(chain), Alarms(), retry_s=0.05)

    def begin(states: Sequence[ChannelState]) -> None:
        executor.submit(
            [
                Due(key=state.key, action=Action.CLOSE, reason=Reason.PROMISED, value=0)
                for state in states
            ]
        )

    pending = PendingCloses(
        ledger, begin, chain_id=chain.chain_id, escrow=chain.escrow, payee=payee
    )
    async with executor.tasks as tasks:
        tasks.start(pending.run())
        yield
    executor.tasks.require_sound()
