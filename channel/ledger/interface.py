"""The interface of a ledger, and what "durable" means.

`apply` returns after the change is on disk and would survive a loss of power: SQLite with
synchronous=FULL in WAL mode, PostgreSQL with synchronous_commit on. Jobs that arrive while a
commit runs go into the next one; nothing is acknowledged early, and no timer delays a commit
(decision 3: the disk sets the pace). A ledger decides nothing: it loads the state, calls
`channel.state.transition`, and stores the result, in one transaction per batch.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec

from channel.errors import ChannelNotFoundError, ProblemError
from channel.ledger.accounts import ChargeDay, ChargeRow
from channel.ledger.group_commit import OnCommit
from channel.ledger.marker import BooksId, Marker
from channel.state.channel_state import ChannelState
from channel.state.commands import Command
from channel.state.requests import RequestClaim, StoredResponse
from channel.types import ChannelKey, TxHash

__all__ = [
    "Applied",
    "ClaimRequest",
    "ConsumeProof",
    "ForgetRequest",
    "Ledger",
    "RequestUpdate",
    "Soundness",
    "StoreResponse",
    "Watch",
    "load_known",
]


class ClaimRequest(msgspec.Struct, frozen=True, gc=False):
    """Before the commands: answer a repeat from the record. With them: record the claim."""

    claim: RequestClaim


class StoreResponse(msgspec.Struct, frozen=True, gc=False):
    """With the commands that spend: store the answer for repeats of the key."""

    claim: RequestClaim
    response: StoredResponse


class ForgetRequest(msgspec.Struct, frozen=True, gc=False):
    """With the commands that release: the request was not served, so its key may be reused."""

    claim: RequestClaim


RequestUpdate = ClaimRequest | StoreResponse | ForgetRequest


class ConsumeProof(msgspec.Struct, frozen=True, gc=False):
    """A transaction's log used as evidence, once and by one channel only (F-29, F-30)."""

    tx_hash: TxHash
    log_index: int
    is_single: bool = False
    """Usable once even by the same channel, unless that is already closing. For the signature of
    a close request, whose hash takes the place of a transaction's (O-21)."""


class Applied(msgspec.Struct, frozen=True, gc=False):
    """The durable result of an `apply`."""

    state: ChannelState
    refusal: ProblemError | None = None
    """Why a command was refused. Earlier commands took effect, later ones were not run."""
    stored: StoredResponse | None = None
    """The earlier answer to this idempotency key; no command was run."""

    def require(self) -> ChannelState:
        """Return the state, or raise the refusal."""
        if self.refusal is not None:
            raise self.refusal
        return self.state


class Soundness(msgspec.Struct, frozen=True, gc=False):
    """Whether the database still makes commits durable, as it did at start-up."""

    fault: str | None = None
    """Why nothing is accepted any more: a commit was lost, or may be."""
    warning: str | None = None
    """What would lose commits if a machine failed."""


class Watch(Protocol):
    """Changes of one channel, as one waiter sees them."""

    async def changed(self, timeout_s: float) -> bool:
        """Wait until the channel may have changed since the last call; False after the timeout.

        A change between entering the watch, or the last call, and this call is not missed. The
        call may also return True without a change: load the state and look.
        """


