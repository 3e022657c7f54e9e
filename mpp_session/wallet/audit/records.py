"""What the wallet's parts write into the trail: asks, decisions, vouchers, and changes of channels.

Everything that an agent says about a request stands in the member `untrusted`: a model may have
written it, or the page that the model read. No signature, key, credential or body is in a record.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final, Literal

import msgspec

from channel.client.store.record import ChannelRecord
from channel.errors import WireError
from channel.limits import AUDIT_ALTERNATIVES_MAX, AUDIT_REASON_CHARS_MAX
from channel.tariff import Tariff
from channel.types import Address, ChannelId, address, channel_id
from channel.wire.encoding import parse_amount
from channel.wire.tariff import parse_tariff, tariff_object
from mpp_session.wallet.audit.canonical import cut_text, milliseconds
from mpp_session.wallet.types import Alternative, Ask, Code, Decision, Purpose

__all__ = [
    "channel_fields",
    "decision_fields",
    "decode_ask",
    "decode_decision",
    "describe_change",
    "encode_ask",
    "encode_decision",
    "receipt_digest",
    "voucher_fields",
]

_LIVE: Final = ("open", "closing", "stopped")


def decision_fields(
    ask: Ask, decision: Decision, *, policy_hash: str | None = None, approval_id: str | None = None
) -> dict[str, Any]:
    """Return the fields of a `decision`: everything that was asked, and the answer.

    Args:
        ask: What was asked.
        decision: The answer.
        policy_hash: Of the policy that decided.
        approval_id: Of the approval that was used for it.
    """
    return {
        "ask": encode_ask(ask),
        "decision": encode_decision(decision),
        "policy_revision": decision.policy_revision,
        "policy_hash": policy_hash,
        "approval_id": approval_id or None,
    }


def voucher_fields(ask: Ask, *, digest: bytes | None = None) -> dict[str, Any]:
    """Return the fields of a `voucher`, of which a request has many: the amounts alone.

    The request's first `sign` has a `decision` with the rest.
    """
    return {
        "request_id": ask.request_id,
        "channel_id": ask.channel_id,
        "voucher": {
            "cumulative": ask.total,
            "delta": ask.amount,
            "request_total": ask.request_total,
        }
        | ({} if digest is None else {"digest": digest}),
    }


def channel_fields(record: ChannelRecord) -> dict[str, Any]:
    """Return the terms of a channel, for `open`."""
    key, terms = record.key, record.terms
    return {
        "channel_id": key.channel_id,
        "origin": record.origin,
        "tx_hash": record.open_tx,
        "deposit": record.deposit,
        "terms": {
            "chain_id": key.chain_id,
            "escrow": key.escrow,
            "payer": terms.payer,
            "payee": terms.payee,
            "token": terms.token,
            "authorized_signer": terms.authorized_signer,
        },
    }


def describe_change(
    before: ChannelRecord | None, after: ChannelRecord
) -> list[tuple[str, dict[str, Any]]]:
    """Return kind and fields of each record that a stored change of a channel is worth (pure).

    A channel opens, is topped up, gets a receipt, is settled, and ends with a close. Vouchers are
    the guard's to record.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    same = {"channel_id": after.key.channel_id, "origin": after.origin}
    was_live = before is not None and before.state != "opening"
    if after.state in _LIVE and not was_live:
        found.append(("open", channel_fields(after)))
    elif before is not None and was_live and after.deposit > before.deposit:
        delta = after.deposit - before.deposit
        found.append(("top_up", {**same, "deposit": after.deposit, "delta": delta}))
    if before is None:
        return found
    if after.receipt != before.receipt and after.receipt:
        fields = {
            "receipt_digest": receipt_digest(after.receipt),
            "accepted": after.accepted,
            "spent": after.spent,
        }
        found.append(("receipt", {**same, **fields}))
    if after.settled > before.settled:
        delta = after.settled - before.settled
        fields = {"settled": after.settled, "delta": delta, "tx_hash": after.end_tx}
        found.append(("settle", {**same, **fields}))
    if after.state == "closed" and before.state != "closed":
        returned = after.refund if was_live else 0
        fields = {
            "tx_hash": after.end_tx,
            "deposit": after.deposit if was_live else 0,
            "signed": after.signed,
            "settled": after.settled,
            "returned": returned,
        }
        found.append(("close", {**same, **fields}))
    return found


def receipt_digest(receipt: str) -> str:
    """Return the digest by which a receipt's text is found, as the server sent it."""
    return "0x" + sha256(receipt.strip().encode("utf-8", "backslashreplace")).hexdigest()


