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

from channel.errors import OverclaimError, ReceiptViolationError, WireError
from channel.methods.registry import DEFAULT
from channel.types import Address, ChannelFact, ChannelKey, ChannelTerms, TxHash
from channel.wire.funding import (
    Deposit,
)
from channel.wire.receipt import Receipt, parse_receipt

__all__ = [
    "ChannelRecord",
    "RecordState",
    "Scope",
    "adopt_fact",
    "adopt_opening",
    "adopt_receipt",
    "choose_amount",
    "count_lost",
    "count_received",
    "count_unread",
    "read_receipt",
    "require_counted",
    "require_receipt",
    "take_receipt",
]

RecordState = Literal["opening", "open", "closing", "stopped", "closed"]


class Scope(msgspec.Struct, frozen=True, gc=False):
    """The payments that may share a channel: one origin, payer, payee, token and escrow."""

    origin: str
    chain_id: int
    escrow: Address
    payer: Address
    payee: Address
    token: Address


class ChannelRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One channel as its payer sees it. Amounts in base units."""

    key: ChannelKey
    origin: str
    """Scheme, host and port of the only server that gets this channel's vouchers."""
    url: str
    """The URL for management requests: the last one that accepted one."""
    terms: ChannelTerms
    salt: bytes
    """Random, and kept: with it the channel is found and left without the server (CLIENT-12)."""
    state: RecordState
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
    """The last receipt as received, kept as evidence. Of those with one `spent` it is the one that
    states what a request used."""
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
    record: ChannelRecord,
    *,
    required: int,
    ahead: int,
    allowance: int,
    min_delta: int,
) -> int:
    """Return the cumulative amount of the next voucher: at least `required`, and never lower.

    Args:
        record: The channel as stored now.
        required: What must be covered; the caller has checked it against deposit and policy.
        ahead: What should be covered, so that the server asks less often. Reduced before anything
            is refused, and not signed for while half of it is left.
        allowance: The most by which `claimable` may be exceeded: in flight and one step.
        min_delta: The least increase that the server accepts, unless it reaches the deposit
            (AMB-17).

    Raises:
        OverclaimError: `required`, or the least increase, exceeds the agent's own count.
    """
    reach = min(ahead, record.claimable + allowance, record.deposit)
    least = max(required, record.signed + 1)
    if record.signed > 0:
        least = max(least, min(record.signed + min_delta, record.deposit))
    if required <= record.signed:
        is_plenty = 2 * (record.signed - record.counted) > reach - record.counted
        return record.signed if is_plenty or least > reach else reach
    require_counted(record, least, allowance)
    return max(least, reach)


def require_counted(record: ChannelRecord, required: int, allowance: int) -> None:
    """Check that the agent's count plus `allowance` reaches `required`.

    Raises:
        OverclaimError: It does not, and this amount was not signed before either.
    """
    ceiling = max(record.claimable + allowance, record.signed)
    if required > ceiling:
        raise OverclaimError(asked=required, allowed=ceiling, received=record.claimable)


def count_received(record: ChannelRecord, *, value: int, units: int) -> ChannelRecord:
    """Add units that arrived."""
    return replace(record, received=record.received + value, units=record.units + units)


def count_unread(record: ChannelRecord, *, value: int) -> ChannelRecord:
    """Grant that `value` was delivered and not read, by the caller's own choice.

    What the server did not charge is granted first, so that it stays claimable only once.
    """
    back = min(value, record.waived)
    return replace(record, waived=record.waived - back, received=record.received + value - back)


def count_lost(record: ChannelRecord, *, value: int, lost_max: int) -> ChannelRecord:
    """Grant that up to `value` was delivered into a broken connection, within a bound.

    Never more than was signed, which the server holds in any case. What the server did not charge
    is granted first.
    """
    value = max(0, min(value, record.signed - record.counted))
    back = min(value, record.waived)
    more = max(0, min(value - back, lost_max - record.lost))
    return replace(record, waived=record.waived - back, lost=record.lost + more)


def read_receipt(text: str) -> Receipt:
    """Return the parsed `Payment-Receipt`.

    Raises:
        ReceiptViolationError: It cannot be parsed.
    """
    try:
        return parse_receipt(text)
    except WireError as error:
        raise ReceiptViolationError(
            field="Payment-Receipt", said=f"something unreadable ({error})", expected="a receipt"
        ) from error


