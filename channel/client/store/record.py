"""An agent's record of one channel, and how it may change (pure).

The agent counts for itself. `received` is the value of the units that arrived, `lost` what broken
connections may have lost. No voucher ever exceeds

    received + lost + in flight + one step

regardless of what a server asks (CLIENT-06, F-94). `in flight` is the first cost of the requests
that wait for an answer. A server's own figures only ever lower what is signed in advance, never
raise it (F-35). What they omit stays claimable, because the server may charge it later: a receipt
does not show what is still reserved for a request whose caller has left.
"""

from collections.abc import Collection
from typing import Literal

import msgspec
from msgspec.structs import replace

from channel.errors import OverclaimError, ReceiptViolationError
from channel.types import Address, ChannelFact, ChannelKey, ChannelTerms, TxHash
from channel.wire.funding import Deposit
from channel.wire.receipt import Receipt

__all__ = [
    "Account",
    "AccountState",
    "Scope",
    "adopt_fact",
    "adopt_receipt",
    "choose_amount",
    "count_lost",
    "count_received",
    "count_unread",
    "require_counted",
    "require_receipt",
]

AccountState = Literal["opening", "open", "closing", "stopped", "closed"]


class Scope(msgspec.Struct, frozen=True, gc=False):
    """The payments that may share a channel: one origin, payer, payee, token and escrow."""

    origin: str
    chain_id: int
    escrow: Address
    payer: Address
    payee: Address
    token: Address


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One channel as its payer sees it. Amounts in base units."""

    key: ChannelKey
    origin: str
    """Scheme, host and port of the only server that gets this channel's vouchers."""
    url: str
    """The URL for management requests: the last one that accepted one."""
    terms: ChannelTerms
    salt: bytes
    """Random, and kept: with it the channel is found and left without the server (CLIENT-12)."""
    state: AccountState
    deposit: int
    """As the chain showed it; while `opening`, the planned deposit."""
    opened_at: int
    opening: Deposit | None = None
    """The signed deposit that opens it; kept in case the server must be shown it again."""
    open_tx: TxHash | None = None
    top_up: Deposit | None = None
    """A signed deposit that is not known to be on chain; the next top-up reuses it (F-75)."""
    goal: int = 0
    """The deposit after all top-ups that were sent as transactions are mined; durable before one is
    sent."""
    end_tx: TxHash | None = None
    """The close or withdrawal."""
    signed: int = 0
    """Greatest amount ever signed; durable before the voucher is sent."""
    vouchers: int = 0
    """The number of different amounts that were signed."""
    received: int = 0
    """Value of the units that arrived, by the agent's count."""
    units: int = 0
    """The number of those units."""
    lost: int = 0
    """Value that broken connections may have lost."""
    waived: int = 0
    """Part of `received` and `lost` that the server's last receipt did not charge."""
    accepted: int = 0
    """According to the last receipt, like `spent`."""
    spent: int = 0
    receipt: str = ""
    """The last receipt as received, kept as evidence."""
    settled: int = 0
    """What the payee was paid on chain, once known."""
    close_requested_at: int = 0

    @property
    def scope(self) -> Scope:
        """The payments that this channel may be used for."""
        terms = self.terms
        key = self.key
        return Scope(self.origin, key.chain_id, key.escrow, terms.payer, terms.payee, terms.token)

    @property
    def counted(self) -> int:
        """What the server has spent of the signed vouchers, as far as the agent knows."""
        return self.claimable - self.waived

    @property
    def claimable(self) -> int:
        """What the server may rightly have spent of the signed vouchers, or may still spend."""
        return self.received + self.lost

    @property
    def ahead(self) -> int:
        """What is signed beyond what was delivered; an absent payee may settle that too."""
        return max(0, min(self.signed, self.deposit) - self.counted)

    @property
    def locked(self) -> int:
        """What is or may be deposited, from before it is sent until the channel has ended."""
        if self.state == "closed":
            return 0
        signed = 0 if self.top_up is None else self.top_up.amount
        return max(self.deposit, self.goal) + signed

    @property
    def refund(self) -> int:
        """What is or was paid back if nothing more is bought."""
        return self.deposit - (self.settled if self.state == "closed" else self.spent)