class _Untrusted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A `Purpose`, in the words of the agent."""

    task: str = ""
    on_behalf_of: str = ""
    reason: str = ""
    tool: str = ""
    trace_id: str = ""
    span_id: str = ""
    alternatives: tuple[Alternative, ...] = ()


class _Ask(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: Literal["deposit", "sign", "charge"]
    agent: str
    request_id: str
    origin: str
    method: str
    path: str
    untrusted: _Untrusted
    chain_id: int
    token: str
    recipient: str
    escrow: str | None = None
    tariff: dict[str, Any] | None = None
    request_max: str
    amount: str
    total: str
    request_total: str
    channel_id: str | None = None
    is_first: bool
    is_opening: bool
    is_stream: bool
    at: int


def encode_ask(ask: Ask) -> dict[str, Any]:
    """Return an ask as a record holds it; its time to the millisecond, long text of the agent cut.

    Raises:
        WireError: Its tariff cannot be written.
    """
    fields: dict[str, Any] = {
        "kind": ask.kind,
        "agent": ask.agent,
        "request_id": ask.request_id,
        "origin": ask.origin,
        "method": ask.method,
        "path": ask.path,
        "untrusted": _encode_purpose(ask.purpose),
        "chain_id": ask.chain_id,
        "token": _hex(ask.token),
        "recipient": _hex(ask.recipient),
        "request_max": str(ask.request_max),
        "amount": str(ask.amount),
        "total": str(ask.total),
        "request_total": str(ask.request_total),
        "is_first": ask.is_first,
        "is_opening": ask.is_opening,
        "is_stream": ask.is_stream,
        "at": milliseconds(ask.at),
    }
    if ask.escrow is not None:
        fields["escrow"] = _hex(ask.escrow)
    if ask.tariff is not None:
        fields["tariff"] = tariff_object(ask.tariff)
    if ask.channel_id is not None:
        fields["channel_id"] = _hex(ask.channel_id)
    return fields


def _encode_purpose(purpose: Purpose) -> dict[str, Any]:
    names = ("task", "on_behalf_of", "tool", "trace_id", "span_id")
    fields: dict[str, Any] = {
        name: cut_text(text) for name in names if (text := getattr(purpose, name))
    }
    if purpose.reason:
        fields["reason"] = cut_text(purpose.reason, AUDIT_REASON_CHARS_MAX)
    if purpose.alternatives:
        fields["alternatives"] = [
            {
                name: text
                for name in each.__struct_fields__
                if (text := getattr(each, name)) or name == "origin"
            }
            for each in purpose.alternatives[:AUDIT_ALTERNATIVES_MAX]
        ]
    return fields


def decode_ask(value: object) -> Ask:
    """Return the ask of a record.

    Raises:
        WireError: A member is missing, unknown or malformed.
    """
    try:
        found = msgspec.convert(value, _Ask)
        return Ask(
            kind=found.kind,
            agent=found.agent,
            request_id=found.request_id,
            origin=found.origin,
            method=found.method,
            path=found.path,
            purpose=Purpose(**msgspec.structs.asdict(found.untrusted)),
            chain_id=found.chain_id,
            token=_address(found.token),
            recipient=_address(found.recipient),
            escrow=None if found.escrow is None else _address(found.escrow),
            tariff=_tariff(found.tariff),
            request_max=parse_amount(found.request_max),
            amount=parse_amount(found.amount),
            total=parse_amount(found.total),
            request_total=parse_amount(found.request_total),
            channel_id=None if found.channel_id is None else _channel_id(found.channel_id),
            is_first=found.is_first,
            is_opening=found.is_opening,
            is_stream=found.is_stream,
            at=found.at / 1000,
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise WireError(f"expected an ask of the audit trail: {error}") from error


class _Decision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    action: Literal["allow", "ask", "deny"]
    code: Code
    reason: str
    policy_revision: int
    rule: str = ""
    field: str = ""
    asked: str | None = None
    allowed: str | None = None
    left: str | None = None
    retry_at: int | None = None
    envelopes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def encode_decision(decision: Decision) -> dict[str, Any]:
    """Return a decision as a record holds it, without what is empty and without its counters."""
    fields: dict[str, Any] = {
        "action": decision.action,
        "code": decision.code.value,
        "reason": decision.reason,
        "policy_revision": decision.policy_revision,
    }
    for name in ("rule", "field", "envelopes", "warnings"):
        if held := getattr(decision, name):
            fields[name] = held
    for name in ("asked", "allowed", "left"):
        if (amount := getattr(decision, name)) is not None:
            fields[name] = str(amount)
    if decision.retry_at is not None:
        fields["retry_at"] = milliseconds(decision.retry_at)
    return fields


def decode_decision(value: object) -> Decision:
    """Return the decision of a record; its counters follow from policy and ask.

    Raises:
        WireError: A member is missing, unknown or malformed.
    """
    try:
        found = msgspec.convert(value, _Decision)
        return Decision(
            action=found.action,
            code=found.code,
            reason=found.reason,
            rule=found.rule,
            field=found.field,
            asked=_optional(found.asked),
            allowed=_optional(found.allowed),
            left=_optional(found.left),
            retry_at=None if found.retry_at is None else found.retry_at / 1000,
            policy_revision=found.policy_revision,
            envelopes=found.envelopes,
            warnings=found.warnings,
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise WireError(f"expected a decision of the audit trail: {error}") from error


def _optional(text: str | None) -> int | None:
    return None if text is None else int(text)


def _tariff(value: Mapping[str, Any] | None) -> Tariff | None:
    return None if value is None else parse_tariff(value)


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _address(text: str) -> Address:
    return address(_from_hex(text))


def _channel_id(text: str) -> ChannelId:
    return channel_id(_from_hex(text))


def _from_hex(text: str) -> bytes:
    value = bytes.fromhex(text.removeprefix("0x"))
    if _hex(value) != text:
        raise ValueError(f"expected lower-case hexadecimal after 0x, found {text!r}")
    return value
