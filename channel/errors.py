"""The errors of the off-chain engine, grouped by who caused them.

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
│   │   └── PublicVoucherError               a third party may have sent the voucher
│   ├── DepositTooSmallError          402  deposit-too-small
│   ├── VerificationFailedError       402  verification-failed
│   │   ├── AuthorizationExpiredError      the payer must sign the deposit again
│   │   └── SignatureUsedError             the payer must sign the close again
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
│       └── TooManyDepositsError             per payer or client address, where the payee pays gas
├── OperatorError                   the operator's fault: disk, node, configuration; no challenge
│   │                                 503  payment-unavailable, where nothing else is said
│   ├── ConfigError                   the program refuses to start
│   ├── ChainUnavailableError         503
│   ├── SettlementPendingError        503  the payee's transaction is sent and not yet mined
│   ├── LedgerUnavailableError        503
│   ├── ChannelStoppedError           503  ledger and chain disagree; the channel is stopped
│   ├── ServerBusyError               503  server-busy: as many paid requests run as may
│   ├── ExposureLimitError            503  exposure-limit: a settlement must be mined first
│   ├── SponsoringPausedError         503  sponsoring-paused: the payee pays no gas for payers now
│   ├── StoppingError                 the program is stopping: a stream ends early, with its receipt
│   ├── OpeningsPausedError           503  openings-paused: not enough gas for one more channel
│   └── SalesPausedError              503  sales-paused: the operator sells nothing now
├── AgentError                      raised on the paying side, before or instead of paying
│   ├── OfferRefusedError             a 402 asks what the policy does not allow
│   ├── BudgetExceededError           paying this would pass a limit of the policy
│   ├── PolicyRefusedError            a wallet's policy refuses the payment
│   ├── ApprovalPendingError          the payment waits for the approval of a person or supervisor
│   ├── CannotFundError               the account can make no deposit in a way the server takes
│   ├── ChargePendingError            a charge was signed for this request and may still be settled
│   ├── DepositPendingError           a signed deposit is not mined yet; the next request resumes it
│   ├── OverclaimError                the server asks for more than it has delivered
│   ├── UnsettledClaimError           the server asks for more than may be signed now
│   ├── ReceiptViolationError         a receipt contradicts what was signed or said before
│   ├── PaymentRefusedError           the server refuses a valid payment
│   ├── PaymentOutcomeUnknownError    paid, and no answer says whether the request was served
│   ├── ChannelBusyError              every channel to this payee has a stream running
│   ├── ChannelUnusableError          a channel stopped, closing, or not as the chain says
│   ├── BodyNotReplayableError        a 402 came after a body that cannot be sent again
│   └── StoreError                    the payment store cannot be opened, read or written
├── WireError                       malformed bytes; the caller turns it into one of the above,
│                                   because it knows where the bytes came from
└── InvariantError                  a bug in this project: never caught, stops the worker
    └── StorageFailedError            not a bug, but also fatal: the disk may have lost data

A `PeerError` becomes a problem body in one place, `channel.wire.problem`. The order in which
refusals are tried is printed in docs/reference/errors.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "AgentError",
    "AmountExceedsDepositError",
    "ApprovalPendingError",
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
    "ChargePendingError",
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
    "PolicyRefusedError",
    "ProblemError",
    "PublicVoucherError",
    "ReceiptViolationError",
    "RefusedOffer",
    "RequestInFlightError",
    "ReservationEndedError",
    "SalesPausedError",
    "ServerBusyError",
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
    """The base of every error that this project raises deliberately."""


class ProblemError(MppSessionError):
    """An error with an HTTP answer (RFC 9457, REQUIREMENTS section ERR)."""

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
    """The peer's fault. No money has moved, so the handler may answer it and continue."""


class PaymentRequiredError(PeerError):
    """No credential came with the request (CORE-02)."""

    status = 402
    problem_type = "payment-required"
    title = "Payment Required"


class MalformedCredentialError(PeerError):
    """The envelope of the credential cannot be parsed (CORE-03)."""

    status = 402
    problem_type = "malformed-credential"
    title = "Malformed Credential"


class MalformedPayloadError(PeerError):
    """The envelope parses, the payload inside does not (CRED-04 to CRED-06, AMB-12)."""

    status = 400
    problem_type = "malformed-credential"
    title = "Malformed Credential"


class BadRequestError(PeerError):
    """The request contradicts itself, for example by carrying two credentials (CORE-10)."""

    status = 400
    problem_type = "bad-request"
    title = "Bad Request"


