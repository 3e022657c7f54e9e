"""Decides one batch: takes the rows that were read, returns what to write and what to answer.

Both backends read the rows that a batch needs, call `decide`, write what changed, and commit.
`channel.state` makes every decision; this module only orders them (IDEM-05, decision 7).
"""

from collections.abc import Iterable, Sequence

import msgspec

from channel.errors import (
    BadRequestError,
    ChannelNotFoundError,
    InvariantError,
    ProblemError,
    SignatureUsedError,
    VerificationFailedError,
)
from channel.ledger.interface import (
    Applied,
    ClaimRequest,
    ConsumeProof,
    ForgetRequest,
    RequestUpdate,
    StoreResponse,
)
from channel.limits import (
    IDEMPOTENCY_KEY_BYTES_MAX,
    ROUTE_BYTES_MAX,
    STORED_RESPONSE_BYTES_MAX,
)
from channel.state.channel_state import ChannelState
from channel.state.charges import Charge
from channel.state.charging import CHARGING, charges_of
from channel.state.commands import Command, Reserve
from channel.state.requests import RequestRecord, StoredResponse, decide_request
from channel.state.transitions import transition
from channel.types import ChannelKey, TxHash

__all__ = ["Books", "Job", "ProofId", "RequestId", "decide", "job_of", "proof_id", "request_id"]


class Job(msgspec.Struct, frozen=True, gc=False):
    """One call of `Ledger.apply`."""

    key: ChannelKey
    commands: tuple[Command, ...]
    request: RequestUpdate | None = None
    proof: ConsumeProof | None = None


def job_of(
    key: ChannelKey,
    commands: Iterable[Command],
    request: RequestUpdate | None,
    proof: ConsumeProof | None,
) -> Job:
    """Return a call of `apply` as a job, after checking that a row can hold it.

    Raises:
        BadRequestError: The idempotency key or the route is not short printable ASCII.
        InvariantError: The response is longer than may be stored.
    """
    if request is not None:
        claim = request.claim
        _require_text(claim.idempotency_key, IDEMPOTENCY_KEY_BYTES_MAX, "The idempotency key")
        _require_text(claim.route, ROUTE_BYTES_MAX, "The route")
    if isinstance(request, StoreResponse) and len(request.response.body) > (
        STORED_RESPONSE_BYTES_MAX
    ):
        raise InvariantError(
            f"expected a response of at most {STORED_RESPONSE_BYTES_MAX} bytes to store, "
            f"found {len(request.response.body)}"
        )
    return Job(key, tuple(commands), request, proof)


def _require_text(text: str, bytes_max: int, what: str) -> None:
    if not (text.isascii() and text.isprintable() and len(text) <= bytes_max):
        raise BadRequestError(f"{what} is not printable ASCII of at most {bytes_max} bytes.")


class RequestId(msgspec.Struct, frozen=True, gc=False):
    """Identifies an idempotency row (AMB-11)."""

    key: ChannelKey
    route: str
    idempotency_key: str


class ProofId(msgspec.Struct, frozen=True, gc=False):
    """Identifies one log of one transaction on one chain."""

    chain_id: int
    tx_hash: TxHash
    log_index: int


class Books:
    """The rows that a batch has read, and the rows that it has changed.

    The backend fills the first three before `decide` and writes the others after it. They are
    valid only after the commit has succeeded.
    """

    def __init__(self) -> None:
        self.states: dict[ChannelKey, ChannelState] = {}
        self.requests: dict[RequestId, RequestRecord] = {}
        self.proofs: dict[ProofId, ChannelKey] = {}
        self.changed_states: dict[ChannelKey, ChannelState] = {}
        self.changed_requests: dict[RequestId, RequestRecord | None] = {}
        self.consumed: dict[ProofId, ChannelKey] = {}
        self.charges: list[tuple[ChannelKey, Charge]] = []


def request_id(key: ChannelKey, request: RequestUpdate) -> RequestId:
    """Return the idempotency row that an update touches."""
    return RequestId(key, request.claim.route, request.claim.idempotency_key)


