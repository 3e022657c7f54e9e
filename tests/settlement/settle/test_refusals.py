"""Decision 14: a worker without a key says why the settler's close does not come."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pytest_asyncio import fixture

from settlement.errors import ChannelQuarantinedError
from settlement.settle.quarantine import LASTING
from settlement.settle.refusals import JournalRefusals
from settlement.tx.journal.interface import Quarantined
from settlement.tx.journal.sqlite import SqliteJournal
from settlement.types import RevertReason
from tests.channel.books import KEY, NOW, TERMS


@fixture
async def journal(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    path = tmp_path / "ledger.db"
    journal = await SqliteJournal.open(path, chain_id=KEY.chain_id, account=TERMS.payee)
    await journal.take_lease("this test", ttl_s=600)
    yield journal
    await journal.close()


async def refuse(journal: SqliteJournal, reason: str) -> JournalRefusals:
    await journal.quarantine(Quarantined(KEY, reason, 1, NOW, NOW + 60))
    return JournalRefusals(journal)


async def test_a_channel_that_was_not_refused_has_no_reason(journal: SqliteJournal) -> None:
    refusals = JournalRefusals(journal)
    assert await refusals.why_given_up(KEY) is None
    assert await refusals.why_pending(KEY) is None


async def test_a_refusal_that_may_pass_is_pending(journal: SqliteJournal) -> None:
    """F-79: a paused token, say; the settler tries again."""
    refusals = await refuse(journal, RevertReason.TOKEN_REFUSED.name)
    pending = await refusals.why_pending(KEY)
    assert isinstance(pending, ChannelQuarantinedError)
    assert pending.reason is RevertReason.TOKEN_REFUSED


@pytest.mark.parametrize("reason", sorted(LASTING, key=str))
async def test_a_refusal_that_lasts_does_not_explain_a_close_that_is_still_due(
    journal: SqliteJournal, reason: RevertReason
) -> None:
    """It is of an earlier settle or close: the settler gives up the close that it stops."""
    assert await (await refuse(journal, reason.name)).why_pending(KEY) is None


@pytest.mark.parametrize(
    ("reason", "status", "problem_type"),
    [
        (RevertReason.CHANNEL_NOT_FOUND, 410, "session/channel-not-found"),
        (RevertReason.NOT_PAYEE, 409, "session/transaction-reverted"),
        (RevertReason.AMOUNT_EXCEEDS_DEPOSIT, 402, "session/amount-exceeds-deposit"),
        (RevertReason.INVALID_SIGNATURE, 402, "session/invalid-signature"),
    ],
)
async def test_a_close_that_the_contract_refused_says_why(
    journal: SqliteJournal, reason: RevertReason, status: int, problem_type: str
) -> None:
    """CLOSE-04, ERR-02: as the error with the problem type of the reason."""
    reverted = await (await refuse(journal, reason.name)).why_given_up(KEY)
    assert reverted is not None
    assert reverted.reason is reason
    assert (reverted.status, reverted.problem_type) == (status, problem_type)


async def test_a_reason_of_another_version_is_unknown(journal: SqliteJournal) -> None:
    refusals = await refuse(journal, "FROM_TOMORROW")
    reverted = await refusals.why_given_up(KEY)
    assert reverted is not None
    assert reverted.reason is RevertReason.UNKNOWN