class MethodUnsupportedError(PeerError):
    """The credential is for a method or intent that this route does not serve."""

    status = 400
    problem_type = "method-unsupported"
    title = "Method Unsupported"


class OtherSpellingError(PeerError):
    """The application might route this path to one that has a price (O-40)."""

    status = 404
    problem_type = "not-found"
    title = "Not Found"
    offers_challenge = False

    def __init__(self, path: str) -> None:
        super().__init__(f"This is another spelling of a path that has a price. Ask for {path}.")


class MethodNotSoldError(PeerError):
    """The path has a price for other methods; this method is listed neither as sold nor free."""

    status = 405
    problem_type = "method-not-sold"
    title = "Method Not Sold"
    offers_challenge = False

    def __init__(self, method: str, sold: tuple[str, ...]) -> None:
        self.allow = ", ".join(sold)
        super().__init__(f"{method} is not served on this path; {self.allow} is.")


class ChallengeNotFoundError(PeerError):
    """This server did not issue the challenge for this route, or it was altered (AMB-13)."""

    status = 402
    problem_type = "session/challenge-not-found"
    title = "Challenge Not Found"


class ChallengeExpiredError(ChallengeNotFoundError):
    """This server issued the challenge, and it has expired (AMB-13)."""

    problem_type = "payment-expired"
    title = "Payment Expired"


class InvalidSignatureError(PeerError):
    """The signature cannot be recovered, is not canonical, or a wallet rejects it (AMB-15)."""

    status = 402
    problem_type = "session/invalid-signature"
    title = "Invalid Signature"


class SignerMismatchError(PeerError):
    """The signature is valid, but its signer may not sign for this channel (AMB-15)."""

    status = 402
    problem_type = "session/signer-mismatch"
    title = "Signer Mismatch"


class AmountExceedsDepositError(PeerError):
    """The deposit does not cover this voucher, so the escrow could not pay it in full."""

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
    """The accepted, unspent amount does not cover the cost (ERR-01, SSE-02)."""

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
        """Return what a client needs to sign its next voucher, or to top up before that."""
        return {
            "requiredCumulative": str(self.required_cumulative),
            "acceptedCumulative": str(self.accepted),
            "spent": str(self.spent),
            "deposit": str(self.deposit),
        }


class PublicVoucherError(InsufficientBalanceError):
    """The voucher was published on chain, so any third party may have sent it (O-20, O-21).

    The members show amounts of the voucher and of the chain, never amounts of the ledger.
    """

    says = (
        "The voucher is public: a third party may have sent it. Present another, unpublished "
        "signature over the same amount, or a voucher for at least {}."
    )


class DepositTooSmallError(PeerError):
    """The deposit is below the amount for which the server pays the gas (OPEN-12, F-98)."""

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
    """The chain does not show, or does not yet show, what the credential claims (OPEN-02)."""

    status = 402
    problem_type = "verification-failed"
    title = "Verification Failed"
    retry_after_s: ClassVar[int | None] = 2


class AuthorizationExpiredError(VerificationFailedError):
    """The chain's clock puts the signed deposit outside its window, or too near its end."""

    retry_after_s = None


class SignatureUsedError(VerificationFailedError):
    """This signature already asked for a close that failed, so it may be public (O-21)."""

    retry_after_s = None


class ChannelNotFoundError(PeerError):
    """The escrow has no such channel."""

    status = 410
    problem_type = "session/channel-not-found"
    title = "Channel Not Found"


class ChannelFinalizedError(PeerError):
    """The channel is closed or closing, or its payer has requested a close (AMB-14)."""

    status = 410
    problem_type = "session/channel-finalized"
    title = "Channel Finalized"


class TransactionRevertedError(PeerError):
    """A transaction that this credential depends on was mined and reverted."""

    status = 409
    problem_type = "session/transaction-reverted"
    title = "Transaction Reverted"


class StreamReplacedError(PeerError):
    """A newer stream on the same channel replaced this one (ACC-06)."""

    status = 409
    problem_type = "stream-replaced"
    title = "Stream Replaced"
    offers_challenge = False


class StreamActiveError(PeerError):
    """The channel has a running stream, and this route does not replace it."""

    status = 409
    problem_type = "stream-active"
    title = "Stream Active"
    offers_challenge = False
    retry_after_s = 1


class ReservationEndedError(PeerError):
    """The reservation of this request no longer exists: its lease expired, or a close ended it."""

    status = 409
    problem_type = "reservation-ended"
    title = "Reservation Ended"
    offers_challenge = False


