"""Closes a channel with its server, at exactly what was spent (CLOSE-01 to CLOSE-06)."""

from collections.abc import Iterable

from msgspec.structs import replace

from channel.client.payment.management import ManagementClient, Presented, Reply, present
from channel.client.payment.payer import Payer
from channel.client.policy.policy import Offer
from channel.client.store.record import ChannelRecord
from channel.errors import (
    ChannelUnusableError,
    OfferRefusedError,
    PaymentRefusedError,
    ReceiptViolationError,
    WireError,
)
from channel.methods.evm.payload import (
    build_open,
)
from channel.methods.registry import DEFAULT
from channel.wire.challenge import INTENT, parse_challenges
from channel.wire.payload import (
    ClosePayload,
    Payload,
    VoucherPayload,
)

__all__ = ["close_channel"]


async def close_channel(
    payer: Payer, record: ChannelRecord, management: ManagementClient
) -> ChannelRecord:
    """Close a channel, and return its record as the chain shows it then.

    The server's current price does not matter: only what was spent is signed.

    Raises:
        ChannelUnusableError: Requests on it are still running, perhaps in another process.
        OfferRefusedError: The server offers no challenge with this channel's own terms.
        PaymentRefusedError: The server does not close it.
    """
    if payer.pool.is_busy(record.key):
        raise ChannelUnusableError(
            "Requests on this channel are still running. Wait for them, then close it."
        )
    if not await payer.store.claim(record.key):
        raise ChannelUnusableError(
            "Another client of this store uses this channel. Close it there, or end that client."
        )
    record = await payer.leave(record)
    if record.state == "closed":
        return record
    if record.state == "opening" or not await _is_there(payer, record):
        record = await _end_opening(payer, record, management)
        if record.state == "closed":
            return record
    offer = _require_offer(record, await management.head(None))
    offer, record = await _ask_spent(payer, record, management, offer)
    key = record.key
    await payer.store.update(key, lambda current: replace(current, state="closing"))
    voucher = await payer.issuer.sign(record, record.spent)
    presented = await _present(payer, record, management, offer, ClosePayload(voucher))
    receipt = presented.receipt
    if receipt is not None:
        record = await payer.store.update(
            key, lambda current: replace(current, end_tx=receipt.tx_hash)
        )
    return await payer.opener.check(record)


async def _is_there(payer: Payer, record: ChannelRecord) -> bool:
    """Return whether the chain shows the channel, in case only its server has confirmed it."""
    return record.opening is None or await payer.opener.is_on_chain(record)


async def _end_opening(
    payer: Payer, record: ChannelRecord, management: ManagementClient
) -> ChannelRecord:
    """Bring a channel with an unconfirmed opening to a state in which it can be closed, or is.

    Raises:
        ChannelUnusableError: Its deposit may still be made, or needs a transaction to get back.
        PaymentRefusedError: The server does not accept it.
    """
    if record.opening is None:
        raise ChannelUnusableError(
            "The server never accepted this channel. Get its deposit back with `request_close`."
        )
    if not await payer.opener.is_on_chain(record):
        return await payer.opener.give_up_opening(record)
    offer = _require_offer(record, await management.head(None))
    voucher = await payer.issuer.sign(record, min(record.signed, record.deposit))
    opening = build_open(record.opening, voucher)
    presented = await _present(payer, record, management, offer, opening)
    return await payer.opener.confirm(record, presented.receipt, url=record.url)


async def _ask_spent(
    payer: Payer, record: ChannelRecord, management: ManagementClient, offer: Offer
) -> tuple[Offer, ChannelRecord]:
    """Present the last voucher again, for a receipt that states what was spent.

    If the server refuses it, or its receipt is wrong, the close uses the last valid receipt.
    """
    if record.signed == 0:
        return offer, record
    # More may have been signed for a top-up that was never made.
    voucher = await payer.issuer.sign(record, min(record.signed, record.deposit))
    try:
        presented = await _present(payer, record, management, offer, VoucherPayload(voucher))
        if presented.receipt is not None:
            await payer.receipts.adopt(
                payer.pool.tab(record),
                presented.receipt,
                presented.receipt_text,
                challenge_ids={offer.challenge.id, presented.offer.challenge.id},
                spent_min=record.spent,
                is_final=True,
            )
        offer = presented.offer
    except (PaymentRefusedError, ReceiptViolationError):
        return offer, record
    return offer, await payer.store.get(record.key)


async def _present(
    payer: Payer,
    record: ChannelRecord,
    management: ManagementClient,
    offer: Offer,
    payload: Payload,
) -> Presented:
    return await present(
        management,
        offer,
        payload,
        (record.key.chain_id, record.terms.payer),
        renew=lambda reply: _require_offer(record, reply),
        sleep=payer.sleep,
    )


def _require_offer(record: ChannelRecord, reply: Reply) -> Offer:
    """Return the challenge for this channel's own chain, escrow, token and payee."""
    own = (record.key.chain_id, record.key.escrow, record.terms.token, record.terms.payee)
    for offer in _read_offers(reply.challenges):
        request = offer.request
        if (request.chain_id, request.escrow, request.currency, request.recipient) == own:
            return offer
    raise OfferRefusedError(
        field="a close on terms of",
        asked="another channel",
        allowed="its own",
        origin=record.origin,
    )


def _read_offers(header_lines: Iterable[str]) -> list[Offer]:
    try:
        return [
            Offer.from_challenge(challenge)
            for challenge in parse_challenges(header_lines)
            if (challenge.method, challenge.intent) == (DEFAULT.name, INTENT)
        ]
    except WireError:
        return []
