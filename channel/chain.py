"""What the off-chain engine asks of the chain: Protocols and values, no code.

`settlement` implements them, `mpp_session.wiring` joins the two, and `channel` never learns that a
node, a socket or a private key exists.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from channel.types import (
    Address,
    ChannelFact,
    ChannelId,
    ChannelKey,
    ChannelTerms,
    Redacted,
    TxHash,
    VerifiedVoucher,
)

__all__ = [
    "AuthorizedPull",
    "ChainReader",
    "ChannelCloser",
    "CloseResult",
    "DepositSponsor",
    "OpenedLog",
    "PayerChain",
    "PayerMeans",
    "PermittedPull",
    "SponsoredDeposit",
    "ToppedUpLog",
    "TransactionEvidence",
]


class OpenedLog(msgspec.Struct, frozen=True, gc=False):
    """A `ChannelOpened` event emitted by our escrow."""

    channel_id: ChannelId
    log_index: int


class ToppedUpLog(msgspec.Struct, frozen=True, gc=False):
    """A `TopUp` event emitted by our escrow."""

    channel_id: ChannelId
    additional_deposit: int
    log_index: int


class TransactionEvidence(msgspec.Struct, frozen=True, gc=False):
    """A transaction mined with success, and what our escrow said in it (OPEN-03, F-84)."""

    tx_hash: TxHash
    block_number: int
    confirmations: int
    """Blocks from the transaction's to the head, both counted: 1 when it is in the head."""
    opened: tuple[OpenedLog, ...]
    topped_up: tuple[ToppedUpLog, ...]


class CloseResult(msgspec.Struct, frozen=True, gc=False):
    """A channel that was closed, and the transaction that did it."""

    tx_hash: TxHash
    fact: ChannelFact
    gas_used: int


class AuthorizedPull(msgspec.Struct, frozen=True, gc=False):
    """How a deposit is taken by EIP-3009. The window is exclusive at both ends."""

    valid_after: int
    """Unix seconds of the chain."""
    valid_before: int
    nonce: bytes
    """Derived from the terms: the escrow computes it again."""


class PermittedPull(msgspec.Struct, frozen=True, gc=False):
    """How a deposit is taken by Permit2, with the channel as the witness."""

    nonce: int
    """Unordered."""
    deadline: int
    """Unix seconds of the chain, inclusive."""


class SponsoredDeposit(Redacted, frozen=True, kw_only=True):
    """A deposit that its funder signed and we submit, at our gas (RELAY-06)."""

    key: ChannelKey
    opens: ChannelTerms | None
    """The terms of the channel it opens; None when it tops one up."""
    salt: bytes
    """Of the channel, or of the top-up; empty for a top-up by Permit2, which has none."""
    funder: Address
    amount: int
    """In base units."""
    pull: AuthorizedPull | PermittedPull
    signature: bytes
    """The funder's."""


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
        """Return of each channel the deposit that a second node shows, too: at most the fact's.

        Where one node is all there is, its word counts.
        """

    async def read_transaction(self, tx_hash: TxHash) -> TransactionEvidence | None:
        """Return a mined, successful transaction, or None when it has no receipt yet.

        Raises:
            TransactionRevertedError: It was mined with status 0; that is final (F-76).
        """

    async def has_code(self, address: Address) -> bool:
        """Whether there is a contract at an address, or code that its key delegated to."""

    async def is_valid_wallet_signature(
        self, signer: Address, digest: bytes, signature: bytes
    ) -> bool:
        """Ask a contract signer by ERC-1271, with the escrow's own gas cap (ENC-07)."""


class ChannelCloser(Protocol):
    """Gets a close mined. Web workers hold no key: an implementation may wait for the settler."""

    async def close_channel(
        self, key: ChannelKey, cumulative_amount: int, signature: bytes
    ) -> CloseResult:
        """Close the channel at `cumulative_amount` and return once it is mined.

        Repeating it for a channel that is closed already returns that close.

        Raises:
            TransactionRevertedError: The contract refused; nothing changed on chain.
            SettlementPendingError: Not mined within the bound; ask again (F-75).
            ChainUnavailableError: Nothing was broadcast.
        """