class RequestInFlightError(PeerError):
    """Another request with the same idempotency key is being served (IDEM-03)."""

    status = 409
    problem_type = "request-in-flight"
    title = "Request In Flight"
    offers_challenge = False
    retry_after_s = 1


class OutcomeUnknownError(PeerError):
    """The process that served this key died before it stored the answer (decision 8).

    The server charges nothing more for the key, and cannot repeat the answer.
    """

    status = 409
    problem_type = "outcome-unknown"
    title = "Outcome Unknown"
    offers_challenge = False


class IdempotencyConflictError(PeerError):
    """The idempotency key was used with another request body (IDEM-03)."""

    status = 422
    problem_type = "idempotency-conflict"
    title = "Idempotency Key Reused"
    offers_challenge = False


class BodyTimeoutError(PeerError):
    """The request body did not arrive in time. Nothing was charged."""

    status = 408
    problem_type = "request-timeout"
    title = "Request Timeout"
    offers_challenge = False


class TooManyRequestsError(PeerError):
    """The channel sends more vouchers a second than the server accepts (VCH-09)."""

    status = 429
    problem_type = "rate-limited"
    title = "Too Many Requests"
    offers_challenge = False
    retry_after_s = 1


class TooManyDepositsError(TooManyRequestsError):
    """One payer or client address asks for more deposits than the server pays gas for (F-98)."""

    retry_after_s = 600


class OperatorError(ProblemError):
    """The operator's fault. The answer has no challenge, so that no peer pays a second time."""

    status = 503
    problem_type = "payment-unavailable"
    title = "Payment Temporarily Unavailable"
    offers_challenge = False
    retry_after_s = 5


class ConfigError(OperatorError):
    """A setting that would lose money later; the program refuses to start (decision 15)."""


class ChainUnavailableError(OperatorError):
    """No node answered before the deadline, or a node's answer made no sense."""


class SettlementPendingError(OperatorError):
    """The payee's transaction is in the journal or broadcast, and not yet mined (F-75)."""


class StoppingError(OperatorError):
    """The program is stopping. A running stream ends early, with its receipt."""


class LedgerUnavailableError(OperatorError):
    """The ledger could not make a change durable, so nothing was acknowledged (F-51)."""


class ChannelStoppedError(OperatorError):
    """The ledger and the chain disagree about this channel, so it is stopped (decision 4).

    Either a reorg removed part of the deposit, which may be mined again without help. Or the
    chain has settled more than this ledger ever accepted: the ledger is an old copy, and the
    operator must run `mpp-session ledger repair` (F-52, SETTLE-05).
    """


class ServerBusyError(OperatorError):
    """As many paid requests run as the operator allows. Nothing was charged (O-24)."""

    problem_type = "server-busy"
    title = "Server Busy"
    retry_after_s = 1


class ExposureLimitError(OperatorError):
    """Accepting this would exceed the operator's exposure limit; a settlement makes room (F-66).

    Nothing beyond the limit was accepted or served. The channel still accepts a lower voucher.
    """

    problem_type = "exposure-limit"
    title = "Exposure Limit Reached"


class SponsoringPausedError(OperatorError):
    """The payee pays no gas for payers now: its budget is used up, or gas is too dear (F-98).

    Nothing was broadcast. The server still accepts deposits that payers send themselves.
    """

    problem_type = "sponsoring-paused"
    title = "Gas Is Not Paid For Now"
    retry_after_s = 60


class OpeningsPausedError(OperatorError):
    """New channels are refused: there is not enough gas to defend one more in time (F-65)."""

    problem_type = "openings-paused"
    title = "New Channels Are Paused"
    retry_after_s = 60


class SalesPausedError(OperatorError):
    """The operator has paused sales. What is sold already is served, settled and closed."""

    problem_type = "sales-paused"
    title = "Sales Are Paused"
    retry_after_s = 60


class AgentError(MppSessionError):
    """Raised on the paying side: an offer refused, a limit reached, a server caught lying."""


