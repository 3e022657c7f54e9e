"""What the off-chain engine needs from the chain: Protocols and values, no code.

`settlement` implements the Protocols and `mpp_session.wiring` connects the two, so that `channel`
depends on no node, socket or private key.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from channel.errors import SettlementPendingError, TransactionRevertedError
from channel.types import (
    Address,
    ChannelFact,
    ChannelId,
    ChannelKey,
    ChannelTerms,
    Redacted,
    TokenUnit,
    TxHash,
    VerifiedVoucher,
)

__all__ = [
    "AuthorizedPull",
    "ChainReader",
    "CloseRefusals",
    "DepositSponsor",
    "EscrowInterface",
    "OpenedLog",
    "PayerChain",
    "PayerMeans",
    "PermittedPull",
    "SponsoredDeposit",
    "ToppedUpLog",
    "TransactionBroadcaster",
    "TransactionEvidence",
]


class EscrowInterface(msgspec.Struct, frozen=True, kw_only=True):
    """How an escrow contract is called, and the name under which its vouchers are signed.

    Everything else is the same in every method's escrow: the calls of the payee and the payer, the
    events, and the members of a channel. The defaults describe `SessionEscrow` of `contracts/`.
    """

    domain: str = "EVM Payment Channel"
    """Name of the EIP-712 domain, version 1."""
    read_many: str = "getChannels(bytes32[])"
    """Reads many channels in one call."""
    top_up: str = "topUp(bytes32,uint128)"
    has_extensions: bool = True
    """It serves one token, which `TOKEN()` returns, settles and closes in batches, takes the
    payee's and the funder's signatures from any sender, and asks contract signers (ERC-1271)."""


class OpenedLog(msgspec.Struct, frozen=True, gc=False):
    """A `ChannelOpened` event that the configured escrow emitted."""

    channel_id: ChannelId
    log_index: int


class ToppedUpLog(msgspec.Struct, frozen=True, gc=False):
    """A `TopUp` event that the configured escrow emitted."""

    channel_id: ChannelId
    additional_deposit: int
    log_index: int


class TransactionEvidence(msgspec.Struct, frozen=True, gc=False):
    """A successful, mined transaction, and the escrow's events in it (OPEN-03, F-84)."""

    tx_hash: TxHash
    block_number: int
    confirmations: int
    """Blocks from the transaction's to the head, both included: 1 when it is in the head."""
    opened: tuple[OpenedLog, ...]
    topped_up: tuple[ToppedUpLog, ...]


class AuthorizedPull(msgspec.Struct, frozen=True, gc=False):
    """How EIP-3009 moves a deposit. Both ends of the window are exclusive."""

    valid_after: int
    """Unix seconds of the chain, exclusive."""
    valid_before: int
    nonce: bytes
    """Derived from the terms; the escrow computes it again and compares."""


class PermittedPull(msgspec.Struct, frozen=True, gc=False):
    """How Permit2 moves a deposit, with the channel as the witness."""

    nonce: int
    """Unordered, as Permit2 defines it."""
    deadline: int
    """Unix seconds of the chain, inclusive."""


class SponsoredDeposit(Redacted, frozen=True, kw_only=True):
    """A deposit that its funder signed and the payee submits, paying the gas (RELAY-06)."""

    key: ChannelKey
    opens: ChannelTerms | None
    """The terms of the new channel; None for a top-up."""
    salt: bytes
    """Of the channel or of the top-up; empty for a top-up by Permit2, which has none."""
    funder: Address
    amount: int
    """In base units."""
    pull: AuthorizedPull | PermittedPull
    signature: bytes
    """The funder's signature."""


class ChainReader(Protocol):
    """Reads one escrow on one chain. Every method may raise `ChainUnavailableError`."""

    @property
    def chain_id(self) -> int:
        """The chain this escrow is on."""

    @property
    def escrow(self) -> Address:
        """The escrow's address."""

    async def read_channel(
        self, channel_id: ChannelId, *, block_number: int | None = None
    ) -> ChannelFact | None:
        """Return the channel as of a block (the head if None), or None if it never existed."""

    async def confirm_deposits(self, facts: Sequence[ChannelFact]) -> list[int]:
        """Return for each channel the deposit that a second node confirms: at most the fact's.

        With a single configured node, return that node's deposit.
        """

    async def read_transaction(self, tx_hash: TxHash) -> TransactionEvidence | None:
        """Return a mined, successful transaction, or None when it has no receipt yet.

        Raises:
            TransactionRevertedError: It was mined with status 0; that is final (F-76).
        """

    async def has_code(self, address: Address) -> bool:
        """Whether the address has code: a contract, or code that its key delegated to."""

    async def is_valid_wallet_signature(
        self, signer: Address, digest: bytes, signature: bytes
    ) -> bool:
        """Ask a contract signer by ERC-1271, with the same gas cap as the escrow's (ENC-07)."""


class TransactionBroadcaster(Protocol):
    """Sends transactions that their payers signed, in methods whose credentials carry them."""

    async def broadcast(self, raw: bytes) -> bool:
        """Send a signed transaction; return whether a node took it.

        A node also refuses a transaction that it already has, or that is mined.

        Raises:
            ChainUnavailableError: No node answered.
        """


class CloseRefusals(Protocol):
    """Why the settler does not get a close mined: the ledger shows only that it does not."""

    async def why_given_up(self, key: ChannelKey) -> TransactionRevertedError | None:
        """Return the escrow's refusal of a close that the settler gave up; None if unknown."""

    async def why_pending(self, key: ChannelKey) -> SettlementPendingError | None:
        """Return the escrow's refusal of a close that the settler repeats; None if unknown."""


