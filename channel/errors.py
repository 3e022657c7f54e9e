"""Every error of the off-chain engine, and whose fault it is.

MppSessionError
├── PeerError                       the peer's fault: 4xx, safe to show, nothing moved
│   ├── PaymentRequiredError          402  payment-required
│   ├── MalformedCredentialError      402  malformed-credential (the envelope)
│   ├── MalformedPayloadError         400  malformed-credential (what is inside)
│   ├── BadRequestError               400  bad-request
│   ├── MethodUnsupportedError        400  method-unsupported
│   ├── OtherSpellingError            404  not-found
│   ├── MethodNotSoldError            405  method-not-sold
│   ├── ChallengeNotFoundError        402  session/challenge-not-found
│   │   └── ChallengeExpiredError     402  payment-expired
│   ├── InvalidSignatureError         402  session/invalid-signature
│   ├── SignerMismatchError           402  session/signer-mismatch
│   ├── AmountExceedsDepositError     402  session/amount-exceeds-deposit
│   ├── DeltaTooSmallError            402  session/delta-too-small
│   ├── InsufficientBalanceError      402  session/insufficient-balance
│   │   └── PublicVoucherError               anybody may have sent the voucher
│   ├── DepositTooSmallError          402  deposit-too-small
│   ├── VerificationFailedError       402  verification-failed
│   │   ├── AuthorizationExpiredError      the deposit must be signed anew
│   │   └── SignatureUsedError             so must the close
│   ├── ChannelNotFoundError          410  session/channel-not-found
│   ├── ChannelFinalizedError         410  session/channel-finalized
│   ├── TransactionRevertedError      409  session/transaction-reverted
│   ├── StreamReplacedError           409  stream-replaced
│   ├── StreamActiveError             409  stream-active
│   ├── ReservationEndedError         409  reservation-ended
│   ├── RequestInFlightError          409  request-in-flight
│   ├── OutcomeUnknownError           409  outcome-unknown
│   ├── IdempotencyConflictError      422  idempotency-conflict
│   ├── BodyTimeoutError              408  request-timeout
│   └── TooManyRequestsError          429  rate-limited
│       └── TooManyDepositsError             from one payer or address, at our gas
├── OperatorError                   our fault: disk, node, configuration; 5xx, never a challenge
│   │                                 503  payment-unavailable, where nothing else is said
│   ├── ConfigError                   refuses to start
│   ├── ChainUnavailableError         503
│   ├── SettlementPendingError        503  a transaction of ours is on its way
│   ├── LedgerUnavailableError        503
│   ├── ChannelStoppedError           503  books and chain disagree; nothing moves
│   ├── ExposureLimitError            503  exposure-limit: settle first, then more is taken
│   ├── SponsoringPausedError         503  sponsoring-paused: no gas is paid for payers now
│   ├── StoppingError                 the program is stopping: a stream ends early, with its receipt
│   └── OpeningsPausedError           503  openings-paused: too little gas to defend one more
├── AgentError                      raised on the paying side, before or instead of paying
│   ├── OfferRefusedError             a 402 asks what the policy does not allow
│   ├── BudgetExceededError           paying this would pass a limit of the policy
│   ├── CannotFundError               the account can make no deposit in a way the server takes
│   ├── DepositPendingError           a signed deposit is not mined yet; the next try goes on
│   ├── OverclaimError                the server asks for more than it has delivered
│   ├── UnsettledClaimError           the server asks for more than may be signed now
│   ├── ReceiptViolationError         a receipt contradicts what was signed or said before
│   ├── PaymentRefusedError           the server refuses what was properly paid
│   ├── PaymentOutcomeUnknownError    paid, and nobody knows whether it was served
│   ├── ChannelBusyError              every channel to this payee has a stream running
│   ├── ChannelUnusableError          a channel stopped, closing, or not as the chain says
│   ├── BodyNotReplayableError        a 402 came after a body that cannot be sent again
│   └── StoreError                    the store of what was signed cannot be read or written
├── WireError                       bytes that do not mean what they should; whoever knows whose
│                                   bytes they were turns it into one of the above
└── InvariantError                  a bug of ours: never caught, stops the worker
    └── StorageFailedError            no bug, and the same end: the disk may have lost something

A `PeerError` becomes a problem body in one place, `channel.wire.problem`. The order in which
refusals are tried is printed in docs/reference/errors.md.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

__all__ = [
    "AgentError",
    "AmountExceedsDepositError",
    "AuthorizationExpiredError",
    "BadRequestError",
    "BodyNotReplayableError",
    "BodyTimeoutError",
    "BudgetExceededError",
    "CannotFundError",
    "ChainUnavailableError",
    "ChallengeExpiredError",
    "ChallengeNotFoundError",
    "ChannelBusyError",
    "ChannelFinalizedError",
    "ChannelNotFoundError",
    "ChannelStoppedError",
    "ChannelUnusableError",
    "ConfigError",
    "DeltaTooSmallError",
    "DepositPendingError",
    "DepositTooSmallError",
    "ExposureLimitError",
    "IdempotencyConflictError",
    "InsufficientBalanceError",
    "InvalidSignatureError",
    "InvariantError",
    "LedgerUnavailableError",
    "MalformedCredentialError",
    "MalformedPayloadError",
    "MethodNotSoldError",
    "MethodUnsupportedError",
    "MppSessionError",
    "OfferRefusedError",
    "OpeningsPausedError",
    "OperatorError",
    "OtherSpellingError",
    "OutcomeUnknownError",
    "OverclaimError",
    "PaymentOutcomeUnknownError",
    "PaymentRefusedError",
    "PaymentRequiredError",
    "PeerError",
    "ProblemError",
    "PublicVoucherError",
    "ReceiptViolationError",
    "RequestInFlightError",
    "ReservationEndedError",
    "SettlementPendingError",
    "SignatureUsedError",
    "SignerMismatchError",
    "SponsoringPausedError",
    "StoppingError",
    "StorageFailedError",
    "StoreError",
    "StreamActiveError",
    "StreamReplacedError",
    "TooManyDepositsError",
    "TooManyRequestsError",
    "TransactionRevertedError",
    "UnsettledClaimError",
    "VerificationFailedError",
    "WireError",
]


class MppSessionError(Exception):
    """Anything this project raises on purpose."""


class ProblemError(MppSessionError):
    """An error with an HTTP answer: see RFC 9457 and REQUIREMENTS section ERR."""

    status: ClassVar[int]
    problem_type: ClassVar[str]
    """The last part of the problem's `type`; see `channel.wire.problem.problem_uri`."""
    title: ClassVar[str]
    offers_challenge: ClassVar[bool] = True
    retry_after_s: ClassVar[int | None] = None
    allow: str | None = None
    """The methods that would be served, for a 405."""

    @property
    def detail(self) -> str:
        """One sentence for the peer; never a secret, a signature or another payer's amounts."""
        return str(self)

    def members(self) -> dict[str, str]:
        """Extension members of the problem body: wire names and decimal strings."""
        return {}