@dataclass(frozen=True, kw_only=True)
class RefusedOffer:
    """One offer of a 402 that was not taken, and what it would take (O-53).

    What an offer states is None where it does not state it, or where it cannot be read.
    """

    method: str
    """The method and intent, such as `evm/session`, or the scheme and network of x402."""
    chain_id: int | None = None
    token: str | None = None
    amount: int | None = None
    """In base units: for one request, or for one unit of a session."""
    recipient: str | None = None
    needs: str
    """What it would take."""
    setting: str | None = None
    """The setting of `Policy` or `TokenLimits` that would allow it; None if there is none."""

    def __str__(self) -> str:
        """Return a sentence without its full stop."""
        terms = [
            "" if self.amount is None else f"{self.amount} base units",
            "" if self.token is None else f"of {self.token}",
            "" if self.chain_id is None else f"on chain {self.chain_id}",
            "" if self.recipient is None else f"to {self.recipient}",
        ]
        said = " ".join(filter(None, terms))
        setting = "" if self.setting is None else f" (set {self.setting})"
        return f"{self.method}{said and f', {said},'} {self.needs}{setting}"


class OfferRefusedError(AgentError):
    """A 402 demands what the agent's policy does not allow. Nothing was signed (CLIENT-01)."""

    def __init__(
        self,
        *,
        field: str,
        asked: object,
        allowed: object,
        origin: str,
        setting: str | None = None,
        offers: Sequence[RefusedOffer] = (),
    ) -> None:
        """Name the field, what was asked and what is allowed; with `offers`, each refusal.

        `setting` is the setting of the policy that decides.
        """
        is_named = setting is None or setting.rpartition(".")[2] in str(allowed)
        found = "" if is_named else f" (set {setting})"
        words = f"{origin} asks for {field} {asked}; the policy allows {allowed}{found}."
        if offers:
            each = " ".join(f"({place}) {offer}." for place, offer in enumerate(offers, 1))
            count = "1 offer, and it" if len(offers) == 1 else f"{len(offers)} offers, and none"
            words = f"{origin} makes {count} can{'not' * (len(offers) == 1)} be taken. {each}"
        super().__init__(words)
        self.setting = setting
        self.offers = tuple(offers)
        self.field = field
        self.asked = asked
        self.allowed = allowed
        self.origin = origin


class BudgetExceededError(AgentError):
    """Paying would exceed a limit of the policy. Nothing was signed (F-92, F-96)."""

    def __init__(self, *, limit: str, asked: int, allowed: int, origin: str) -> None:
        super().__init__(
            f"Paying {origin} would bring {limit} to {asked} base units; "
            f"the policy allows {allowed}."
        )
        self.limit = limit
        self.asked = asked
        self.allowed = allowed
        self.origin = origin


class PolicyRefusedError(AgentError):
    """The wallet's policy refuses a payment. Nothing was signed."""

    def __init__(
        self,
        reason: str,
        *,
        code: str,
        field: str | None = None,
        asked: int | None = None,
        allowed: int | None = None,
        rule: str | None = None,
        retry_at: float | None = None,
    ) -> None:
        """Take the sentence for people, and what a program decides by.

        Args:
            reason: What was asked, what is allowed, and what to do.
            code: Stable; docs/guide/wallet.md lists them.
            field: The field of the request or the setting of the policy that decides.
            asked: In base units or a count, where the refusal is about a number.
            allowed: What was left of it.
            rule: The rule of the policy that decides, if one does.
            retry_at: When the same request may be allowed, in Unix seconds.
        """
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.field = field
        self.asked = asked
        self.allowed = allowed
        self.rule = rule
        self.retry_at = retry_at


class ApprovalPendingError(AgentError):
    """A payment waits for the approval of a person or a supervisor. Nothing was signed.

    The same request, sent again after the approval, is paid.
    """

    def __init__(self, reason: str, *, approval_id: str, expires_at: float) -> None:
        """Take the question as people read it, its id, and until when it can be answered."""
        super().__init__(
            f"{reason} This waits for approval {approval_id}; send the request again once it is "
            "given."
        )
        self.reason = reason
        self.approval_id = approval_id
        self.expires_at = expires_at


class CannotFundError(AgentError):
    """The account can make none of the deposits that the server accepts. Nothing was signed.

    `needs` says for each credential type what is missing, so that the operator of the agent
    knows what to send or approve (CLIENT-02, F-90).
    """

    def __init__(self, *, account: bytes, origin: str, needs: Mapping[str, str]) -> None:
        wants = "; ".join(f"{kind}: {need}" for kind, need in needs.items())
        super().__init__(
            f"0x{account.hex()} cannot make a deposit for {origin}. {wants}. "
            "Send the account what is missing."
        )
        self.account = account
        self.origin = origin
        self.needs = dict(needs)


