"""Prices and signs a transaction: gas, fee and nonce.

A quote is one round trip: the simulation, the price, and the nonces the node knows. `fees` decides
the bid.
"""

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from channel.errors import ConfigError
from channel.types import Address
from settlement.node import questions
from settlement.node.rpc import Rpc
from settlement.node.values import parse_block, parse_count, parse_price
from settlement.tx.encoding import UnsignedTx, assemble
from settlement.tx.fees import (
    Fee,
    FeePolicy,
    Stake,
    choose_fee,
    fee_ceiling,
    queue_ceilings,
    raise_fee,
)
from settlement.tx.signer import Signer
from settlement.tx.state import Intent, JournalTx, Purpose, TxVersion
from settlement.types import BlockRef

__all__ = ["Quote", "TxPricer", "likely_gas"]

_REFUND_RESERVE_GAS: Final = 364_761
"""Gas the escrow requires for a refund (`REFUND_GAS_CAP` plus what the EVM retains). A sound token
uses a tenth."""


class Quote(msgspec.Struct, frozen=True):
    """What the simulation and the node say before the first signature."""

    gas: int
    head: BlockRef
    base_fee_wei: int
    tip_wei: int
    nonces_mined: int
    nonces_pending: int
    """May lag behind `nonces_mined` (F-113), or count transactions that are dropped later."""


class TxPricer:
    """Prices and signs one key's transactions."""

    def __init__(
        self, rpc: Rpc, signer: Signer, *, fees: FeePolicy, gas_margin_percent: int
    ) -> None:
        self._rpc = rpc
        self._signer = signer
        self._fees = fees
        self._gas_margin_percent = gas_margin_percent

    @property
    def address(self) -> Address:
        """Whose transactions these are."""
        return self._signer.address

    async def quote(self, intent: Intent) -> Quote:
        """Simulate and price, in one round trip. A refused simulation is raised first.

        Raises:
            ContractRevertedError: The contract refused the simulation.
            ConfigError: The chain has no base fee.
            ChainUnavailableError: The node does not answer.
        """
        request = {
            "from": "0x" + self.address.hex(),
            "data": "0x" + intent.calldata.hex(),
            "value": hex(intent.value_wei),
        }
        if intent.to is not None:
            request["to"] = "0x" + intent.to.hex()
        quote = await self._rpc.parse_batch(
            [
                questions.call(request),
                questions.estimate_gas(request),
                questions.block(),
                questions.TIP,
                questions.nonces_of(self.address),
                questions.nonces_of(self.address, with_pending=True),
            ],
            self._parse_quote,
        )
        if quote.head.base_fee_wei is None:
            msg = "The chain has no base fee (EIP-1559): use a chain that supports EIP-1559."
            raise ConfigError(msg)
        return replace(quote, tip_wei=await self._rpc.least_tip(quote.tip_wei))

    def _parse_quote(self, said: Sequence[Any]) -> Quote:
        _, gas, block, tip, mined, pending = said
        head = parse_block(block)
        return Quote(
            gas=parse_count(gas) * (100 + self._gas_margin_percent) // 100,
            head=head,
            base_fee_wei=head.base_fee_wei or 0,
            tip_wei=parse_price(tip),
            nonces_mined=parse_count(mined),
            nonces_pending=parse_count(pending),
        )

    def first_fee(self, intent: Intent, quote: Quote) -> Fee:
        """Return the first bid.

        Raises:
            FeeAboveBudgetError: The cost is above the budget now.
        """
        ceiling_wei = fee_ceiling(
            gas=likely_gas(intent, quote.gas),
            budget_wei=intent.budget_wei,
            remaining_s=_remaining_s(intent, quote.head),
            policy=self._fees,
        )
        return choose_fee(
            base_fee_wei=quote.base_fee_wei,
            suggested_tip_wei=quote.tip_wei,
            policy=self._fees,
            ceiling_wei=ceiling_wei,
        )

    async def raised(
        self, tx: JournalTx, head: BlockRef, tip_wei: int, ceiling_wei: int | None
    ) -> TxVersion | None:
        """Sign the same nonce again with a higher bid; None if the budget has no room."""
        fee = raise_fee(
            tx.newest.fee,
            base_fee_wei=head.base_fee_wei or 0,
            suggested_tip_wei=tip_wei,
            policy=self._fees,
            ceiling_wei=ceiling_wei,
        )
        return None if fee is None else await self.sign(tx.intent, tx.nonce or 0, tx.gas, fee)

    def ceilings(self, unmined: Sequence[JournalTx], head: BlockRef) -> list[int | None]:
        """Return the highest bid for each unmined transaction."""
        return queue_ceilings([_stake(tx, head) for tx in unmined], self._fees)

    async def sign(self, intent: Intent, nonce: int, gas: int, fee: Fee) -> TxVersion:
        """Return the signed bytes for one bid.

        Raises:
            SignerError: The signer gave no usable signature.
        """
        unsigned = UnsignedTx(
            chain_id=self._rpc.chain_id,
            nonce=nonce,
            tip_wei=fee.tip_wei,
            max_fee_wei=fee.max_fee_wei,
            gas=gas,
            to=intent.to,
            value_wei=intent.value_wei,
            calldata=intent.calldata,
        )
        tx_hash, raw = assemble(unsigned, await self._signer.sign_transaction(unsigned))
        return TxVersion(tx_hash=tx_hash, fee=fee, raw=raw, signed_at=int(time.time()))


def _stake(tx: JournalTx, head: BlockRef) -> Stake:
    return Stake(
        gas=likely_gas(tx.intent, tx.gas),
        budget_wei=tx.intent.budget_wei,
        remaining_s=_remaining_s(tx.intent, head),
    )


def likely_gas(intent: Intent, limit: int) -> int:
    """Return the most gas that a transaction is likely to use.

    A lone close uses an eighth of its gas limit. Computed from the limit, its budget would allow an
    eighth of the price, and the close would wait although its budget covers the real cost.
    """
    if intent.purpose is not Purpose.CLOSE:
        return limit
    return max(limit - _REFUND_RESERVE_GAS, limit // 4)


def _remaining_s(intent: Intent, head: BlockRef) -> int | None:
    """Return the seconds before the deadline, by the chain's own clock (F-111)."""
    return None if intent.deadline == 0 else intent.deadline - head.timestamp
