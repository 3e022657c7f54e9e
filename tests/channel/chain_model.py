"""An escrow in memory, for tests of how the engine uses the chain's answers.

It keeps only what a `SessionEscrow` shows. Tests on Anvil check that the real escrow shows the
same. `fail_with`, `delay_s` and `answers` stand for a node that is down or slow.
"""

import asyncio
from collections.abc import Sequence

from msgspec.structs import replace

from channel.chain import OpenedLog, ToppedUpLog, TransactionEvidence
from channel.errors import MppSessionError, SettlementPendingError, TransactionRevertedError
from channel.types import (
    Address,
    ChannelFact,
    ChannelId,
    ChannelKey,
    ChannelTerms,
    TxHash,
)
from channel.verify.typed_data import derive_channel_id, keccak

CHAIN_ID = 31337
ESCROW = Address(b"\xe5" * 20)


class ChainModel:
    """Implements `ChainReader` and `CloseRefusals`."""

    chain_id = CHAIN_ID
    escrow = ESCROW

    def __init__(self) -> None:
        self.block = 100
        self.facts: dict[ChannelId, ChannelFact] = {}
        self._history: dict[ChannelId, list[tuple[int, ChannelFact]]] = {}
        self.mined: dict[TxHash, TransactionEvidence] = {}
        self.reverted: set[TxHash] = set()
        self.closed: list[tuple[ChannelId, int, bytes]] = []
        self.wallet_signatures: set[tuple[Address, bytes, bytes]] = set()
        self.reads = 0
        self.transaction_reads = 0
        self.contracts: set[Address] = set()
        self.wallet_reads = 0
        self.code_reads = 0
        self.fail_with: MppSessionError | None = None
        self.close_fails_with: MppSessionError | None = None
        self.delay_s = 0.0
        self.blocks_behind = 0
        """How far the node asked for channels lags behind the one asked for transactions."""
        self.answers = asyncio.Event()
        """While it is clear, every question waits."""
        self.answers.set()

    def open(self, terms: ChannelTerms, salt: bytes, deposit: int) -> tuple[ChannelKey, TxHash]:
        channel_id = derive_channel_id(terms, salt=salt, escrow=ESCROW, chain_id=CHAIN_ID)
        key = ChannelKey(CHAIN_ID, ESCROW, channel_id)
        self.block += 1
        self.facts[channel_id] = ChannelFact(
            key,
            terms,
            deposit,
            0,
            close_requested_at=0,
            is_finalized=False,
            block_number=self.block,
        )
        self._history[channel_id] = [(self.block, self.facts[channel_id])]
        return key, self._mine(opened=(OpenedLog(channel_id, 0),))

    def top_up(self, key: ChannelKey, amount: int) -> TxHash:
        self.change(key, deposit=self.facts[key.channel_id].deposit + amount)
        return self._mine(topped_up=(ToppedUpLog(key.channel_id, amount, 0),))

    def change(self, key: ChannelKey, **changes: object) -> None:
        self.block += 1
        fact = self.facts[key.channel_id] = replace(self.facts[key.channel_id], **changes)
        self._history[key.channel_id].append((self.block, fact))

    def _mine(self, **logs: object) -> TxHash:
        tx_hash = TxHash(keccak(b"tx" + self.block.to_bytes(8, "big")))
        evidence = TransactionEvidence(tx_hash, self.block, 1, (), ())
        self.mined[tx_hash] = replace(evidence, **logs)
        return tx_hash

    async def read_channel(
        self, channel_id: ChannelId, *, block_number: int | None = None
    ) -> ChannelFact | None:
        self.reads += 1
        fact = self.facts.get(channel_id)
        if block_number is not None:
            past = [one for at, one in self._history.get(channel_id, []) if at <= block_number]
            fact = past[-1] if past else None
        await self._answer()
        head = self.block - self.blocks_behind
        return None if fact is None else replace(fact, block_number=block_number or head)

    async def confirm_deposits(self, facts: Sequence[ChannelFact]) -> list[int]:
        return [fact.deposit for fact in facts]

    async def read_transaction(self, tx_hash: TxHash) -> TransactionEvidence | None:
        self.transaction_reads += 1
        await self._answer()
        if tx_hash in self.reverted:
            raise TransactionRevertedError("The transaction reverted.")
        evidence = self.mined.get(tx_hash)
        if evidence is None:
            return None
        return replace(evidence, confirmations=self.block - evidence.block_number + 1)

    async def has_code(self, address: Address) -> bool:
        self.code_reads += 1
        await self._answer()
        return address in self.contracts

    async def is_valid_wallet_signature(
        self, signer: Address, digest: bytes, signature: bytes
    ) -> bool:
        self.wallet_reads += 1
        await self._answer()
        return (signer, digest, signature) in self.wallet_signatures

    async def close(
        self, key: ChannelKey, cumulative_amount: int, signature: bytes
    ) -> tuple[TxHash, ChannelFact]:
        await self._answer()
        if self.close_fails_with is not None:
            raise self.close_fails_with
        if not self.facts[key.channel_id].is_finalized:
            self.closed.append((key.channel_id, cumulative_amount, signature))
            self.change(key, settled=cumulative_amount, is_finalized=True)
        fact = replace(self.facts[key.channel_id], block_number=self.block)
        return TxHash(keccak(b"close" + key.channel_id)), fact

    async def why_given_up(self, key: ChannelKey) -> TransactionRevertedError | None:  # noqa: ARG002
        error = self.close_fails_with
        return error if isinstance(error, TransactionRevertedError) else None

    async def why_pending(self, key: ChannelKey) -> SettlementPendingError | None:  # noqa: ARG002
        error = self.close_fails_with
        return error if isinstance(error, SettlementPendingError) else None

    async def _answer(self) -> None:
        await asyncio.sleep(self.delay_s)
        await self.answers.wait()
        if self.fail_with is not None:
            raise self.fail_with