class DepositPendingError(AgentError):
    """The server has a signed deposit and its transaction is not mined yet (F-75).

    The client keeps the deposit and presents it again with the next request. It never signs a
    second one instead.
    """

    def __init__(self, *, origin: str, waited_s: float) -> None:
        super().__init__(
            f"{origin} has not had the signed deposit mined within {waited_s:.0f} s. "
            "The deposit is kept: repeat the request later to resume it."
        )
        self.origin = origin
        self.waited_s = waited_s


class ChargePendingError(AgentError):
    """A charge was signed for this request, and the server asks to be paid again.

    It can use the first signature until that ends, or has used it. No second one is signed for the
    same request before the first can no longer be settled.
    """

    def __init__(self, *, origin: str, amount: int, until: str, outcome: str) -> None:
        super().__init__(
            f"{origin} got a signature over {amount} base units for this request and asks to be "
            f"paid again. {outcome} No second one is signed before {until}: repeat the request "
            "until then to send the same signature, or later to pay anew."
        )
        self.origin = origin
        self.amount = amount
        self.until = until


class OverclaimError(AgentError):
    """The server demands more than it has delivered plus one step. Nothing was signed (F-94)."""

    def __init__(self, *, asked: int, allowed: int, received: int) -> None:
        super().__init__(
            f"The server asks for vouchers up to {asked} base units; it has delivered "
            f"{received} by this client's count, which allows {allowed}."
        )
        self.asked = asked
        self.allowed = allowed
        self.received = received


class UnsettledClaimError(AgentError):
    """The server demands more than may be signed now, and may be right. Nothing was signed.

    Other requests on the channel may have used the allowance of this one, or broken and abandoned
    requests may have cost more than the policy grants. The client waited and asked again before
    it raised this (F-94).
    """

    def __init__(self, *, asked: int, allowed: int, received: int, lost: int) -> None:
        super().__init__(
            f"The server asks for vouchers up to {asked} base units; {received} arrived and {lost} "
            f"may have been lost, which allows {allowed}. Concurrent or broken requests may have "
            "used the rest. Read the open streams to their end; if none is open, close the "
            "channel: `Policy.lost_units_max` bounds what may be lost on one."
        )
        self.asked = asked
        self.allowed = allowed
        self.received = received
        self.lost = lost


class ReceiptViolationError(AgentError):
    """A receipt contradicts what was signed or stated before. The channel stops (CLIENT-09)."""

    def __init__(self, *, field: str, said: object, expected: object) -> None:
        super().__init__(f"The receipt says {field} {said}; expected {expected}.")
        self.field = field
        self.said = said
        self.expected = expected


class PaymentRefusedError(AgentError):
    """The server refuses a valid payment, and paying again would not help (F-97)."""

    def __init__(self, *, status: int, problem_type: str, detail: str) -> None:
        super().__init__(f"The server answered {status} {problem_type}: {detail}")
        self.status = status
        self.problem_type = problem_type
        self.detail = detail


class PaymentOutcomeUnknownError(AgentError):
    """A credential was sent and no answer came, so the request may or may not have been served.

    Repeating the request with the same `Idempotency-Key` is safe: the server neither serves nor
    charges it twice. Under a new key it may do both (F-26). It may also do both when the body
    exceeds 4 MiB, because servers ignore the key then.
    """

    def __init__(self, *, idempotency_key: str, reason: str) -> None:
        super().__init__(
            f"The request was paid, but the answer was lost ({reason}). "
            f"Repeat it with Idempotency-Key {idempotency_key}."
        )
        self.idempotency_key = idempotency_key
        self.reason = reason


class ChannelBusyError(AgentError):
    """Every channel to this payee has a stream running; a channel carries one (ACC-06)."""


class ChannelUnusableError(AgentError):
    """The channel cannot be used for this: it is stopped, closing, unknown, or has no deposit."""


class BodyNotReplayableError(AgentError):
    """A 402 came after a body that cannot be sent again: too long, or from a generator."""


class StoreError(AgentError):
    """The payment store cannot be opened, read or written. Nothing was signed."""


class WireError(MppSessionError):
    """Malformed bytes, from any source.

    The parsers of `channel.wire` raise it. The caller knows where the bytes came from and turns
    it into its own error: `MalformedCredentialError` for a credential, an `AgentError` for a
    server's answer.
    """


class InvariantError(MppSessionError):
    """The ledger contradicts itself. This is a bug: no code catches it, and the worker stops."""


class StorageFailedError(InvariantError):
    """A sync failed or a file is corrupt, so the disk may lack what the ledger holds (F-51).

    This is not a bug, but as fatal as one: the process must not use the file again. A new process
    may, after it has rewritten and synced the content of the log.
    """
