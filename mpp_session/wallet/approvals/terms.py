"""What an approval is bound to: the terms that the wallet itself sees, as hashes (pure)."""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from channel.errors import PolicyRefusedError, WireError
from channel.tariff import Tariff
from channel.types import Address
from channel.wire.encoding import canonical_json
from mpp_session.wallet.types import Ask, Code

__all__ = ["Terms", "amount_in_question", "terms_of"]


class Terms(msgspec.Struct, frozen=True):
    """Hashes of one ask, from the narrowest to the widest that an approval can be bound to."""

    exact: bytes
    """SHA-256 of the canonical JSON of every term: the record's `terms_hash`."""
    subject: bytes
    """Without the amount, but with the channel that a top-up is for: what one question is about."""
    window: bytes
    """Without the amount."""
    channel: bytes
    """What stays the same for every deposit into one channel: payee, prices, agent and task."""


def terms_of(ask: Ask) -> Terms:
    """Return the hashes of an ask. Challenge ids and times are no part of them.

    Raises:
        PolicyRefusedError: A text of the agent is not Unicode, so two programs could read it as
            different terms.
    """
    purpose = ask.purpose
    shared = {
        "agent": ask.agent,
        "task": purpose.task,
        "origin": ask.origin,
        "chain": str(ask.chain_id),
        "token": _hex(ask.token),
        "escrow": None if ask.escrow is None else _hex(ask.escrow),
        "recipient": _hex(ask.recipient),
        "rates": None if ask.tariff is None else _rates(ask.tariff),
    }
    same = {
        **shared,
        "kind": ask.kind,
        "method": ask.method,
        "path": ask.path,
        "tool": purpose.tool,
    }
    place = "new" if ask.is_opening or ask.channel_id is None else ask.channel_id.hex()
    return Terms(
        exact=_digest({**same, "amount": str(amount_in_question(ask))}),
        subject=_digest({**same, "channel": place if ask.kind == "deposit" else ""}),
        window=_digest(same),
        channel=_digest(shared),
    )


def amount_in_question(ask: Ask) -> int:
    """Return how much people are asked about, in base units.

    A voucher raises what is signed by a small step, and people are not asked for each: the question
    is about everything that its request may still cost.
    """
    if ask.kind != "sign":
        return ask.amount
    return max(ask.amount, ask.request_max - (ask.request_total - ask.amount))


def _rates(tariff: Tariff) -> Mapping[str, Any]:
    return {
        "rates": [
            [rate.kind, str(rate.amount), str(rate.per), str(rate.above)] for rate in tariff.rates
        ],
        "minimum": str(tariff.minimum),
        "maximum": None if tariff.maximum is None else str(tariff.maximum),
    }


def _hex(value: Address) -> str:
    return "0x" + value.hex()


def _digest(terms: Mapping[str, Any]) -> bytes:
    try:
        return hashlib.sha256(canonical_json(terms)).digest()
    except WireError as error:
        raise PolicyRefusedError(
            f"Expected the task, the tool and the path as Unicode text, found text that is not "
            f"({error}): send a request without it.",
            code=Code.RULE_DENIED,
            field="task",
        ) from None