class DepositSponsor(Protocol):
    """Gets deposits mined that their funders only signed (`feePayer`).

    Web workers hold no key: `take` makes the deposit durable for the settler, and `wait` waits
    for the settler's transaction. What was signed identifies a deposit, so a repeated credential
    names the same deposit and is never broadcast twice.
    """

    async def is_taken(self, deposit: SponsoredDeposit) -> bool:
        """Whether exactly this deposit was taken before: it is under way, mined, or reverted."""

    async def take(
        self, deposit: SponsoredDeposit, *, by_wallet: bool, first: VerifiedVoucher | None
    ) -> None:
        """Simulate the deposit, check the operator's bounds, and make the deposit durable.

        `first` is the first voucher of an opening. With it the ledger can record the channel even
        if the payer never comes back.

        If a third party's transaction has made exactly this deposit meanwhile, adopt it and
        broadcast nothing (AMB-10). `by_wallet` means that no key of the funder made the signature,
        so only a contract at the funder's address can accept it.

        Raises:
            AuthorizationExpiredError: Not valid on the chain now, or not for long enough.
            ChannelFinalizedError: The payer has requested a close of the channel.
            TransactionRevertedError: The simulation reverted; nothing was broadcast.
            SponsoringPausedError: The gas budget is used up, or gas costs more than the bound.
            TooManyRequestsError: The funder has used up its number of sponsored deposits.
            ChainUnavailableError: No node answered; nothing was broadcast.
        """

    async def wait(self, deposit: SponsoredDeposit) -> TxHash:
        """Return the transaction that made the deposit, once it is mined. The wait is bounded.

        Raises:
            TransactionRevertedError: The chain or the simulation before it refused.
            ChannelFinalizedError: Not sent: the payer has requested a close of the channel.
            SettlementPendingError: Not mined within the bound; ask again (F-75).
            SponsoringPausedError: Not sent: gas costs more than the bound. Ask again.
        """


class PayerMeans(msgspec.Struct, frozen=True, kw_only=True):
    """What an account can fund a channel with, as of the newest block (CLIENT-02)."""

    balance: int
    """Of the token, in base units."""
    can_pay_gas: bool
    """The account can send transactions, and has ether for a few."""
    token_domain: bytes | None
    """EIP-712 domain separator of the token; None when it does not match the token's metadata."""
    permit2_allowance: int | None
    """What Permit2 may move for the account; None when that address has no Permit2."""
    now: int
    """Unix seconds that the next block has at least. Validity windows are compared with this."""
    head_at: int
    """Unix seconds of the newest block. A deadline before this has passed on every clock."""


class PayerChain(Protocol):
    """What a paying client needs from one chain, for the payer's account."""

    @property
    def chain_id(self) -> int:
        """The chain the account is on."""

    @property
    def account(self) -> Address:
        """The account that deposits."""

    async def require_escrow(self, escrow: Address, token: Address) -> None:
        """Check that `escrow` is the trusted deployment for `token` (F-91).

        Raises:
            AgentError: It is not, so a deposit there could be lost.
        """

    async def read_channel(
        self, escrow: Address, channel_id: ChannelId, *, block_number: int | None = None
    ) -> ChannelFact | None:
        """Return the channel as of a block (the head if None), or None if it never existed."""

    async def read_means(self, token: Address, permit2: Address) -> PayerMeans:
        """Return what the account can fund a channel in `token` with."""

    async def read_token_unit(self, token: Address) -> TokenUnit | None:
        """Return what a token calls itself, for people; None when it does not say."""

    async def sign(self, digest: bytes) -> bytes:
        """Sign with the account's key, and return 65 bytes. A contract wallet may differ."""

    async def find_use(self, *, token: Address, authorization: bytes) -> int | None:
        """Return a block by which this EIP-3009 nonce of the account was used, or None.

        A cancelled nonce counts as used: in either case it can move nothing any more.
        """

    async def find_permit_use(self, *, escrow: Address, nonce: int) -> int | None:
        """Return a block by which this Permit2 nonce of the account was used, or None.

        The question goes to the Permit2 that the escrow uses, not to one that a server names.
        """

    async def approve_permit2(self, *, token: Address, permit2: Address) -> None:
        """Allow Permit2 to move the token, without limit. Each move still needs a signature.

        Raises:
            TransactionRevertedError: The token refused.
            SettlementPendingError: Broadcast and not mined within the bound.
        """

    async def open_channel(
        self,
        *,
        escrow: Address,
        payee: Address,
        token: Address,
        deposit: int,
        salt: bytes,
        authorized_signer: Address,
    ) -> TxHash:
        """Approve if needed, open the channel, and return the transaction once it is mined.

        Raises:
            TransactionRevertedError: The escrow or the token refused; nothing was deposited.
            SettlementPendingError: Broadcast and not mined within the bound. Find it later with
                `find_opening`; a second call would deposit twice (F-75).
        """

    async def find_opening(self, *, escrow: Address, channel_id: ChannelId) -> TxHash | None:
        """Return the transaction whose `ChannelOpened` log shows this channel, or None (CLIENT-05).

        An agent that stopped between broadcast and answer knows its salt, and hence the id of the
        channel. It does not know the transaction, which an `open` credential of type `hash` names.
        """

    async def top_up(
        self, *, escrow: Address, token: Address, channel_id: ChannelId, amount: int
    ) -> TxHash:
        """Approve if needed, top up, and return the transaction once it is mined."""

    async def request_close(self, *, escrow: Address, channel_id: ChannelId) -> TxHash:
        """Start the grace period, without the payee's help (CLOSE-08)."""

    async def withdraw(self, *, escrow: Address, channel_id: ChannelId) -> TxHash:
        """Withdraw the remaining deposit after the grace period."""
