"""Values of the chain side, parsed from a node's JSON.

Hashes and addresses are `bytes`, amounts of ether are wei, times are Unix seconds of a block.
"""

import enum

import msgspec

from channel.types import Address, ChannelId, TxHash

__all__ = [
    "BatchEntry",
    "BlockRef",
    "ChannelClosedLog",
    "CloseRequestedLog",
    "EntrySkippedLog",
    "Log",
    "Receipt",
    "RevertReason",
    "SettledLog",
]


class BlockRef(msgspec.Struct, frozen=True, gc=False):
    """A block's number and hash: after a reorg the number alone identifies nothing (F-71)."""

    number: int
    hash: bytes
    timestamp: int
    base_fee_wei: int | None
    """None on a chain without EIP-1559."""
    parent_hash: bytes


class Log(msgspec.Struct, frozen=True, gc=False):
    """One event emitted by `address`; the caller checks the emitter (F-84)."""

    address: Address
    topics: tuple[bytes, ...]
    payload: bytes
    log_index: int
    tx_hash: TxHash
    block_number: int
    block_hash: bytes


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """The result of a mined transaction. `is_success` false is final (F-76)."""

    tx_hash: TxHash
    is_success: bool
    block_number: int
    block_hash: bytes
    gas_used: int
    gas_price_wei: int
    contract: Address | None
    """The contract that the transaction created, if any."""
    logs: tuple[Log, ...]
    data_fee_wei: int = 0
    """A rollup's fee for data on its parent chain, charged beside gas."""

    @property
    def cost_wei(self) -> int:
        """The total cost to the sender, in wei."""
        return self.gas_used * self.gas_price_wei + self.data_fee_wei


class CloseRequestedLog(msgspec.Struct, frozen=True, gc=False):
    """The payer requested a close; it may withdraw after `grace_ends_at`."""

    channel_id: ChannelId
    grace_ends_at: int


class SettledLog(msgspec.Struct, frozen=True, gc=False):
    """The payee received `paid`; `settled` is the new total."""

    channel_id: ChannelId
    paid: int
    settled: int


class ChannelClosedLog(msgspec.Struct, frozen=True, gc=False):
    """The channel was closed: the payee's total, and the refund to the payer."""

    channel_id: ChannelId
    settled: int
    refunded: int


class EntrySkippedLog(msgspec.Struct, frozen=True, gc=False):
    """A batch skipped this channel, for the reason a single call would have reverted with."""

    channel_id: ChannelId
    reason: "RevertReason"


class BatchEntry(msgspec.Struct, frozen=True, gc=False):
    """A voucher to settle or close with."""

    channel_id: ChannelId
    cumulative_amount: int
    signature: bytes

    def __repr__(self) -> str:
        return f"BatchEntry(0x{self.channel_id.hex()}, {self.cumulative_amount})"


class RevertReason(enum.Enum):
    """Why a contract refused. `settlement.abi` maps the encoded reverts to these."""

    CHANNEL_ALREADY_EXISTS = "the channel exists already"
    CHANNEL_NOT_FOUND = "no such channel"
    CHANNEL_FINALIZED = "the channel has ended"
    NOT_PAYEE = "the sender is not the payee"
    NOT_PAYER = "the sender is not the payer"
    AMOUNT_NOT_INCREASING = "the amount is not above what is settled"
    AMOUNT_EXCEEDS_DEPOSIT = "the amount is above the deposit"
    INVALID_SIGNATURE = "the signature is not the signer's"
    NONCE_MISMATCH = "the authorization's nonce is not the one its contents demand"
    NONCE_ALREADY_USED = "the authorization was used before"
    AUTHORIZATION_EXPIRED = "the authorization has expired"
    CLOSE_NOT_READY = "no close was requested, or its grace period still runs"
    ZERO_DEPOSIT = "the deposit is zero"
    DEPOSIT_OVERFLOW = "the deposit is larger than the escrow can hold"
    INVALID_PAYEE = "the payee is the zero address"
    INVALID_TOKEN = "the escrow serves another token"  # noqa: S105 -- a token of value
    TOKEN_REFUSED = "the token refused to move"  # noqa: S105 -- the same
    NOTHING_TO_CLAIM = "no refund is held for this payer"
    OUT_OF_GAS = "it ran out of gas"
    UNKNOWN = "it gave no reason this program knows"