class DepositSponsor(Protocol):
    """Gets deposits mined that their funders only signed (`feePayer`).

    Web workers hold no key: `take` makes the deposit durable for whoever does, `wait` waits for
    it. A deposit is known by what was signed, so that a repeated credential is the same deposit:
    it is never broadcast twice.
    """

    async def is_taken(self, deposit: SponsoredDeposit) -> bool:
        """Whether this very deposit was taken before, and is under way, made, or reverted."""

    async def take(
        self, deposit: SponsoredDeposit, *, by_wallet: bool, first: VerifiedVoucher | None
    ) -> None:
        """Simulate the deposit, keep to the operator's bounds, and make it durable.

        `first` is an opening's first voucher: with it the books can take the channel even if its
        payer never comes back.

        One that somebody else's transaction has made meanwhile, exactly as it was signed, is
        adopted: nothing is broadcast for it (AMB-10). `by_wallet` says that no key of the
        funder's made the signature, so that only a contract there may take it.

        Raises:
            AuthorizationExpiredError: Not valid on the chain now, or not for long enough.
            ChannelFinalizedError: The payer has asked for the rest of the channel.
            TransactionRevertedError: The simulation refused; nothing was broadcast.
            SponsoringPausedError: The gas budget is used up, or gas costs more than we pay.
            TooManyRequestsError: The funder has had as many as are paid for.
            ChainUnavailableError: No node could say; nothing was broadcast.
        """

    async def wait(self, deposit: SponsoredDeposit) -> TxHash:
        """Return the transaction that made the deposit, once it is mined; waits, bounded.

        Raises:
            TransactionRevertedError: It was refused, by the chain or on its way there.
            ChannelFinalizedError: It was not sent: the payer has asked for the rest.
            SettlementPendingError: Not mined within the bound; ask again (F-75).
            SponsoringPausedError: It was not sent: gas rose above what we pay. Ask again.
        """


class PayerMeans(msgspec.Struct, frozen=True, kw_only=True):
    """With what an account can fund a channel, as of the head (CLIENT-02)."""

    balance: int
    """Of the token, in base units."""
    can_pay_gas: bool
    """It can send transactions of its own, and has ether for a few."""
    token_domain: bytes | None
    """EIP-712 domain separator of the token; None when it is not what its own words make it."""
    permit2_allowance: int | None
    """What Permit2 may move for it; None when there is no Permit2 at that address."""
    now: int
    """Unix seconds that the next block has at least: from here on a signature's window counts."""
    head_at: int
    """Unix seconds of the newest block. What is over by these is over, whatever clocks say."""


class PayerChain(Protocol):
    """What a paying client needs of one chain, with the payer's account behind it."""

    @property
    def chain_id(self) -> int:
        """The chain the account is on."""

    @property
    def account(self) -> Address:
        """The account that deposits."""

    async def require_escrow(self, escrow: Address, token: Address) -> None:
        """Check that `escrow` is the deployment we trust for `token` (F-91).

        Raises:
            AgentError: It is not; depositing there could lose the deposit.
        """

    async def read_channel(
        self, escrow: Address, channel_id: ChannelId, *, block_number: int | None = None
    ) -> ChannelFact | None:
        """Return the channel as of a block (the head if None), or None if it never existed."""

    async def read_means(self, token: Address, permit2: Address) -> PayerMeans:
        """Return with what the account can fund a channel in `token`."""

    async def sign(self, digest: bytes) -> bytes:
        """Sign for the account: 65 bytes of a key, whatever a contract wallet wants otherwise."""

    async def find_use(self, *, token: Address, authorization: bytes) -> int | None:
        """Return a block by which this EIP-3009 nonce of the account was used, or None.

        Used is also one that was cancelled: in either case it moves nothing any more.
        """

    async def find_permit_use(self, *, escrow: Address, nonce: int) -> int | None:
        """Return a block by which this Permit2 nonce of the account was used, or None.

        Asked is the Permit2 that the escrow itself takes money by, whatever a server names.
        """

    async def approve_permit2(self, *, token: Address, permit2: Address) -> None:
        """Let Permit2 move the token, once and for all; each move still takes a signature.

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
        """Approve if needed, open, and return the opening transaction once it is mined.

        Raises:
            TransactionRevertedError: The escrow or the token refused; nothing was deposited.
            SettlementPendingError: Broadcast and not mined within the bound: find it later by
                `find_opening`, never open again for it (F-75).
        """

    async def find_opening(self, *, escrow: Address, channel_id: ChannelId) -> TxHash | None:
        """Return the transaction whose `ChannelOpened` log shows this channel, or None (CLIENT-05).

        An agent that stopped between broadcast and answer knows its salt, hence the channel's id,
        but not the transaction, which an `open` credential of type `hash` must name.
        """

    async def top_up(
        self, *, escrow: Address, token: Address, channel_id: ChannelId, amount: int
    ) -> TxHash:
        """Approve if needed, top up, and return the transaction once it is mined."""

    async def request_close(self, *, escrow: Address, channel_id: ChannelId) -> TxHash:
        """Start the grace period, without the payee's help (CLOSE-08)."""

    async def withdraw(self, *, escrow: Address, channel_id: ChannelId) -> TxHash:
        """Take what is left after the grace period."""
