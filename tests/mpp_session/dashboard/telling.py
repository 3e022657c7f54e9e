"""Events as a gate tells them, with the time that a test decides."""

from typing import Any

from channel.http.hooks import (
    ChallengeEvent,
    OpenEvent,
    ReceiptEvent,
    RefusalEvent,
    SpendEvent,
)
from channel.types import Address, ChannelId

__all__ = ["CHANNEL", "challenge", "opening", "receipt", "refusal", "spend"]

CHANNEL = ChannelId(bytes(31) + b"\x01")
_STARTED = 1_800_000_000.0


def _about(moment: float, request: int, **changes: Any) -> dict[str, Any]:
    about = {
        "at": _STARTED + moment,
        "monotonic": 100 + moment,
        "received": 100 + moment,
        "request_id": f"{request:032x}",
        "route": "POST /v1/chat/completions",
    }
    return {**about, **changes}


def _paid(moment: float, request: int, **changes: Any) -> dict[str, Any]:
    proven = {"channel_id": CHANNEL, "payer": Address(b"\xaa" * 20), "variant": "tiny"}
    return {**_about(moment, request), **proven, **changes}


def challenge(moment: float = 0, request: int = 1, *issued: str, **changes: Any) -> ChallengeEvent:
    return ChallengeEvent(
        status=402,
        problem_type="payment-required",
        issued=issued,
        **_about(moment, request, **changes),
    )


def refusal(moment: float = 0, request: int = 1, **changes: Any) -> RefusalEvent:
    why = {"status": 402, "problem_type": "session/insufficient-balance", "detail": "Too little."}
    return RefusalEvent(**{**why, **_paid(moment, request, **changes)})


def opening(moment: float = 0, request: int = 1, **changes: Any) -> OpenEvent:
    return OpenEvent(action="open", deposit=10, **_paid(moment, request, **changes))


def spend(moment: float = 0, request: int = 1, *, amount: int = 25, **changes: Any) -> SpendEvent:
    rest = {"cost": amount, "usage": {"output_token": 1}, "spent": amount}
    return SpendEvent(amount=amount, **{**rest, **_paid(moment, request, **changes)})


def receipt(moment: float = 0, request: int = 1, **changes: Any) -> ReceiptEvent:
    rest: dict[str, Any] = {
        "action": "request",
        "outcome": "done",
        "status": 200,
        "cost": 25,
        "usage": {"output_token": 1},
        "accepted": 25,
        "spent": 25,
        "deposit": 10_000_000,
    }
    return ReceiptEvent(**{**rest, **_paid(moment, request, **changes)})
