"""One key's transactions: simulated, signed, broadcast, and seen through to a receipt.

Three outcomes and no fourth: mined with success; refused, in the simulation (nothing was
broadcast) or in a block (final, F-76); or pending. A missing receipt is never a failure (F-75):
the same bytes are sent again, which no node can turn into a second transaction.

The signed bytes of what is not mined yet are kept in memory by `_unmined`; whoever wants them to
survive a crash records them there, before they are broadcast.
"""

import asyncio
import time
from typing import Any, Final

import msgspec
from eth_account.signers.local import LocalAccount

from channel.errors import ChainUnavailableError, ConfigError
from channel.types import Address, TxHash
from settlement.errors import (
    ContractRevertedError,
    RpcRefusedError,
    TransactionPendingError,
    contract_reverted,
)
from settlement.fees import FeePolicy, choose_fee
from settlement.rpc import Rpc
from settlement.rpc_values import parse_block, parse_quantity
from settlement.types import Receipt, RevertReason

__all__ = ["TxLimits", "TxManager"]

_KNOWN_ALREADY: Final = ("already known", "already imported", "already exists", "known transaction")


class TxLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long a transaction is waited for."""

    mined_within_s: float = 90.0
    poll_min_s: float = 0.01
    poll_max_s: float = 2.0
    resend_after_s: float = 5.0
    gas_margin_percent: int = 25
    """Above the estimate: the state may change before the transaction is mined."""


class _Signed(msgspec.Struct, frozen=True):
    """A signed transaction. `raw` is never logged."""

    tx_hash: TxHash
    nonce: int
    to: Address | None
    calldata: bytes
    raw: bytes


class TxManager:
    """Sends transactions from one key on one chain. At most one per key in one process (F-74)."""

    def __init__(
        self,
        rpc: Rpc,
        account: LocalAccount,
        *,
        fees: FeePolicy | None = None,
        limits: TxLimits | None = None,
    ) -> None:
        self.rpc = rpc
        self._account = account
        self._fees = fees or FeePolicy()
        self._limits = limits or TxLimits()
        self._lock = asyncio.Lock()
        self._next_nonce = 0
        self._unmined: dict[TxHash, _Signed] = {}
        self.address = Address(bytes.fromhex(account.address[2:]))

    async def send(self, to: Address | None, calldata: bytes, *, value_wei: int = 0) -> Receipt:
        """Simulate, broadcast, and return the receipt of a success. `to` None creates a contract.

        Raises:
            ContractRevertedError: The contract refused; with `tx_hash` set, in a block.
            TransactionPendingError: Broadcast and not mined within the bound; see `resume`.
            ChainUnavailableError: Nothing was broadcast.
        """
        return await self.resume(await self.broadcast(to, calldata, value_wei=value_wei))

    async def broadcast(self, to: Address | None, calldata: bytes, *, value_wei: int = 0) -> TxHash:
        """Simulate, sign and broadcast; return as soon as the transaction is on its way.

        Raises:
            ContractRevertedError: The simulation was refused; nothing was broadcast.
            ChainUnavailableError: Nothing was broadcast.
        """
        async with self._lock:
            signed = await self._sign(to, calldata, value_wei)
            self._unmined[signed.tx_hash] = signed
            self._next_nonce = signed.nonce + 1
            try:
                await self._put(signed)
            except RpcRefusedError:
                del self._unmined[signed.tx_hash]
                self._next_nonce = signed.nonce
                raise
            except ChainUnavailableError:
                pass  # it may have arrived: pending, and `resume` sends the same bytes again
        return signed.tx_hash

    async def resume(self, tx_hash: TxHash) -> Receipt:
        """Wait for a transaction that was broadcast; may be called again after it gave up.

        Raises:
            ContractRevertedError: It was mined and reverted.
            TransactionPendingError: Not mined within the bound.
        """
        started = sent = time.monotonic()
        pause_s = self._limits.poll_min_s
        while True:
            receipt = await self._receipt_or_none(tx_hash)
            if receipt is not None:
                return await self._finish(receipt)
            now = time.monotonic()
            if now - started >= self._limits.mined_within_s:
                raise TransactionPendingError(tx_hash)
            if now - sent >= self._limits.resend_after_s:
                await self._put_again()
                sent = now
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._limits.poll_max_s)

    async def _sign(self, to: Address | None, calldata: bytes, value_wei: int) -> _Signed:
        """Simulate, price and sign, in one round trip; the simulation's refusal comes first."""
        sender = "0x" + self.address.hex()
        request = {"from": sender, "data": "0x" + calldata.hex(), "value": hex(value_wei)}
        if to is not None:
            request["to"] = "0x" + to.hex()
        _, gas, block, tip, mined, pending = await self.rpc.read_batch(
            [
                ("eth_call", [request, "latest"]),
                ("eth_estimateGas", [request, "latest"]),  # some nodes would take "pending"
                ("eth_getBlockByNumber", ["latest", False]),
                ("eth_maxPriorityFeePerGas", []),
                ("eth_getTransactionCount", [sender, "latest"]),
                ("eth_getTransactionCount", [sender, "pending"]),
            ]
        )
        base_fee_wei = parse_block(block).base_fee_wei
        if base_fee_wei is None:
            msg = "The chain has no base fee (EIP-1559)."
            raise ConfigError(msg)
        fee = choose_fee(
            base_fee_wei=base_fee_wei, suggested_tip_wei=parse_quantity(tip), policy=self._fees
        )
        # A node's `pending` may lag behind `latest` (F-113), and both behind what was just sent.
        nonce = max(self._next_nonce, parse_quantity(mined), parse_quantity(pending))
        fields: dict[str, Any] = {
            "type": 2,
            "chainId": self.rpc.chain_id,
            "nonce": nonce,
            "gas": parse_quantity(gas) * (100 + self._limits.gas_margin_percent) // 100,
            "maxFeePerGas": fee.max_fee_wei,
            "maxPriorityFeePerGas": fee.tip_wei,
            "value": value_wei,
            "data": calldata,
        }
        if to is not None:
            fields["to"] = to
        signed = self._account.sign_transaction(fields)
        return _Signed(
            tx_hash=TxHash(bytes(signed.hash)),
            nonce=nonce,
            to=to,
            calldata=calldata,
            raw=bytes(signed.raw_transaction),
        )

    async def _put(self, signed: _Signed) -> None:
        try:
            await self.rpc.command("eth_sendRawTransaction", "0x" + signed.raw.hex())
        except RpcRefusedError as error:
            if not any(words in error.message.lower() for words in _KNOWN_ALREADY):
                raise

    async def _put_again(self) -> None:
        """Send the same bytes again, of all that is not mined: a lost one holds up the later ones.

        Whatever the node says to it, only a receipt ends the wait.
        """
        for signed in sorted(self._unmined.values(), key=lambda unmined: unmined.nonce):
            try:
                await self._put(signed)
            except ChainUnavailableError:
                continue

    async def _receipt_or_none(self, tx_hash: TxHash) -> Receipt | None:
        try:
            return await self.rpc.receipt(tx_hash)
        except ChainUnavailableError:
            return None  # the node is away; the transaction is not

    async def _finish(self, receipt: Receipt) -> Receipt:
        signed = self._unmined.pop(receipt.tx_hash, None)
        if receipt.is_success:
            return receipt
        reason, text = RevertReason.UNKNOWN, ""
        if signed is not None:
            reason, text = await self._why(signed, receipt)
        raise contract_reverted(reason, text=text, tx_hash=receipt.tx_hash)

    async def _why(self, signed: _Signed, receipt: Receipt) -> tuple[RevertReason, str]:
        """Run a reverted call again to hear its reason: before its block, then after it.

        The second finds what only another transaction in the same block made it refuse.
        """
        for block_number in (receipt.block_number - 1, receipt.block_number):
            try:
                await self.rpc.call(
                    signed.to, signed.calldata, sender=self.address, block_number=block_number
                )
            except ContractRevertedError as error:
                return error.reason, error.text
            except ChainUnavailableError:
                break
        return RevertReason.UNKNOWN, ""
