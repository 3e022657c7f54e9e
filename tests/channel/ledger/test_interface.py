"""What `channel.ledger.interface` promises, on every backend."""

import asyncio

import pytest
from msgspec.structs import replace

from channel.errors import (
    AmountExceedsDepositError,
    BadRequestError,
    ChannelNotFoundError,
    IdempotencyConflictError,
    InsufficientBalanceError,
    InvariantError,
    LedgerUnavailableError,
    OutcomeUnknownError,
    RequestInFlightError,
    SignatureUsedError,
    VerificationFailedError,
)
from channel.ledger import answers, postgres, sqlite_books, watching
from channel.ledger.interface import (
    ClaimRequest,
    ConsumeProof,
    ForgetRequest,
    Ledger,
    StoreResponse,
    Watch,
)
from channel.ledger.sqlite import SqliteLedger
from channel.limits import (
    AMOUNT_MAX,
    CHANNELS_PER_PAGE_MAX,
    IDEMPOTENCY_KEY_BYTES_MAX,
    PRUNE_BATCH_MAX,
    ROUTE_BYTES_MAX,
    STORED_RESPONSE_BYTES_MAX,
)
from channel.state import commands as c
from channel.state.channel_state import LadderVoucher
from channel.state.requests import RequestClaim, StoredResponse
from channel.types import ZERO_ADDRESS, ChannelKey, ChannelTerms, TxHash, VerifiedVoucher
from tests.channel.books import (
    DEPOSIT,
    ESCROW,
    KEY,
    LEASE,
    NOW,
    TERMS,
    accepting,
    fact,
    key_of,
    opening,
    reserving,
    run,
    signature,
    streaming,
    voucher,
)
from tests.channel.ledger.conftest import OpenLedger
from tests.waiting import PATIENCE_S, within

CLAIM = RequestClaim("POST /v1/answers", "key-1", b"d" * 32, b"r", NOW, NOW + 86_400)
PAST = 1_700_000_000
"""A lease that has run out by any clock, a database server's included."""
ANSWER = StoredResponse(200, ((b"content-type", b"text/plain"), (b"x", b"\xff\x00")), b"\x0042")
PROOF = ConsumeProof(TxHash(b"t" * 32), 3)


async def quiet(watch: Watch) -> None:
    """Return when nothing wakes the watch any more; it may wake without a change."""
    while await watch.changed(0.25):
        pass