def choose_amount(
    account: Account,
    *,
    required: int,
    ahead: int,
    allowance: int,
    min_delta: int,
) -> int:
    """Return the cumulative amount of the next voucher: at least `required`, and never lower.

    Args:
        account: The channel as stored now.
        required: What must be covered; the caller has checked it against deposit and policy.
        ahead: What should be covered, so that the server asks less often. Reduced before anything
            is refused, and not signed for while half of it is left.
        allowance: The most by which `claimable` may be exceeded: in flight and one step.
        min_delta: The least increase that the server accepts, unless it reaches the deposit
            (AMB-17).

    Raises:
        OverclaimError: `required`, or the least increase, exceeds the agent's own count.
    """
    reach = min(ahead, account.claimable + allowance, account.deposit)
    least = max(required, account.signed + 1)
    if account.signed > 0:
        least = max(least, min(account.signed + min_delta, account.deposit))
    if required <= account.signed:
        is_plenty = 2 * (account.signed - account.counted) > reach - account.counted
        return account.signed if is_plenty or least > reach else reach
    require_counted(account, least, allowance)
    return max(least, reach)


def require_counted(account: Account, required: int, allowance: int) -> None:
    """Check that the agent's count plus `allowance` reaches `required`.

    Raises:
        OverclaimError: It does not, and this amount was not signed before either.
    """
    ceiling = max(account.claimable + allowance, account.signed)
    if required > ceiling:
        raise OverclaimError(asked=required, allowed=ceiling, received=account.claimable)


def count_received(account: Account, *, value: int, units: int) -> Account:
    """Add units that arrived."""
    return replace(account, received=account.received + value, units=account.units + units)


def count_unread(account: Account, *, value: int) -> Account:
    """Grant that `value` was delivered and not read, by the caller's own choice.

    What the server did not charge is granted first, so that it stays claimable only once.
    """
    back = min(value, account.waived)
    return replace(account, waived=account.waived - back, received=account.received + value - back)


def count_lost(account: Account, *, value: int, lost_max: int) -> Account:
    """Grant that up to `value` was delivered into a broken connection, within a bound.

    Never more than was signed, which the server holds in any case. What the server did not charge
    is granted first.
    """
    value = max(0, min(value, account.signed - account.counted))
    back = min(value, account.waived)
    more = max(0, min(value - back, lost_max - account.lost))
    return replace(account, waived=account.waived - back, lost=account.lost + more)


def require_receipt(
    account: Account, receipt: Receipt, *, challenge_ids: Collection[str] | None, spent_min: int
) -> None:
    """Check a receipt against what was signed and stated before (CLIENT-09).

    Args:
        account: The channel as stored now.
        receipt: The server's receipt.
        challenge_ids: The challenges that were answered; None if it may name an older one, as a
            repeated answer does.
        spent_min: `spent` as known when the request was sent.

    Raises:
        ReceiptViolationError: It names another channel, or impossible amounts.
    """
    said_where = (receipt.chain_id, receipt.channel_id)
    if said_where != (account.key.chain_id, account.key.channel_id):
        raise ReceiptViolationError(
            field="channelId",
            said=f"0x{receipt.channel_id.hex()} on chain {receipt.chain_id}",
            expected=f"0x{account.key.channel_id.hex()} on chain {account.key.chain_id}",
        )
    if challenge_ids is not None and receipt.challenge_id not in challenge_ids:
        raise ReceiptViolationError(
            field="challengeId", said=receipt.challenge_id, expected=" or ".join(challenge_ids)
        )
    if receipt.accepted > account.signed:
        raise ReceiptViolationError(
            field="acceptedCumulative",
            said=receipt.accepted,
            expected=f"at most the {account.signed} that was signed",
        )
    if receipt.spent > receipt.accepted:
        raise ReceiptViolationError(
            field="spent", said=receipt.spent, expected=f"at most accepted, {receipt.accepted}"
        )
    if receipt.spent < spent_min:
        raise ReceiptViolationError(
            field="spent", said=receipt.spent, expected=f"no less than {spent_min} before"
        )


def adopt_receipt(account: Account, receipt: Receipt, text: str, *, is_final: bool) -> Account:
    """Update the record from a receipt that passed `require_receipt`.

    Args:
        account: The channel as stored now.
        receipt: The receipt.
        text: The receipt as received.
        is_final: Whether nothing is in flight on this channel any more, so that `spent` is
            complete. If it is below the agent's count, less is signed in advance (F-35).
    """
    is_newer = receipt.spent >= account.spent
    spent = max(account.spent, receipt.spent)
    uncharged = max(0, account.claimable - spent)
    return replace(
        account,
        accepted=max(account.accepted, receipt.accepted),
        spent=spent,
        receipt=text if is_newer else account.receipt,
        waived=uncharged if is_final else min(account.waived, uncharged),
    )


def adopt_fact(account: Account, fact: ChannelFact) -> Account:
    """Update the record from the chain: deposit, payout, a pending close, the end (CLIENT-05)."""
    state = account.state
    if fact.is_finalized:
        state = "closed"
    elif fact.close_requested_at:
        state = "closing"
    return replace(
        account,
        deposit=fact.deposit,
        settled=fact.settled,
        close_requested_at=fact.close_requested_at,
        state=state,
    )