class PeerError(ProblemError):
    """The peer's fault. Whoever catches it may answer it and go on: nothing moved."""


class PaymentRequiredError(PeerError):
    """No credential came with the request (CORE-02)."""

    status = 402
    problem_type = "payment-required"
    title = "Payment Required"


class MalformedCredentialError(PeerError):
    """The credential's envelope cannot be read (CORE-03)."""

    status = 402
    problem_type = "malformed-credential"
    title = "Malformed Credential"


class MalformedPayloadError(PeerError):
    """The envelope is readable, the payload inside is not (CRED-04 to CRED-06, AMB-12)."""

    status = 400
    problem_type = "malformed-credential"
    title = "Malformed Credential"


class BadRequestError(PeerError):
    """The request contradicts itself, as with two credentials (CORE-10)."""

    status = 400
    problem_type = "bad-request"
    title = "Bad Request"


class MethodUnsupportedError(PeerError):
    """The credential is for a method or intent that this route does not serve."""

    status = 400
    problem_type = "method-unsupported"
    title = "Method Unsupported"


class OtherSpellingError(PeerError):
    """The application might take this path for one that has a price (O-40)."""

    status = 404
    problem_type = "not-found"
    title = "Not Found"
    offers_challenge = False

    def __init__(self, path: str) -> None:
        super().__init__(f"This is another spelling of a path that has a price. Ask for {path}.")