class TestApply:
    async def test_an_opened_channel_is_what_the_rules_make_of_it(self, ledger: Ledger) -> None:
        applied = await ledger.apply(KEY, [opening(50)])
        assert applied.require() == run(opening(50))
        assert await ledger.load(KEY) == run(opening(50))

    async def test_an_unknown_channel_is_not_found(self, ledger: Ledger) -> None:
        assert await ledger.load(KEY) is None
        with pytest.raises(ChannelNotFoundError):
            await ledger.apply(KEY, [accepting(10)])
        with pytest.raises(ChannelNotFoundError):
            await ledger.apply(KEY, [])
        assert await ledger.load(KEY) is None

    async def test_a_refused_open_raises_and_leaves_nothing(self, ledger: Ledger) -> None:
        with pytest.raises(AmountExceedsDepositError):
            await ledger.apply(KEY, [opening(DEPOSIT + 1)], proof=PROOF)
        assert await ledger.load(KEY) is None
        await ledger.apply(key_of(2), [opening(1, key_of(2))], proof=PROOF)

    async def test_the_first_refusal_ends_the_call_and_keeps_what_came_before(
        self, ledger: Ledger
    ) -> None:
        await ledger.apply(KEY, [opening(50)])
        applied = await ledger.apply(
            KEY, [accepting(60), reserving(b"r", 61, amount_min=61), accepting(70)]
        )
        assert isinstance(applied.refusal, InsufficientBalanceError)
        assert applied.state.accepted == 60
        assert await ledger.load(KEY) == applied.state
        with pytest.raises(InsufficientBalanceError):
            applied.require()

    async def test_calls_on_one_channel_run_one_after_the_other(self, ledger: Ledger) -> None:
        """ACC-02, F-24, F-36: of a hundred requests for one coin each, fifty are paid."""
        await ledger.apply(KEY, [opening(50)])
        asked = [reserving(b"%d" % n, 1) for n in range(60)]
        applied = await asyncio.gather(*[ledger.apply(KEY, [command]) for command in asked])
        assert sum(one.refusal is None for one in applied) == 50
        state = await ledger.load(KEY)
        assert state is not None
        assert (state.reserved, state.available) == (50, 0)

    async def test_vouchers_that_arrive_in_any_order_leave_the_highest(
        self, ledger: Ledger
    ) -> None:
        """F-38."""
        await ledger.apply(KEY, [opening(0)])
        amounts = [7, 3, 40, 12, 39, 1, 40, 38]
        await asyncio.gather(*[ledger.apply(KEY, [accepting(amount)]) for amount in amounts])
        state = await ledger.load(KEY)
        assert state is not None
        assert state.highest == LadderVoucher(40, signature(40))

    async def test_a_refused_call_harms_none_that_share_its_commit(self, ledger: Ledger) -> None:
        await ledger.apply(KEY, [opening(0)])
        results = await asyncio.gather(
            ledger.apply(KEY, [accepting(10)]),
            ledger.apply(key_of(9), [accepting(10, key_of(9))]),
            ledger.apply(KEY, [accepting(DEPOSIT + 1)]),
            ledger.apply(KEY, [accepting(20)]),
            return_exceptions=True,
        )
        assert isinstance(results[1], ChannelNotFoundError)
        state = await ledger.load(KEY)
        assert state is not None
        assert state.accepted == 20

    async def test_a_cancelled_call_is_still_made(self, ledger: Ledger) -> None:
        """F-42."""
        await ledger.apply(KEY, [opening(0)])
        calls = [asyncio.ensure_future(ledger.apply(KEY, [accepting(n)])) for n in (10, 20, 30)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert (await ledger.apply(KEY, [accepting(1)])).state.accepted == 30

    async def test_a_bug_stops_the_ledger_for_good_and_harms_no_other_call(
        self, ledger: Ledger
    ) -> None:
        await ledger.apply(KEY, [opening(50), reserving(b"r", 10)])
        bug, other = await asyncio.gather(
            ledger.apply(KEY, [c.Spend(b"r", 11)]),
            ledger.apply(key_of(2), [opening(5, key_of(2))]),
            return_exceptions=True,
        )
        assert isinstance(bug, InvariantError)
        assert not isinstance(other, BaseException)
        with pytest.raises(InvariantError):
            await ledger.apply(KEY, [accepting(60)])
        assert await ledger.load(KEY) == run(opening(50), reserving(b"r", 10))

    async def test_what_no_rule_foresaw_is_a_bug_too(self, ledger: Ledger) -> None:
        await ledger.apply(KEY, [opening(50)])
        with pytest.raises(InvariantError):
            await ledger.apply(KEY, ["no command"])  # type: ignore[list-item]

    async def test_a_closed_ledger_refuses(self, ledger: Ledger) -> None:
        await ledger.close()
        with pytest.raises(LedgerUnavailableError):
            await ledger.apply(KEY, [opening(1)])
        with pytest.raises(LedgerUnavailableError):
            await ledger.load(KEY)
        with pytest.raises(LedgerUnavailableError, match="closed"):
            await ledger.list_channels()

    async def test_closing_commits_what_is_queued(
        self, ledger: Ledger, open_ledger: OpenLedger
    ) -> None:
        call = asyncio.ensure_future(ledger.apply(KEY, [opening(7)]))
        await asyncio.sleep(0)
        await ledger.close()
        assert (await call).state.accepted == 7
        again = await open_ledger()
        assert await again.load(KEY) == run(opening(7))


class TestRows:
    async def test_every_field_survives_a_restart(
        self, ledger: Ledger, open_ledger: OpenLedger
    ) -> None:
        """Amounts at the edge of uint128; a row is the state, without loss."""
        terms = ChannelTerms(TERMS.payee, TERMS.payer, TERMS.token, ESCROW)
        seen = replace(fact(deposit=AMOUNT_MAX), terms=terms)
        commands: list[c.Command] = [
            c.OpenChannel(seen, voucher(0), NOW),
            accepting(5),
            accepting(2**64),
            accepting(2**127 + 1),
            reserving(b"r" * 16, 2**70, amount_min=1, presented=2**127 + 1),
            streaming(b"s", 7, presented=2**127 + 1, lease=LEASE + 1),
            streaming(b"", 9, presented=2**127 + 1),
            c.Spend(b"r" * 16, 2**65),
            c.Publish(2**64 + 1),
            c.Observe(replace(seen, settled=3, close_requested_at=NOW, block_number=2**40)),
        ]
        expected = run(*commands)
        for command in commands:
            await ledger.apply(KEY, [command])
        ending: list[c.Command] = [c.BeginClose(), c.EndReservations()]
        closing = c.CommitClose(LadderVoucher(2**127 + 1, signature(2**127 + 1)))
        mined = replace(seen, settled=2**127 + 1, is_finalized=True, block_number=2**41)
        record = c.RecordClose(mined, b"t" * 32)
        other = await open_ledger()
        assert await other.load(KEY) == expected
        await ledger.apply(KEY, [*ending, closing, record])
        assert await other.load(KEY) == run(*ending, closing, record, state=expected)

    async def test_a_wallets_long_signature_is_kept_whole(
        self, ledger: Ledger, open_ledger: OpenLedger
    ) -> None:
        long = VerifiedVoucher(KEY, 10, bytes(range(256)) * 16)
        await ledger.apply(KEY, [opening(0), c.AcceptVoucher(long, 1, NOW)])
        state = await (await open_ledger()).load(KEY)
        assert state is not None
        assert state.highest.signature == long.signature

    async def test_the_same_id_under_another_chain_or_escrow_is_another_channel(
        self, ledger: Ledger
    ) -> None:
        """Decision 4."""
        keys = [KEY, replace(KEY, chain_id=1), replace(KEY, escrow=ZERO_ADDRESS)]
        for amount, key in enumerate(keys):
            await ledger.apply(key, [opening(amount, key)])
        for amount, key in enumerate(keys):
            state = await ledger.load(key)
            assert state is not None
            assert (state.key, state.accepted) == (key, amount)


class TestRequests:
    """Decision 7, IDEM-02 to IDEM-05."""

    @pytest.fixture(autouse=True)
    async def _claimed(self, ledger: Ledger) -> None:
        commands: list[c.Command] = [opening(50), reserving(b"r", 10)]
        applied = await ledger.apply(KEY, commands, request=ClaimRequest(CLAIM))
        assert applied.refusal is None
        assert applied.stored is None

    async def answer(self, ledger: Ledger) -> None:
        spending: list[c.Command] = [c.Spend(b"r", 10), c.Release(b"r")]
        applied = await ledger.apply(KEY, spending, request=StoreResponse(CLAIM, ANSWER))
        assert applied.require().spent == 10

    async def test_a_repeat_gets_the_stored_answer_and_is_not_charged(
        self, ledger: Ledger, open_ledger: OpenLedger
    ) -> None:
        """F-26 to F-28: also after a restart, and from another process."""
        await self.answer(ledger)
        retry = ClaimRequest(replace(CLAIM, reservation_id=b"other"))
        for books in (ledger, await open_ledger()):
            applied = await books.apply(
                KEY, [accepting(60), reserving(b"other", 10)], request=retry
            )
            assert applied.stored == ANSWER
            assert (applied.state.spent, applied.state.accepted) == (10, 50)

    async def test_a_voucher_published_meanwhile_repeats_no_answer(
        self, ledger: Ledger, open_ledger: OpenLedger
    ) -> None:
        """Decision 5: decided on the newest state, not on what the gateway knew."""
        await self.answer(ledger)
        settler = await open_ledger()
        assert (await settler.apply(KEY, [c.Publish(50)])).refusal is None
        retry = ClaimRequest(replace(CLAIM, reservation_id=b"other"))
        for presented, is_repeated in ((50, False), (51, True)):
            commands: list[c.Command] = [
                accepting(presented),
                reserving(b"other", 10, presented=presented),
            ]
            applied = await ledger.apply(KEY, commands, request=retry)
            assert (applied.stored == ANSWER) is is_repeated
            assert isinstance(applied.refusal, InsufficientBalanceError) is not is_repeated
            assert applied.state.spent == 10

    async def test_a_repeat_while_it_runs_is_asked_to_wait(self, ledger: Ledger) -> None:
        commands: list[c.Command] = [reserving(b"other", 10)]
        retry = ClaimRequest(replace(CLAIM, reservation_id=b"other"))
        applied = await ledger.apply(KEY, commands, request=retry)
        assert isinstance(applied.refusal, RequestInFlightError)
        assert applied.state.reserved == 10

    async def test_the_same_key_for_another_body_is_refused(self, ledger: Ledger) -> None:
        other = ClaimRequest(replace(CLAIM, request_digest=b"e" * 32))
        applied = await ledger.apply(KEY, [reserving(b"other", 10)], request=other)
        assert isinstance(applied.refusal, IdempotencyConflictError)

    async def test_the_outcome_is_unknown_when_its_server_died(self, ledger: Ledger) -> None:
        await ledger.apply(KEY, [c.Renew(b"r", PAST)])
        assert await ledger.expire_reservations(PAST) == 1
        applied = await ledger.apply(KEY, [reserving(b"o", 1)], request=ClaimRequest(CLAIM))
        assert isinstance(applied.refusal, OutcomeUnknownError)
        assert (applied.state.spent, applied.state.reserved) == (0, 0)

    async def test_the_answer_of_an_ended_reservation_is_not_stored(self, ledger: Ledger) -> None:
        """F-43: what was not charged is not given again for free either."""
        await ledger.apply(KEY, [c.Renew(b"r", PAST)])
        await ledger.expire_reservations(PAST)
        spending: list[c.Command] = [c.Spend(b"r", 10), c.Release(b"r")]
        late = await ledger.apply(KEY, spending, request=StoreResponse(CLAIM, ANSWER))
        assert late.refusal is not None
        applied = await ledger.apply(KEY, [], request=ClaimRequest(CLAIM))
        assert isinstance(applied.refusal, OutcomeUnknownError)

    async def test_a_request_that_was_not_served_frees_its_key(self, ledger: Ledger) -> None:
        """F-48."""
        await ledger.apply(KEY, [c.Release(b"r")], request=ForgetRequest(CLAIM))
        again = replace(CLAIM, reservation_id=b"again")
        applied = await ledger.apply(KEY, [reserving(b"again", 10)], request=ClaimRequest(again))
        assert applied.refusal is None
        assert applied.state.reserved == 10

    async def test_only_its_owner_frees_a_key(self, ledger: Ledger) -> None:
        other = replace(CLAIM, reservation_id=b"other")
        await ledger.apply(KEY, [c.Release(b"other")], request=ForgetRequest(other))
        applied = await ledger.apply(KEY, [], request=ClaimRequest(other))
        assert isinstance(applied.refusal, RequestInFlightError)

    async def test_a_refused_command_claims_no_key(self, ledger: Ledger) -> None:
        other = replace(CLAIM, idempotency_key="key-2", reservation_id=b"q")
        short = [reserving(b"q", 100, amount_min=100)]
        refused = await ledger.apply(KEY, short, request=ClaimRequest(other))
        assert isinstance(refused.refusal, InsufficientBalanceError)
        paid: list[c.Command] = [accepting(200), *short]
        assert (await ledger.apply(KEY, paid, request=ClaimRequest(other))).refusal is None

    async def test_routes_keys_and_channels_do_not_share_a_row(self, ledger: Ledger) -> None:
        """AMB-11."""
        await self.answer(ledger)
        await ledger.apply(key_of(2), [opening(50, key_of(2))])
        for key, claim in (
            (KEY, replace(CLAIM, route="POST /other")),
            (KEY, replace(CLAIM, idempotency_key="KEY-1")),
            (key_of(2), CLAIM),
        ):
            applied = await ledger.apply(key, [], request=ClaimRequest(claim))
            assert (applied.refusal, applied.stored) == (None, None)

    async def test_one_of_many_simultaneous_repeats_is_served(self, ledger: Ledger) -> None:
        """F-24: claims that share a commit see each other."""
        claims = [
            replace(CLAIM, idempotency_key="burst", reservation_id=b"%d" % n) for n in range(8)
        ]
        calls = [
            ledger.apply(KEY, [reserving(claim.reservation_id, 1)], request=ClaimRequest(claim))
            for claim in claims
        ]
        applied = await asyncio.gather(*calls)
        assert sum(one.refusal is None for one in applied) == 1
        assert applied[-1].state.reserved == 11

    async def test_rows_past_their_lifetime_are_pruned(self, ledger: Ledger) -> None:
        await self.answer(ledger)
        assert await ledger.prune(CLAIM.expires_at - 1) == 0
        assert await ledger.prune(CLAIM.expires_at) == 1
        late = replace(CLAIM, claimed_at=CLAIM.expires_at + 1, expires_at=CLAIM.expires_at + 9)
        applied = await ledger.apply(KEY, [], request=ClaimRequest(late))
        assert (applied.refusal, applied.stored) == (None, None)

    @pytest.mark.parametrize(
        "key", ["a\0b", "\ud800", "\u00e9", "k" * (IDEMPOTENCY_KEY_BYTES_MAX + 1), "a\nb"]
    )
    async def test_a_key_no_row_can_hold_is_refused_before_it_can_harm_a_batch(
        self, ledger: Ledger, key: str
    ) -> None:
        """IDEM-01."""
        for claim in (replace(CLAIM, idempotency_key=key), replace(CLAIM, route=key * 9)):
            with pytest.raises(BadRequestError):
                await ledger.apply(KEY, [], request=ClaimRequest(claim))
        await self.answer(ledger)

    async def test_keys_and_routes_may_be_as_long_as_their_bounds(self, ledger: Ledger) -> None:
        key, route = "k" * IDEMPOTENCY_KEY_BYTES_MAX, "/" * ROUTE_BYTES_MAX
        longest = replace(CLAIM, idempotency_key=key, route=route)
        assert (await ledger.apply(KEY, [], request=ClaimRequest(longest))).refusal is None
        for claim in (
            replace(longest, idempotency_key=f"{key}k"),
            replace(longest, route=f"{route}/"),
        ):
            with pytest.raises(BadRequestError, match="bytes"):
                await ledger.apply(KEY, [], request=ClaimRequest(claim))

    async def test_a_response_beyond_the_bound_is_not_stored(self, ledger: Ledger) -> None:
        long = replace(ANSWER, body=bytes(STORED_RESPONSE_BYTES_MAX + 1))
        with pytest.raises(InvariantError):
            await ledger.apply(KEY, [], request=StoreResponse(CLAIM, long))
        await self.answer(ledger)

    async def test_however_many_there_are(self, ledger: Ledger) -> None:
        claims = [replace(CLAIM, idempotency_key=f"many-{n}") for n in range(PRUNE_BATCH_MAX + 1)]
        await asyncio.gather(
            *[ledger.apply(KEY, [], request=ClaimRequest(claim)) for claim in claims]
        )
        assert await ledger.prune(CLAIM.expires_at) == len(claims) + 1

    async def test_answers_are_forgotten_piece_by_piece(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SEC-10: however many channels have them, no piece of the work keeps payments waiting."""
        for module in (postgres, sqlite_books):
            monkeypatch.setattr(module, "STORED_RESPONSES_PER_CHANNEL_MAX", 1)
            monkeypatch.setattr(module, "PRUNE_CHANNELS_MAX", 2)
            monkeypatch.setattr(module, "PRUNE_BATCH_MAX", 3)
        for number in (11, 12, 13, 14, 15):
            key = key_of(number)
            await ledger.apply(key, [opening(1, key)])
            for n in range(number % 10):
                claim = replace(CLAIM, idempotency_key=f"{n}", expires_at=CLAIM.expires_at + n)
                await ledger.apply(key, [], request=ClaimRequest(claim))
                await ledger.apply(key, [], request=StoreResponse(claim, ANSWER))
        assert await ledger.prune(0) == 0 + 1 + 2 + 3 + 4
        assert await ledger.prune(0) == 0
        for number in (11, 12, 13, 14, 15):
            newest = replace(CLAIM, idempotency_key=f"{number % 10 - 1}")
            applied = await ledger.apply(key_of(number), [], request=ClaimRequest(newest))
            assert applied.stored == ANSWER

    async def test_a_channel_keeps_its_newest_answers_and_every_key(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """F-27, SEC-10: what a channel can make us store is bounded; nothing is charged twice."""
        for module in (postgres, sqlite_books):
            monkeypatch.setattr(module, "STORED_RESPONSES_PER_CHANNEL_MAX", 2)
        await ledger.apply(KEY, [c.Release(b"r")])
        claims = [
            replace(CLAIM, idempotency_key=f"key {n}", expires_at=CLAIM.expires_at + n)
            for n in range(5)
        ]
        for claim in claims:
            await ledger.apply(KEY, [], request=ClaimRequest(claim))
            await ledger.apply(KEY, [], request=StoreResponse(claim, ANSWER))
        assert await ledger.prune(0) == 3
        assert await ledger.prune(0) == 0
        for claim in claims[:3]:
            applied = await ledger.apply(KEY, [], request=ClaimRequest(claim))
            assert isinstance(applied.refusal, OutcomeUnknownError)
        for claim in claims[3:]:
            applied = await ledger.apply(KEY, [], request=ClaimRequest(claim))
            assert applied.stored == ANSWER

    async def store(self, ledger: Ledger, key: ChannelKey, n: int, size: int) -> RequestClaim:
        claim = replace(CLAIM, idempotency_key=f"key {n}", expires_at=CLAIM.expires_at + n)
        await ledger.apply(key, [], request=ClaimRequest(claim))
        response = replace(ANSWER, headers=(), body=bytes(size - 1))  # and a byte of headers
        await ledger.apply(key, [], request=StoreResponse(claim, response))
        return claim

    async def kept(self, ledger: Ledger, key: ChannelKey, claims: list[RequestClaim]) -> list[bool]:
        """Whether each answer is there still; every other one is known to have been given."""
        found = []
        for claim in claims:
            applied = await ledger.apply(key, [], request=ClaimRequest(claim))
            if applied.stored is None:
                assert isinstance(applied.refusal, OutcomeUnknownError)
            found.append(applied.stored is not None)
        return found

    async def test_a_channel_keeps_as_many_bytes_as_it_paid_for(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """O-10: to the byte, without waiting for a pruning; another channel is not touched."""
        monkeypatch.setattr(answers, "STORED_BYTES_PER_CHANNEL_MIN", 1_000)
        monkeypatch.setattr(answers, "STORED_BYTES_PER_BASE_UNIT", 10)
        poor, rich = key_of(11), key_of(12)
        for key in (poor, rich):
            await ledger.apply(key, [opening(100, key)])
        await ledger.apply(rich, [reserving(b"q", 100), c.Spend(b"q", 100), c.Release(b"q")])
        claims = {}
        for key in (poor, rich):
            claims[key] = [await self.store(ledger, key, n, 250) for n in range(4)]
        assert await self.kept(ledger, poor, claims[poor]) == [True] * 4
        claims[poor].append(await self.store(ledger, poor, 4, 250))
        assert await self.kept(ledger, poor, claims[poor]) == [False, True, True, True, True]
        claims[poor].append(await self.store(ledger, poor, 5, 251))
        assert await self.kept(ledger, poor, claims[poor]) == [False] * 3 + [True] * 3
        claims[poor].append(await self.store(ledger, poor, 6, 1_001))
        assert await self.kept(ledger, poor, claims[poor]) == [False] * 7
        assert await self.kept(ledger, rich, claims[rich]) == [True] * 4
        claims[rich].append(await self.store(ledger, rich, 7, 1_000))
        assert await self.kept(ledger, rich, claims[rich]) == [True] * 5

    async def test_no_channel_keeps_more_bytes_than_one_bound_for_any_payment(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """O-10, issue 10 B: at the bound all are kept; with one byte more the oldest goes."""
        monkeypatch.setattr(answers, "STORED_BYTES_PER_CHANNEL_MIN", 900)
        monkeypatch.setattr(answers, "STORED_BYTES_PER_BASE_UNIT", 10)
        monkeypatch.setattr(answers, "STORED_BYTES_PER_CHANNEL_MAX", 1_000)
        for number, last in ((41, 400), (42, 401)):
            key = key_of(number)
            await ledger.apply(key, [opening(100, key)])
            await ledger.apply(key, [reserving(b"q", 100), c.Spend(b"q", 100), c.Release(b"q")])
            claims = [await self.store(ledger, key, n, 200) for n in range(3)]
            claims.append(await self.store(ledger, key, 3, last))
            assert await self.kept(ledger, key, claims) == [last == 400, True, True, True]

    async def test_more_channels_than_are_counted_keep_no_more_than_they_paid_for(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """O-98, O-10: one whose count was forgotten is held to its bound at its next answer."""
        monkeypatch.setattr(answers, "CHANNELS_CACHED_MAX", 1)
        monkeypatch.setattr(answers, "STORED_BYTES_PER_CHANNEL_MIN", 1_000)
        monkeypatch.setattr(answers, "STORED_BYTES_PER_BASE_UNIT", 0)
        keys = [key_of(31), key_of(32)]
        claims: dict[ChannelKey, list[RequestClaim]] = {}
        for key in keys:
            await ledger.apply(key, [opening(1, key)])
            claims[key] = []
        for n in range(11):
            for key in keys:
                claims[key].append(await self.store(ledger, key, n, 100))
        for key in keys:
            assert await self.kept(ledger, key, claims[key]) == [False, *[True] * 10]

    async def test_in_all_no_more_is_stored_than_one_bound(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """O-10: however many channels there are; pruning makes room by the oldest of all."""
        await ledger.prune(0)
        monkeypatch.setattr(answers, "STORED_BYTES_MAX", 1_000)
        keys = [key_of(number) for number in range(21, 26)]
        for key in keys:
            await ledger.apply(key, [opening(1, key)])
        stored = [await self.store(ledger, key, n, 251) for n, key in enumerate(keys)]

        async def found() -> list[bool]:
            pairs = zip(keys, stored, strict=True)
            return [kept for key, one in pairs for kept in await self.kept(ledger, key, [one])]

        assert await found() == [True] * 4 + [False], "a fifth would be beyond it"
        assert await ledger.prune(0) == 2
        assert await found() == [False] * 2 + [True] * 2 + [False]
        late = await self.store(ledger, keys[0], 9, 251)
        assert await self.kept(ledger, keys[0], [late]) == [True]
        assert await ledger.prune(0) == 1


class TestProofs:
    """F-29, F-30."""

    async def test_a_proof_serves_one_channel_for_ever(
        self, ledger: Ledger, open_ledger: OpenLedger
    ) -> None:
        await ledger.apply(KEY, [opening(5)], proof=PROOF)
        await ledger.apply(KEY, [c.Observe(fact(block=101))], proof=PROOF)
        for books in (ledger, await open_ledger()):
            with pytest.raises(VerificationFailedError):
                await books.apply(key_of(2), [opening(5, key_of(2))], proof=PROOF)
            assert await books.load(key_of(2)) is None

    async def test_two_channels_cannot_take_a_proof_in_one_commit(self, ledger: Ledger) -> None:
        keys = [KEY, key_of(2)]
        results = await asyncio.gather(
            *[ledger.apply(key, [opening(5, key)], proof=PROOF) for key in keys],
            return_exceptions=True,
        )
        assert sum(isinstance(one, VerificationFailedError) for one in results) == 1

    async def test_a_signature_asks_for_a_close_once(
        self, ledger: Ledger, open_ledger: OpenLedger
    ) -> None:
        """O-21: also by other books of the same database; a close under way is gone on with."""
        asked = replace(PROOF, is_single=True)
        await ledger.apply(KEY, [opening(5)])
        for books in (ledger, await open_ledger()):
            applied = await books.apply(KEY, [c.BeginClose(voucher(9))], proof=asked)
            assert applied.require().is_closing
        await ledger.apply(KEY, [c.AbortClose()])
        for books in (ledger, await open_ledger()):
            with pytest.raises(SignatureUsedError):
                await books.apply(KEY, [c.BeginClose(voucher(9))], proof=asked)
        state = await ledger.load(KEY)
        assert state is not None
        assert not state.is_closing

    async def test_other_logs_and_chains_are_other_proofs(self, ledger: Ledger) -> None:
        await ledger.apply(KEY, [opening(5)], proof=PROOF)
        second = key_of(2)
        await ledger.apply(second, [opening(5, second)], proof=replace(PROOF, log_index=4))
        third = replace(KEY, chain_id=1)
        await ledger.apply(third, [opening(5, third)], proof=PROOF)

    async def test_a_deposit_that_landed_is_kept_though_its_voucher_fails(
        self, ledger: Ledger
    ) -> None:
        """VCH-07."""
        await ledger.apply(KEY, [opening(5)])
        topped = c.Observe(fact(deposit=2_000, block=101))
        applied = await ledger.apply(KEY, [topped, accepting(2_001)], proof=PROOF)
        assert isinstance(applied.refusal, AmountExceedsDepositError)
        assert applied.state.deposit == 2_000
        with pytest.raises(VerificationFailedError):
            await ledger.apply(key_of(2), [opening(5, key_of(2))], proof=PROOF)


class TestReservations:
    async def test_only_leases_that_ran_out_are_ended(self, ledger: Ledger) -> None:
        for number, lease in enumerate((PAST - 1, PAST, PAST + 1)):
            key = key_of(number)
            await ledger.apply(key, [opening(50, key), streaming(b"s", 5, lease=lease)])
        renewed = key_of(0)
        await ledger.apply(renewed, [c.Renew(b"s", PAST + 60)])
        assert await ledger.expire_reservations(PAST) == 1
        assert await ledger.expire_reservations(PAST) == 0
        spent = []
        for number in range(3):
            state = await ledger.load(key_of(number))
            assert state is not None
            spent.append((state.spent, state.reserved))
        assert spent == [(0, 5), (5, 0), (0, 5)]

    async def test_however_many_have_run_out(self, ledger: Ledger) -> None:
        keys = [key_of(number) for number in range(CHANNELS_PER_PAGE_MAX + 1)]
        await asyncio.gather(
            *[ledger.apply(key, [opening(50, key), reserving(b"r", 5, lease=PAST)]) for key in keys]
        )
        assert await ledger.expire_reservations(PAST) == len(keys)
        assert await ledger.end_all_reservations() == 0

    async def test_the_books_owner_can_end_them_all(self, ledger: Ledger) -> None:
        for number in range(3):
            key = key_of(number)
            held: list[c.Command] = [opening(50, key), streaming(b"s", 5), reserving(b"r", 5)]
            await ledger.apply(key, held[: number + 1])
        assert await ledger.end_all_reservations() == 2
        assert await ledger.end_all_reservations() == 0
        last = await ledger.load(key_of(2))
        assert last is not None
        assert (last.spent, last.reserved) == (5, 0)


class TestWatch:
    async def test_a_change_before_the_call_is_not_missed(self, ledger: Ledger) -> None:
        await ledger.apply(KEY, [opening(0)])
        async with ledger.watch(KEY) as watch:
            await ledger.apply(KEY, [accepting(10)])
            assert await watch.changed(PATIENCE_S)
            await quiet(watch)

    async def test_a_change_during_the_call_wakes_it_immediately(self, ledger: Ledger) -> None:
        """F-109."""
        await ledger.apply(KEY, [opening(0)])
        async with ledger.watch(KEY) as watch:
            await quiet(watch)
            waiting = asyncio.ensure_future(watch.changed(PATIENCE_S))
            await asyncio.sleep(0)
            await ledger.apply(KEY, [accepting(10)])
            async with within(1):
                assert await waiting

    async def test_a_voucher_taken_by_another_process_wakes_it(
        self, ledger: Ledger, open_ledger: OpenLedger
    ) -> None:
        """F-109."""
        other = await open_ledger()
        await ledger.apply(KEY, [opening(0)])
        async with ledger.watch(KEY) as watch:
            await quiet(watch)
            await other.apply(KEY, [accepting(10)])
            assert await watch.changed(PATIENCE_S)
            state = await ledger.load(KEY)
            assert state is not None
            assert state.accepted == 10

    async def test_nothing_wakes_after_the_watch_has_ended(self, ledger: Ledger) -> None:
        await ledger.apply(KEY, [opening(0)])
        async with ledger.watch(KEY), ledger.watch(KEY):
            pass
        await ledger.apply(KEY, [accepting(10)])
        async with ledger.watch(KEY) as watch:
            await quiet(watch)

    async def test_the_number_of_waiters_is_bounded(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watching, "WATCHES_MAX", 1)
        async with ledger.watch(KEY):
            with pytest.raises(LedgerUnavailableError):
                async with ledger.watch(key_of(2)):
                    pass
        async with ledger.watch(key_of(2)):
            pass


class TestManyProcesses:
    async def test_what_another_process_wrote_is_seen_before_it_is_built_upon(
        self, ledger: Ledger, open_ledger: OpenLedger
    ) -> None:
        """Decision 9, F-36."""
        other = await open_ledger()
        await ledger.apply(KEY, [opening(50), reserving(b"r", 10)])
        await other.apply(KEY, [c.Publish(50), c.Observe(fact(settled=5, block=101))])
        applied = await ledger.apply(KEY, [reserving(b"q", 1, presented=50)])
        assert isinstance(applied.refusal, InsufficientBalanceError)
        assert applied.state.settled == 5
        assert applied.state.reserved == 10

    async def test_writers_that_meet_lose_nothing(
        self, ledger: Ledger, open_ledger: OpenLedger
    ) -> None:
        """F-36, F-37: no update is lost, and being busy is no failure."""
        others = [await open_ledger() for _ in range(2)]
        await ledger.apply(KEY, [opening(DEPOSIT)])

        async def spend(books: Ledger, name: bytes) -> None:
            for _ in range(20):
                held: list[c.Command] = [reserving(name, 1), c.Spend(name, 1), c.Release(name)]
                (await books.apply(KEY, held)).require()

        await asyncio.gather(
            *[spend(books, b"%d" % n) for n, books in enumerate((ledger, *others))]
        )
        for books in (ledger, *others):
            state = (await books.apply(KEY, [])).require()
            assert state.spent == 60


class TestOwedCloses:
    """What the settler process finds (decision 14)."""

    async def test_a_decided_close_is_listed_until_it_is_mined(self, ledger: Ledger) -> None:
        for number in (1, 2, 3):
            await ledger.apply(key_of(number), [opening(50, key_of(number))])
        decided: list[c.Command] = [c.BeginClose(), c.CommitClose(LadderVoucher(50, signature(50)))]
        await ledger.apply(key_of(1), [c.BeginClose()])
        await ledger.apply(key_of(2), decided)
        await ledger.apply(key_of(3), decided)
        assert [state.key for state in await ledger.list_pending_closes()] == [key_of(2), key_of(3)]
        assert len(await ledger.list_pending_closes(limit=1)) == 1
        closed = fact(key_of(2), settled=50, is_finalized=True, block=101)
        await ledger.apply(key_of(2), [c.RecordClose(closed, b"t" * 32)])
        await ledger.apply(key_of(3), [c.AbortClose()])
        assert await ledger.list_pending_closes() == []

    async def test_who_watches_every_channel_hears_of_it_from_another_process(
        self, open_ledger: OpenLedger
    ) -> None:
        gateway, settler = await open_ledger(), await open_ledger()
        await gateway.apply(KEY, [opening(50)])
        async with settler.watch(None) as watch:
            await quiet(watch) if isinstance(settler, SqliteLedger) else await watch.changed(0.1)
            voucher_50 = LadderVoucher(50, signature(50))
            await gateway.apply(KEY, [c.BeginClose(), c.CommitClose(voucher_50)])
            assert await watch.changed(2)
            assert [state.key for state in await settler.list_pending_closes()] == [KEY]


class TestList:
    async def test_pages_follow_one_another_in_key_order(self, ledger: Ledger) -> None:
        keys = [key_of(number) for number in (5, 1, 3, 2, 4)]
        keys += [replace(key_of(9), chain_id=1), replace(key_of(9), escrow=ZERO_ADDRESS)]
        for key in keys:
            await ledger.apply(key, [opening(1, key)])
        listed = []
        after = None
        while page := await ledger.list_channels(after=after, limit=3):
            assert len(page) <= 3
            listed += [state.key for state in page]
            after = page[-1].key
        assert listed == sorted(keys)

    async def test_finalized_channels_can_be_left_out(self, ledger: Ledger) -> None:
        for number in range(3):
            key = key_of(number)
            await ledger.apply(key, [opening(1, key)])
        ended = fact(key_of(1), is_finalized=True, block=101)
        await ledger.apply(key_of(1), [c.Observe(ended)])
        listed = await ledger.list_channels(open_only=True)
        assert [state.key for state in listed] == [key_of(0), key_of(2)]
        assert len(await ledger.list_channels()) == 3