def proof_id(key: ChannelKey, proof: ConsumeProof) -> ProofId:
    """Return the row that consumes a proof."""
    return ProofId(key.chain_id, proof.tx_hash, proof.log_index)


def decide(jobs: Iterable[Job], books: Books) -> list[Applied | Exception]:
    """Run the jobs in order on `books`, and return the result for each caller.

    A job that fails changes nothing and does not affect other jobs.
    """
    return [_decide_job(job, books) for job in jobs]


def _decide_job(job: Job, books: Books) -> Applied | Exception:
    try:
        return _run_job(job, books)
    except (ProblemError, InvariantError) as error:
        return error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - an unforeseen exception in a rule is a bug
        return InvariantError(f"{type(error).__name__} in {_names(job)}: {error}")


def _run_job(job: Job, books: Books) -> Applied:
    before = books.states.get(job.key)
    if isinstance(job.request, ClaimRequest) and not _is_public(before, job.commands):
        record = books.requests.get(request_id(job.key, job.request))
        try:
            stored = decide_request(record, job.request.claim, before)
        except ProblemError as error:
            return _applied(before, error.with_traceback(None))
        if stored is not None:
            return _applied(before, None, stored)
    if job.proof is not None:
        _require_unused(job.key, job.proof, books)
        if job.proof.is_single and proof_id(job.key, job.proof) in books.proofs:
            _require_closing(before)
    state, refusal, charges = _run_commands(before, job)
    result = _applied(state, refusal)
    books.charges += charges
    if state is not before:
        books.states[job.key] = books.changed_states[job.key] = result.state
    if job.proof is not None and (refusal is None or state is not before):
        proof = proof_id(job.key, job.proof)
        if proof not in books.proofs:
            books.proofs[proof] = books.consumed[proof] = job.key
    if job.request is not None and refusal is None:
        _update_request(job.key, job.request, books)
    return result


def _is_public(state: ChannelState | None, commands: Iterable[Command]) -> bool:
    """Whether the request's voucher is public: then no answer is repeated for it (decision 5).

    It may have become public after the engine checked. The reservation is refused afterwards.
    """
    return state is not None and any(
        isinstance(command, Reserve) and command.presented <= state.published
        for command in commands
    )


def _run_commands(
    state: ChannelState | None, job: Job
) -> tuple[ChannelState | None, ProblemError | None, Sequence[tuple[ChannelKey, Charge]]]:
    """Return the state after the commands up to the first refusal, that refusal, and charges."""
    charges: Sequence[tuple[ChannelKey, Charge]] = ()
    for command in job.commands:
        try:
            after = transition(state, command)
        except ProblemError as error:
            return state, error.with_traceback(None), charges
        if type(command) in CHARGING:
            entered = charges_of(state, command, after)
            charges = [*charges, *[(job.key, charge) for charge in entered]]
        state = after
    return state, None, charges


def _applied(
    state: ChannelState | None,
    refusal: ProblemError | None,
    stored: StoredResponse | None = None,
) -> Applied:
    if state is None:
        raise refusal or ChannelNotFoundError("The channel is not known here.")
    return Applied(state, refusal, stored)


def _require_unused(key: ChannelKey, proof: ConsumeProof, books: Books) -> None:
    if books.proofs.get(proof_id(key, proof), key) != key:
        raise VerificationFailedError("The transaction was taken as proof for another channel.")


def _require_closing(state: ChannelState | None) -> None:
    """Refuse a signature that asked for a close before, unless that close is still under way."""
    if state is not None and not state.is_closing:
        raise SignatureUsedError("This signature has asked for a close before; make another.")


def _update_request(key: ChannelKey, update: RequestUpdate, books: Books) -> None:
    row = request_id(key, update)
    if not isinstance(update, ForgetRequest):
        response = update.response if isinstance(update, StoreResponse) else None
        record = RequestRecord(update.claim, response)
        books.requests[row] = books.changed_requests[row] = record
        return
    known = books.requests.get(row)
    if known is not None and known.claim.reservation_id == update.claim.reservation_id:
        del books.requests[row]
        books.changed_requests[row] = None


def _names(job: Job) -> str:
    return ", ".join(type(command).__name__ for command in job.commands)