class MethodNotSoldError(PeerError):
    """The path has a price under other methods, and this one is listed neither sold nor free."""

    status = 405
    problem_type = "method-not-sold"
    title = "Method Not Sold"
    offers_challenge = False

    def __init__(self, method: str, sold: tuple[str, ...]) -> None:
        self.allow = ", ".join(sold)
        super().__init__(f"{method} is not served on this path; {self.allow} is.")


class ChallengeNotFoundError(PeerError):
    """The challenge is not ours, was altered, or belongs to another route (AMB-13)."""

    status = 402
    problem_type = "session/challenge-not-found"
    title = "Challenge Not Found"


class ChallengeExpiredError(ChallengeNotFoundError):
    """The challenge is ours and has expired (AMB-13)."""

    problem_type = "payment-expired"
    title = "Payment Expired"


class InvalidSignatureError(PeerError):
    """Unrecoverable or non-canonical signature, or a wallet that says no (ENC-06, AMB-15)."""

    status = 402
    problem_type = "session/invalid-signature"
    title = "Invalid Signature"


class SignerMismatchError(PeerError):
    """A good signature by somebody who may not sign for this channel (AMB-15)."""

    status = 402
    problem_type = "session/signer-mismatch"
    title = "Signer Mismatch"


class AmountExceedsDepositError(PeerError):
    """The escrow could not pay this voucher in full."""

    status = 402
    problem_type = "session/amount-exceeds-deposit"
    title = "Amount Exceeds Deposit"

    def __init__(self, *, cumulative_amount: int, deposit: int) -> None:
        super().__init__(f"The voucher promises {cumulative_amount}; the deposit is {deposit}.")
        self.cumulative_amount = cumulative_amount
        self.deposit = deposit

    def members(self) -> dict[str, str]:
        """Return the deposit that was exceeded."""
        return {"deposit": str(self.deposit)}


class DeltaTooSmallError(PeerError):
    """The voucher rises by less than the challenge's `minVoucherDelta`."""

    status = 402
    problem_type = "session/delta-too-small"
    title = "Delta Too Small"

    def __init__(self, *, increase: int, min_voucher_delta: int, accepted: int) -> None:
        super().__init__(f"The voucher rises by {increase}; at least {min_voucher_delta} is asked.")
        self.increase = increase
        self.min_voucher_delta = min_voucher_delta
        self.accepted = accepted

    def members(self) -> dict[str, str]:
        """Return what the next voucher must rise from and by."""
        return {
            "acceptedCumulative": str(self.accepted),
            "minVoucherDelta": str(self.min_voucher_delta),
        }


class InsufficientBalanceError(PeerError):
    """What is accepted and unspent does not cover the cost (ERR-01, SSE-02)."""

    status = 402
    problem_type = "session/insufficient-balance"
    title = "Insufficient Balance"
    says: ClassVar[str] = "A voucher for at least {} is needed."

    def __init__(
        self, *, required_cumulative: int, accepted: int, spent: int, deposit: int
    ) -> None:
        super().__init__(self.says.format(required_cumulative))
        self.required_cumulative = required_cumulative
        self.accepted = accepted
        self.spent = spent
        self.deposit = deposit

    def members(self) -> dict[str, str]:
        """Return what a client needs to sign its next voucher, or to top up first."""
        return {
            "requiredCumulative": str(self.required_cumulative),
            "acceptedCumulative": str(self.accepted),
            "spent": str(self.spent),
            "deposit": str(self.deposit),
        }


