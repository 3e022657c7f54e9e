"""What a commitment of the paying client asks of the policy (pure)."""

from typing import Literal
from urllib.parse import urlsplit

from channel.client.policy.charges import ChargeOffer
from channel.client.policy.context import PaymentContext
from channel.client.store.charge import ChargeRecord
from channel.client.store.record import ChannelRecord
from channel.errors import AgentError, PolicyRefusedError
from channel.types import Address
from mpp_session.wallet.types import Ask, Code, Purpose, WalletRequest

__all__ = [
    "ask_of_refused",
    "charge_ask",
    "deposit_ask",
    "purpose_of",
    "reach_ask",
    "request_id_of",
    "require_context",
    "sign_ask",
]


def require_context(context: PaymentContext | None) -> PaymentContext:
    """Return the request that money is committed for.

    Raises:
        PolicyRefusedError: There is none, so no rule can be found for it.
    """
    if context is None:
        raise PolicyRefusedError(
            "Expected a payment for a request, found one without: the wallet pays for requests "
            "only. Close channels with the wallet's own commands.",
            code=Code.NO_RULE,
        )
    return context


def reach_ask(agent: str, request: WalletRequest, *, method: str, url: str, at: float) -> Ask:
    """Return what is asked of the policy before a request is sent: nothing is paid yet."""
    parts = urlsplit(url)
    no_account = Address(bytes(20))
    return Ask(
        kind="sign",
        agent=agent,
        request_id=request.request_id,
        origin=f"{parts.scheme}://{parts.netloc}",
        method=method,
        path=parts.path or "/",
        purpose=request.purpose,
        chain_id=0,
        token=no_account,
        recipient=no_account,
        escrow=None,
        tariff=None,
        request_max=0,
        amount=0,
        total=0,
        request_total=0,
        at=at,
    )


def purpose_of(context: PaymentContext) -> Purpose:
    """Return what the agent says about the request."""
    attached = context.purpose
    if isinstance(attached, WalletRequest):
        return attached.purpose
    return attached if isinstance(attached, Purpose) else Purpose()


def request_id_of(context: PaymentContext) -> str:
    """Return the wallet's own id of the request, or the paying client's."""
    attached = context.purpose
    return attached.request_id if isinstance(attached, WalletRequest) else context.request_id


def deposit_ask(
    agent: str,
    before: ChannelRecord | None,
    after: ChannelRecord,
    context: PaymentContext,
    *,
    request_total: int,
    at: float,
) -> Ask:
    """Return the ask of an opening or a top-up."""
    return _channel_ask(
        "deposit",
        agent,
        after,
        context,
        amount=after.locked - (0 if before is None else before.locked),
        total=after.locked,
        request_total=request_total,
        is_first=False,
        is_opening=before is None or before.state == "opening",
        at=at,
    )


def sign_ask(
    agent: str,
    before: ChannelRecord,
    after: ChannelRecord,
    context: PaymentContext,
    *,
    request_total: int | None,
    at: float,
) -> Ask:
    """Return the ask of a voucher. `request_total` is without it; None for the first."""
    amount = after.signed - before.signed
    return _channel_ask(
        "sign",
        agent,
        after,
        context,
        amount=amount,
        total=after.signed,
        request_total=(request_total or 0) + amount,
        is_first=request_total is None,
        is_opening=False,
        at=at,
    )


def _channel_ask(  # noqa: PLR0913 -- what two kinds of ask differ in
    kind: Literal["deposit", "sign"],
    agent: str,
    record: ChannelRecord,
    context: PaymentContext,
    *,
    amount: int,
    total: int,
    request_total: int,
    is_first: bool,
    is_opening: bool,
    at: float,
) -> Ask:
    key, terms, offer = record.key, record.terms, context.offer
    return Ask(
        kind=kind,
        agent=agent,
        request_id=request_id_of(context),
        origin=record.origin,
        method=context.method,
        path=urlsplit(context.url).path or "/",
        purpose=purpose_of(context),
        chain_id=key.chain_id,
        token=terms.token,
        recipient=terms.payee,
        escrow=key.escrow,
        tariff=None if isinstance(offer, ChargeOffer) else offer.request.pricing,
        request_max=context.cost_max,
        amount=amount,
        total=total,
        request_total=request_total,
        channel_id=key.channel_id,
        is_first=is_first,
        is_opening=is_opening,
        is_stream=context.is_stream,
        at=at,
    )


def charge_ask(
    agent: str,
    record: ChargeRecord,
    context: PaymentContext,
    *,
    request_total: int | None,
    at: float,
) -> Ask:
    """Return the ask of a payment for one request. `request_total` is without it."""
    return Ask(
        kind="charge",
        agent=agent,
        request_id=request_id_of(context),
        origin=record.origin,
        method=context.method,
        path=urlsplit(context.url).path or "/",
        purpose=purpose_of(context),
        chain_id=record.chain_id,
        token=record.token,
        recipient=record.payee,
        escrow=None,
        tariff=None,
        request_max=context.cost_max,
        amount=record.amount,
        total=record.amount,
        request_total=(request_total or 0) + record.amount,
        is_first=request_total is None,
        is_stream=context.is_stream,
        at=at,
    )


def ask_of_refused(agent: str, context: PaymentContext, error: AgentError, at: float) -> Ask:
    """Return the ask that the paying client refused itself, as far as it is known."""
    offer = context.offer
    asked = getattr(error, "asked", 0)
    amount = asked if isinstance(asked, int) else 0
    is_charge = isinstance(offer, ChargeOffer)
    return Ask(
        kind="charge" if is_charge else "sign",
        agent=agent,
        request_id=request_id_of(context),
        origin=context.origin,
        method=context.method,
        path=urlsplit(context.url).path or "/",
        purpose=purpose_of(context),
        chain_id=offer.chain_id if isinstance(offer, ChargeOffer) else offer.request.chain_id,
        token=offer.token if isinstance(offer, ChargeOffer) else offer.request.currency,
        recipient=offer.recipient if isinstance(offer, ChargeOffer) else offer.request.recipient,
        escrow=None if isinstance(offer, ChargeOffer) else offer.request.escrow,
        tariff=None if isinstance(offer, ChargeOffer) else offer.request.pricing,
        request_max=context.cost_max,
        amount=amount,
        total=amount,
        request_total=amount,
        is_stream=context.is_stream,
        at=at,
    )
