"""Tells the gate's hooks what happens to one request."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from channel.engine import Authenticated, Outcome, RunningReservation
from channel.errors import MppSessionError, PaymentRequiredError, ProblemError
from channel.http.hooks import (
    Action,
    ChallengeEvent,
    Ending,
    HookCalls,
    OpenEvent,
    ReceiptEvent,
    RefusalEvent,
    SpendEvent,
)
from channel.http.metering import Meter
from channel.http.pricing import Priced
from channel.http.rails import Charged
from channel.http.request import brings_deposit
from channel.state.channel_state import ChannelState
from channel.wire.challenge import Challenge
from channel.wire.credential import Credential
from channel.wire.encoding import format_hex
from channel.wire.payload import ClosePayload, OpenPayload, Payload, VoucherPayload

__all__ = ["Answered", "RequestTeller"]

_NOTHING: Final[dict[str, int]] = {}


class Answered(Protocol):
    """What an event states of an answer; see `Answer`."""

    has_started: bool
    is_client_gone: bool
    is_timed: bool
    status: int | None
    sent_status: int | None
    first_sent: float | None


class RequestTeller:
    """The events of one request. Each method costs next to nothing where no hook wants it."""

    def __init__(
        self,
        calls: HookCalls,
        request_id: bytes,
        priced: Priced | None,
        now: Callable[[], float],
    ) -> None:
        self._calls = calls
        self._request_id = request_id
        self._priced = priced
        self._now = now
        self._received = time.monotonic()
        self._credential: Credential | None = None
        self._known: dict[str, Any] | None = None
        """What every event of the request says about it; None before the first."""
        self._state: ChannelState | None = None
        self._handled: float | None = None

    def presents(self, credential: Credential) -> None:
        """Name the request's credential in every later event."""
        self._credential = credential
        self._known = None

    def refused(self, error: ProblemError, issued: Sequence[Challenge]) -> None:
        """Tell of an answer with a problem."""
        ids = tuple([challenge.id for challenge in issued])
        if self._credential is None and isinstance(error, PaymentRequiredError):
            if self._calls.challenge:
                self._calls.challenge(
                    ChallengeEvent(
                        status=error.status,
                        problem_type=error.problem_type,
                        issued=ids,
                        **self._about(),
                    )
                )
        elif self._calls.refusal:
            self._calls.refusal(
                RefusalEvent(
                    status=error.status,
                    problem_type=error.problem_type,
                    detail=error.detail,
                    issued=ids,
                    **self._about(),
                )
            )

    def accepted(self, paid: Authenticated, outcome: Outcome) -> None:
        """Tell of a deposit that came with the credential."""
        self._state = outcome.state
        # A repeat of an opening has no confirmations: it is a voucher.
        if (
            self._calls.open
            and outcome.confirmations is not None
            and brings_deposit(paid.credential.payload)
        ):
            self._calls.open(
                OpenEvent(
                    action=_funding(paid.credential.payload),
                    deposit=outcome.state.deposit,
                    tx_hash=None if outcome.tx_hash is None else format_hex(outcome.tx_hash),
                    **self._about(),
                )
            )

    def managed(self, paid: Authenticated, outcome: Outcome) -> None:
        """Tell of a credential that bought nothing."""
        self._receipt(_action(paid.credential.payload), outcome.state, 200)

    def repeated(self, outcome: Outcome, status: int) -> None:
        """Tell of a stored answer that was sent again."""
        self._receipt("repeat", outcome.state, status)

    def begins(self, reservation: RunningReservation, answer: Answered) -> None:
        """Tell of each part that is spent, from now on, and measure the answer."""
        self._handled = time.monotonic()
        answer.is_timed = bool(self._calls.receipt)
        if self._calls.spend:
            reservation.on_spent = self._spent

    def ended(self, meter: Meter, answer: Answered, failure: BaseException | None) -> None:
        """Tell how a paid request ended, unless the gate refuses it: then `refused` tells."""
        if answer.status is not None:
            if self._calls.refusal:
                self._calls.refusal(
                    RefusalEvent(status=answer.status, problem_type="", **self._about())
                )
            return
        is_gone = answer.is_client_gone or meter.is_client_gone
        if isinstance(failure, MppSessionError) and not answer.has_started:
            return
        ending: Ending = "left" if is_gone else "done" if failure is None else "failed"
        reservation = meter.reservation
        if self._calls.receipt:
            self._receipt(
                "request",
                reservation.state,
                answer.sent_status,
                ending=ending,
                cost=reservation.cost,
                usage=dict(reservation.usage),
                reported=meter.reported,
                handled=self._handled,
                first_sent=answer.first_sent,
            )

    def charged(self, charged: Charged) -> None:
        """Tell of a request that another rail than the session was paid by."""
        amount = charged.amount
        about = {
            **self._about(),
            "payer": charged.payer,
            "challenge_id": charged.challenge_id,
        }
        usage = {} if self._priced is None else {self._priced.offer.request.pricing.main.kind: 1}
        if self._calls.spend and amount:
            self._calls.spend(
                SpendEvent(amount=amount, cost=amount, usage=usage, spent=amount, **about)
            )
        if self._calls.receipt:
            self._calls.receipt(
                ReceiptEvent(
                    action="charge",
                    outcome="done" if charged.is_complete else "failed",
                    status=charged.status,
                    cost=amount,
                    usage=usage,
                    accepted=amount,
                    spent=amount,
                    deposit=amount,
                    **about,
                )
            )

    def _spent(self, reservation: RunningReservation, amount: int, cost: int) -> None:
        self._calls.spend(
            SpendEvent(
                amount=amount,
                cost=cost,
                usage=dict(reservation.usage),
                spent=reservation.state.spent,
                **self._about(),
            )
        )

    def _receipt(
        self,
        action: Action,
        state: ChannelState,
        status: int | None,
        *,
        ending: Ending = "done",
        cost: int = 0,
        usage: dict[str, int] = _NOTHING,
        **more: Any,
    ) -> None:
        if self._calls.receipt:
            self._state = state
            self._calls.receipt(
                ReceiptEvent(
                    action=action,
                    outcome=ending,
                    status=status,
                    cost=cost,
                    usage=usage,
                    accepted=state.accepted,
                    spent=state.spent,
                    deposit=state.deposit,
                    **more,
                    **self._about(),
                )
            )

    def _about(self) -> dict[str, Any]:
        if self._known is None:
            self._known = self._describe()
        state = self._state
        return {
            **self._known,
            "at": self._now(),
            "monotonic": time.monotonic(),
            "payer": None if state is None else state.terms.payer,
        }

    def _describe(self) -> dict[str, Any]:
        priced, credential = self._priced, self._credential
        return {
            "received": self._received,
            "request_id": self._request_id.hex(),
            "route": "" if priced is None else f"{priced.route.method} {priced.route.path}",
            "variant": "" if priced is None else priced.price.variant,
            "channel_id": None if credential is None else credential.payload.channel_id,
            "challenge_id": None if credential is None else credential.challenge.id,
        }


def _action(payload: Payload) -> Action:
    if isinstance(payload, ClosePayload):
        return "close"
    return _funding(payload) if brings_deposit(payload) else "voucher"


def _funding(payload: Payload) -> Action:
    if isinstance(payload, VoucherPayload):
        is_opening = payload.deposit is not None and payload.deposit.action == "open"
    else:
        is_opening = isinstance(payload, OpenPayload)
    return "open" if is_opening else "topUp"