class PublicVoucherError(InsufficientBalanceError):
    """The voucher was handed to the chain: anybody may have sent it (O-20, O-21).

    Its amounts are those of the voucher and of the chain, never those of the books.
    """

    says = (
        "The voucher is public, so anybody may have sent it. Present another signature over the "
        "same amount, one that was never shown, or a voucher for at least {}."
    )


class DepositTooSmallError(PeerError):
    """A deposit below what is worth its gas to the server (OPEN-12, F-98)."""

    status = 402
    problem_type = "deposit-too-small"
    title = "Deposit Too Small"

    def __init__(self, *, deposit: int, deposit_min: int) -> None:
        super().__init__(f"The deposit is {deposit}; gas is paid for {deposit_min} and more.")
        self.deposit = deposit
        self.deposit_min = deposit_min

    def members(self) -> dict[str, str]:
        """Return the least deposit."""
        return {"deposit": str(self.deposit), "depositMin": str(self.deposit_min)}


class VerificationFailedError(PeerError):
    """What the chain shows is not, or not yet, what the credential claims (OPEN-02)."""

    status = 402
    problem_type = "verification-failed"
    title = "Verification Failed"
    retry_after_s: ClassVar[int | None] = 2


class AuthorizationExpiredError(VerificationFailedError):
    """A signed deposit that is not valid by the chain's clock, or not for long enough (OPEN-05)."""

    retry_after_s = None


class SignatureUsedError(VerificationFailedError):
    """The signature of a close asked for one before, which failed: it may be public (O-21)."""

    retry_after_s = None


class ChannelNotFoundError(PeerError):
    """No such channel in this escrow."""

    status = 410
    problem_type = "session/channel-not-found"
    title = "Channel Not Found"


class ChannelFinalizedError(PeerError):
    """The channel has ended, is being closed, or its payer has asked for the rest (AMB-14)."""

    status = 410
    problem_type = "session/channel-finalized"
    title = "Channel Finalized"


class TransactionRevertedError(PeerError):
    """An on-chain transaction this credential depends on was mined and reverted."""

    status = 409
    problem_type = "session/transaction-reverted"
    title = "Transaction Reverted"


class StreamReplacedError(PeerError):
    """A newer stream on the same channel took this one's place (ACC-06)."""

    status = 409
    problem_type = "stream-replaced"
    title = "Stream Replaced"
    offers_challenge = False


class StreamActiveError(PeerError):
    """The channel has a live stream, and this route does not replace it."""

    status = 409
    problem_type = "stream-active"
    title = "Stream Active"
    offers_challenge = False
    retry_after_s = 1


class ReservationEndedError(PeerError):
    """The money held for this request is no longer held: its lease ran out, or a close ended it."""

    status = 409
    problem_type = "reservation-ended"
    title = "Reservation Ended"
    offers_challenge = False


class RequestInFlightError(PeerError):
    """The same idempotency key is being served right now (IDEM-03)."""

    status = 409
    problem_type = "request-in-flight"
    title = "Request In Flight"
    offers_challenge = False
    retry_after_s = 1


class OutcomeUnknownError(PeerError):
    """Whoever served this key died before it could store the answer (decision 8).

    Nothing is charged for the key again, and its answer cannot be repeated.
    """

    status = 409
    problem_type = "outcome-unknown"
    title = "Outcome Unknown"
    offers_challenge = False


class IdempotencyConflictError(PeerError):
    """The idempotency key was used for another request body (IDEM-03)."""

    status = 422
    problem_type = "idempotency-conflict"
    title = "Idempotency Key Reused"
    offers_challenge = False


class BodyTimeoutError(PeerError):
    """The request's body did not arrive in time; nothing was charged."""

    status = 408
    problem_type = "request-timeout"
    title = "Request Timeout"
    offers_challenge = False


class TooManyRequestsError(PeerError):
    """More vouchers a second on one channel than are taken (VCH-09)."""

    status = 429
    problem_type = "rate-limited"
    title = "Too Many Requests"
    offers_challenge = False
    retry_after_s = 1