class Ledger(Protocol):
    """The durable record of every channel.

    Every method may raise `LedgerUnavailableError`. Then nothing was changed, or, when the
    connection broke during a commit, the caller must load the state to find out.
    """

    async def load(self, key: ChannelKey) -> ChannelState | None:
        """Return the channel as it is on disk, or None if it is not known.

        Never older than what this ledger acknowledged. A gateway's ledger answers from memory,
        because it is asked for every voucher. Then another process's commit becomes visible within
        `CACHE_TRUSTED_S`, or immediately when it wakes a watch. `apply` always decides on the
        newest state, and `Applied.state` is that state.
        """

    async def apply(
        self,
        key: ChannelKey,
        commands: Sequence[Command],
        *,
        request: RequestUpdate | None = None,
        proof: ConsumeProof | None = None,
    ) -> Applied:
        """Run commands in order on one channel and return once the result is on disk.

        All commands of one call are in one transaction, together with `request` and `proof`.
        The first refused command ends the call: earlier commands take effect, the refusal is in
        `Applied.refusal`, and neither a claim nor a response is recorded. The proof is consumed if
        a command changed the channel, or none was refused (VCH-07). Cancelling the caller does not
        undo anything: a queued change is still made (F-42).

        Raises:
            ChannelNotFoundError: The channel is unknown and the first command does not open it.
            PeerError: The channel is unknown and opening it was refused.
            VerificationFailedError: Another channel has consumed the proof.
            SignatureUsedError: This channel has consumed a proof that is usable once.
            BadRequestError: The idempotency key is not printable ASCII of bounded length.
            InvariantError: A bug; the ledger refuses all further work.
        """

    def watch(self, key: ChannelKey | None) -> AbstractAsyncContextManager[Watch]:
        """Watch one channel for changes by any process, this one included.

        With None, a change of any channel wakes the waiter: a decided close promptly, other
        changes when polling sees them.
        """

    async def list_channels(
        self, *, after: ChannelKey | None = None, limit: int = 1000, open_only: bool = False
    ) -> list[ChannelState]:
        """Return channels in key order, a page at a time."""

    async def list_pending_closes(self, *, limit: int = 1000) -> list[ChannelState]:
        """Return channels with a decided close that is not mined: the settler must send it."""

    async def list_foreign(self, *, limit: int = 1000) -> list[ChannelState]:
        """Return channels settled or closed on chain, but not by this ledger (O-89)."""

    async def expire_reservations(self, now: int) -> int:
        """End every reservation whose lease expired by `now`, in Unix seconds.

        With a database server, the lease must have expired by the server's clock, too.
        Returns how many channels had one.
        """

    async def list_leased(self) -> list[ChannelState]:
        """Return channels with reservations, one page at most."""

    async def end_unrenewed(self, key: ChannelKey, unrenewed: Sequence[tuple[bytes, int]]) -> None:
        """End reservations, by id and lease, that their owner has stopped renewing."""

    async def end_all_reservations(self) -> int:
        """End every reservation: for the one process that owns the ledger, at start-up."""

    async def prune(self, now: int) -> int:
        """Delete idempotency rows past their lifetime, and answers of channels beyond the bounds.

        The newest `STORED_RESPONSES_PER_CHANNEL_MAX` answers of a channel stay, unless all answers
        together exceed `STORED_BYTES_MAX`; then the oldest of all are deleted. The key of a deleted
        answer stays: a repeat gets "outcome unknown" and is not charged. Entries of the accounts
        beyond their age are added up by day. Returns how many rows and answers were deleted.
        """

    async def list_charges(
        self, since: int, until: int, *, after: ChargeRow | None = None, limit: int = 1000
    ) -> list[ChargeRow]:
        """Return entries of the accounts from `since` to before `until`, in Unix seconds.

        In order of time, a page at a time. The time of an entry is that of its commit, so a
        period that has passed gets no more entries.
        """

    async def find_charges(self, reservation_id: bytes) -> list[ChargeRow]:
        """Return the entries of a request: one, or none while it runs or after it sold nothing."""

    async def find_answers(self, response_id: str) -> list[ChargeRow]:
        """Return the entries of the answers that state this id, of one request or of several."""

    async def restore_charges(self, rows: Sequence[ChargeRow]) -> int:
        """Enter rows of another ledger's export, with their times; return how many were entered.

        Each takes its amount from what its channel has spent without a row. A row is left out if
        that is less, its channel is not known, or the row is there already.
        """

    async def list_charge_days(self, since: int, until: int) -> list[ChargeDay]:
        """Return what deleted entries add up to, for days from `since` to before `until`."""

    async def faults(self) -> list[str]:
        """Return what is wrong with the stored rows, one sentence each; empty when nothing is.

        Reads every row: for an operator's check, not for a running gateway. Each channel's
        charges must add up to its `spent`.
        """

    async def identity(self, marker: str) -> BooksId:
        """Return the identity of the database; `marker` is the name of its marker, if any."""

    async def guard(self, marker: Marker) -> Soundness:
        """Compare the ledger with `marker`, and record in the marker each commit from now on.

        The ledger itself records that the marker exists. After each lost connection the ledger
        compares again. While there is a fault, `apply` raises `LedgerUnavailableError`.
        """

    async def look(self) -> Soundness:
        """Check that a commit still means "on disk", and that none was lost (see `guard`)."""

    def report_commits(self, report: OnCommit) -> None:
        """Call `report` after each commit with its number of jobs and its seconds."""

    async def close(self) -> None:
        """Commit what is queued, then release the database."""


async def load_known(ledger: Ledger, key: ChannelKey) -> ChannelState:
    """Return the state of a channel that was opened here.

    Raises:
        ChannelNotFoundError: It was not.
        LedgerUnavailableError: The database does not answer.
    """
    state = await ledger.load(key)
    if state is None:
        raise ChannelNotFoundError("The channel is not known here.")
    return state