def require_receipt(
    record: ChannelRecord,
    receipt: Receipt,
    *,
    challenge_ids: Collection[str] | None,
    spent_min: int,
) -> None:
    """Check a receipt against what was signed and stated before (CLIENT-09).

    Args:
        record: The channel as stored now.
        receipt: The server's receipt.
        challenge_ids: The challenges that were answered; None if it may name an older one, as a
            repeated answer does.
        spent_min: `spent` as known when the request was sent.

    Raises:
        ReceiptViolationError: It names another method or channel, or impossible amounts.
    """
    if receipt.method != DEFAULT.name:
        raise ReceiptViolationError(field="method", said=receipt.method, expected=DEFAULT.name)
    said_where = (receipt.chain_id, receipt.channel_id)
    if said_where != (record.key.chain_id, record.key.channel_id):
        raise ReceiptViolationError(
            field="channelId",
            said=f"0x{receipt.channel_id.hex()} on chain {receipt.chain_id}",
            expected=f"0x{record.key.channel_id.hex()} on chain {record.key.chain_id}",
        )
    if challenge_ids is not None and receipt.challenge_id not in challenge_ids:
        raise ReceiptViolationError(
            field="challengeId", said=receipt.challenge_id, expected=" or ".join(challenge_ids)
        )
    if receipt.accepted > record.signed:
        raise ReceiptViolationError(
            field="acceptedCumulative",
            said=receipt.accepted,
            expected=f"at most the {record.signed} that was signed",
        )
    if receipt.spent > receipt.accepted:
        raise ReceiptViolationError(
            field="spent", said=receipt.spent, expected=f"at most accepted, {receipt.accepted}"
        )
    if receipt.spent < spent_min:
        raise ReceiptViolationError(
            field="spent", said=receipt.spent, expected=f"no less than {spent_min} before"
        )


def adopt_receipt(
    record: ChannelRecord, receipt: Receipt, text: str, *, is_final: bool
) -> ChannelRecord:
    """Update the record from a receipt that passed `require_receipt`.

    Args:
        record: The channel as stored now.
        receipt: The receipt.
        text: The receipt as received.
        is_final: Whether nothing is in flight on this channel any more, so that `spent` is
            complete. If it is below the agent's count, less is signed in advance (F-35).
    """
    is_of_request = receipt.units is not None or receipt.usage is not None
    is_newer = receipt.spent > record.spent or (
        receipt.spent == record.spent and (is_of_request or not record.receipt)
    )
    spent = max(record.spent, receipt.spent)
    uncharged = max(0, record.claimable - spent)
    return replace(
        record,
        accepted=max(record.accepted, receipt.accepted),
        spent=spent,
        receipt=text if is_newer else record.receipt,
        waived=uncharged if is_final else min(record.waived, uncharged),
    )


def take_receipt(
    record: ChannelRecord,
    receipt: Receipt,
    text: str,
    *,
    challenge_ids: Collection[str] | None,
    spent_min: int,
    is_final: bool,
) -> ChannelRecord:
    """Check a receipt and update the record: see `require_receipt` and `adopt_receipt`."""
    require_receipt(record, receipt, challenge_ids=challenge_ids, spent_min=spent_min)
    return adopt_receipt(record, receipt, text, is_final=is_final)


def adopt_opening(record: ChannelRecord, url: str, open_tx: TxHash | None) -> ChannelRecord:
    """Update the record of a channel that its server has opened, at this URL."""
    state = "open" if record.state == "opening" else record.state
    return replace(record, state=state, url=url, open_tx=open_tx)


def adopt_fact(record: ChannelRecord, fact: ChannelFact) -> ChannelRecord:
    """Update the record from the chain: deposit, payout, a pending close, the end (CLIENT-05)."""
    state = record.state
    if fact.is_finalized:
        state = "closed"
    elif fact.close_requested_at:
        state = "closing"
    return replace(
        record,
        deposit=fact.deposit,
        settled=fact.settled,
        close_requested_at=fact.close_requested_at,
        state=state,
    )