class TooManyDepositsError(TooManyRequestsError):
    """More deposits than gas is paid for, from one payer or one client address (F-98)."""

    retry_after_s = 600


class OperatorError(ProblemError):
    """Our fault. Answered without a challenge: a peer must not be invited to pay again."""

    status = 503
    problem_type = "payment-unavailable"
    title = "Payment Temporarily Unavailable"
    offers_challenge = False
    retry_after_s = 5


class ConfigError(OperatorError):
    """A setting that would lose money later; the program does not start (decision 15)."""


class ChainUnavailableError(OperatorError):
    """No node answered within the deadline, or one answered nonsense."""


class SettlementPendingError(OperatorError):
    """A transaction of ours is journalled or broadcast and not yet mined (F-75)."""


class StoppingError(OperatorError):
    """The program is being stopped; a stream ends early, with its receipt."""


class LedgerUnavailableError(OperatorError):
    """The ledger could not make a change durable, so nothing was acknowledged (F-51)."""


class ChannelStoppedError(OperatorError):
    """Our books and the chain disagree about this channel (decision 4).

    A reorg took back part of the deposit, which may come again by itself; or the chain has
    settled more than we ever accepted, so our books are an old copy and an operator must run
    `mpp-session ledger repair` (F-52, SETTLE-05).
    """


class ExposureLimitError(OperatorError):
    """More would be at risk than the operator allows; a settle makes room (F-66).

    Nothing was accepted or served beyond the bound: on the channel a lower voucher is taken now.
    """

    problem_type = "exposure-limit"
    title = "Exposure Limit Reached"


class SponsoringPausedError(OperatorError):
    """No gas is paid for payers now: the budget is used up, or gas is dear (F-98).

    Nothing was broadcast. Deposits that payers make themselves are taken.
    """

    problem_type = "sponsoring-paused"
    title = "Gas Is Not Paid For Now"
    retry_after_s = 60


class OpeningsPausedError(OperatorError):
    """No new channel is taken: there is too little gas to defend one more in time (F-65)."""

    problem_type = "openings-paused"
    title = "New Channels Are Paused"
    retry_after_s = 60


class AgentError(MppSessionError):
    """Raised on the paying side: an offer refused, a budget reached, a server caught lying."""


class OfferRefusedError(AgentError):
    """A 402 asks for what the agent's policy does not allow; nothing was signed (CLIENT-01)."""

    def __init__(
        self,
        *,
        field: str,
        asked: object,
        allowed: object,
        origin: str,
        offers: Sequence[str] = (),
    ) -> None:
        """Say what is asked and allowed, and of several offers what each of them would take."""
        words = f"{origin} asks for {field} {asked}; the policy allows {allowed}."
        if offers:
            each = " ".join(f"({place}) {offer}." for place, offer in enumerate(offers, 1))
            words = f"{origin} makes {len(offers)} offers, and none can be taken. {each}"
        super().__init__(words)
        self.offers = tuple(offers)
        self.field = field
        self.asked = asked
        self.allowed = allowed
        self.origin = origin


class BudgetExceededError(AgentError):
    """Paying this would pass a limit of the policy; nothing was signed (F-92, F-96)."""

    def __init__(self, *, limit: str, asked: int, allowed: int, origin: str) -> None:
        super().__init__(
            f"Paying {origin} would bring {limit} to {asked} base units; "
            f"the policy allows {allowed}."
        )
        self.limit = limit
        self.asked = asked
        self.allowed = allowed
        self.origin = origin


class CannotFundError(AgentError):
    """The account can make none of the deposits that the server takes; nothing was signed.

    `needs` says for each credential type what is missing, so that whoever runs the agent knows
    what to send or to approve (CLIENT-02, F-90).
    """

    def __init__(self, *, account: bytes, origin: str, needs: Mapping[str, str]) -> None:
        wants = "; ".join(f"{kind}: {need}" for kind, need in needs.items())
        super().__init__(f"0x{account.hex()} cannot make a deposit for {origin}. {wants}.")
        self.account = account
        self.origin = origin
        self.needs = dict(needs)


class DepositPendingError(AgentError):
    """A deposit was signed and given to the server, which has not got it mined yet (F-75).

    It is kept and presented again by the next request; no second one is signed for it.
    """

    def __init__(self, *, origin: str, waited_s: float) -> None:
        super().__init__(
            f"{origin} has not got the signed deposit mined within {waited_s:.0f} s. "
            "It is kept: the same request later goes on with it."
        )
        self.origin = origin
        self.waited_s = waited_s


class OverclaimError(AgentError):
    """The server asks for more than it has delivered and one step; nothing was signed (F-94)."""

    def __init__(self, *, asked: int, allowed: int, received: int) -> None:
        super().__init__(
            f"The server asks for vouchers up to {asked} base units; it has delivered "
            f"{received} by our own count, which allows {allowed}."
        )
        self.asked = asked
        self.allowed = allowed
        self.received = received


class UnsettledClaimError(AgentError):
    """The server asks for more than may be signed now, and may be right; nothing was signed.

    Other requests of the channel have used what was meant for this one, or requests that broke or
    were left have cost more than the policy grants. It was waited for, and asked again (F-94).
    """

    def __init__(self, *, asked: int, allowed: int, received: int, lost: int) -> None:
        super().__init__(
            f"The server asks for vouchers up to {asked} base units; {received} arrived and {lost} "
            f"may have been lost, which allows {allowed}. The requests beside this one, or those "
            "that broke, may have used the rest. Read the streams that are open to their end; if "
            "none is, close the channel: `Policy.lost_units_max` bounds what may be lost on one."
        )
        self.asked = asked
        self.allowed = allowed
        self.received = received
        self.lost = lost


class ReceiptViolationError(AgentError):
    """A receipt contradicts what was signed or said before; the channel stops (CLIENT-09)."""

    def __init__(self, *, field: str, said: object, expected: object) -> None:
        super().__init__(f"The receipt says {field} {said}; expected {expected}.")
        self.field = field
        self.said = said
        self.expected = expected


class PaymentRefusedError(AgentError):
    """The server refuses what was paid, and paying again would not be right (F-97)."""

    def __init__(self, *, status: int, problem_type: str, detail: str) -> None:
        super().__init__(f"The server answered {status} {problem_type}: {detail}")
        self.status = status
        self.problem_type = problem_type
        self.detail = detail


class PaymentOutcomeUnknownError(AgentError):
    """A credential was sent and no answer came; it is not known whether it was served.

    Sending the same request again with the same `Idempotency-Key` is safe: it is neither served
    nor charged twice. Under a new key it may be both (F-26), and with a body of more than 4 MiB,
    for which servers take no key.
    """

    def __init__(self, *, idempotency_key: str, reason: str) -> None:
        super().__init__(f"Paid, but the answer was lost ({reason}); key {idempotency_key}.")
        self.idempotency_key = idempotency_key
        self.reason = reason


class ChannelBusyError(AgentError):
    """Every channel to this payee has a stream running; one channel carries one (ACC-06)."""


class ChannelUnusableError(AgentError):
    """A channel cannot be used for this: it is stopped, closing, unknown, or has no deposit."""


class BodyNotReplayableError(AgentError):
    """A 402 came after a body that cannot be sent again: too long, or from a generator."""


class StoreError(AgentError):
    """The store of what was signed cannot be opened, read or written; nothing was signed."""


class WireError(MppSessionError):
    """Bytes that do not mean what they should, wherever they came from.

    The readers of `channel.wire` raise it. Who knows whose bytes they were turns it into its own
    error: a credential's become `MalformedCredentialError`, a server's an `AgentError`.
    """


class InvariantError(MppSessionError):
    """The books contradict themselves. A bug: never caught, the worker stops."""


class StorageFailedError(InvariantError):
    """A sync failed, or a file is corrupt: what the books say may not be on the disk (F-51).

    No bug, but its end is a bug's: this process relies on that file no more. A new one may, once
    it has written and synced anew what the log holds.
    """
