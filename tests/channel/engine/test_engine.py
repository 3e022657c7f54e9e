"""The order of the steps: what is refused before it costs, and what one voucher can buy."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.engine import Authenticated, Engine, Hold, Outcome
from channel.errors import (
    AmountExceedsDepositError,
    ChainUnavailableError,
    ChallengeNotFoundError,
    ChannelFinalizedError,
    ChannelNotFoundError,
    ChannelStoppedError,
    ConfigError,
    InsufficientBalanceError,
    InvalidSignatureError,
    MalformedPayloadError,
    ProblemError,
    SignerMismatchError,
    TooManyRequestsError,
    TransactionRevertedError,
    VerificationFailedError,
)
from channel.limits import CHAIN_CHECKS_MAX
from channel.methods.evm.method import EVM
from channel.methods.evm.payload import (
    OpenAuthorization,
)
from channel.state.commands import Publish, Release
from channel.types import Address, TxHash
from channel.verify.challenge_id import ChallengeBinder
from channel.wire.funding import (
    TransferAuthorization,
)
from channel.wire.payload import (
    Payload,
    VoucherPayload,
)
from tests.channel.selling import (
    DEPOSIT,
    PRICE,
    SECRET,
    SETTINGS,
    STRANGER_KEY,
    Payer,
    Provider,
    open_provider,
)
from tests.waiting import HASTY_S, PATIENCE_S, until


def paid(provider: Provider, payload: Payload) -> Authenticated:
    challenge = provider.engine.challenger.issue(provider.offer)
    return provider.engine.challenger.authenticate(
        provider.payer.credential(challenge, payload), [provider.offer]
    )


def hold(provider: Provider, units: int = 1) -> Hold:
    return Hold(
        reservation_id=provider.engine.new_id(), amount_min=units * PRICE, amount_max=units * PRICE
    )


async def perform(provider: Provider, payload: Payload, held: Hold | None = None) -> Outcome:
    return await provider.engine.perform(paid(provider, payload), held)


async def opened(provider: Provider, amount: int = 0) -> None:
    provider.payer.open_on_chain()
    await perform(provider, provider.payer.opening(amount))


async def test_n_copies_of_one_voucher_pay_once_each_for_what_it_covers(tmp_path: Path) -> None:
    """F-24, CORE-16: forty copies of a voucher for three requests reserve three times."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        payload = provider.payer.voucher(3 * PRICE)
        results = await asyncio.gather(
            *[perform(provider, payload, hold(provider)) for _ in range(40)], return_exceptions=True
        )
        served = [one for one in results if isinstance(one, Outcome)]
        refused = [one for one in results if isinstance(one, InsufficientBalanceError)]
        assert (len(served), len(refused)) == (3, 37)
        state = await provider.books()
        assert (state.reserved, state.available) == (3 * PRICE, 0)


async def test_a_replayed_opening_gives_nothing_back(tmp_path: Path) -> None:
    """OPEN-10, F-25: what was spent stays spent, and the chain is not asked again."""
    async with open_provider(tmp_path) as provider:
        await opened(provider, 5 * PRICE)
        held = hold(provider)
        outcome = await perform(provider, provider.payer.voucher(5 * PRICE), held)
        reservation = provider.engine.reservation(
            paid(provider, provider.payer.voucher(50)), held, outcome
        )
        reservation.take(1)
        await reservation.finish()
        before = await provider.books()
        provider.chain.fail_with = ChainUnavailableError("No node answers.")
        again = await perform(provider, provider.payer.opening(5 * PRICE))
        assert again.state == before
        assert (before.spent, before.accepted) == (PRICE, 5 * PRICE)


async def test_an_opening_pays_for_the_request_it_comes_with(tmp_path: Path) -> None:
    """OPEN-08, F-54: in one transaction with the reservation."""
    async with open_provider(tmp_path) as provider:
        provider.payer.open_on_chain()
        outcome = await perform(provider, provider.payer.opening(2 * PRICE), hold(provider))
        assert outcome.state.reserved == PRICE
        assert outcome.tx_hash == provider.payer.open_tx
        assert outcome.confirmations == 1


async def test_an_opening_on_a_channel_settled_elsewhere_starts_from_there(
    tmp_path: Path,
) -> None:
    """OPEN-08, F-25: books that were lost do not give the settled part again."""
    async with open_provider(tmp_path) as provider:
        provider.payer.open_on_chain()
        provider.chain.change(provider.payer.key, settled=300)
        outcome = await perform(provider, provider.payer.opening(350))
        assert (outcome.state.spent, outcome.state.accepted) == (300, 350)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"deposit": PRICE - 1}, InsufficientBalanceError),
        ({"settled": DEPOSIT - PRICE + 1}, InsufficientBalanceError),
        ({"is_finalized": True}, ChannelFinalizedError),
        ({"close_requested_at": 1}, ChannelFinalizedError),
    ],
)
async def test_what_the_chain_shows_decides_an_opening(
    tmp_path: Path, change: dict[str, int], error: type[ProblemError]
) -> None:
    """OPEN-04."""
    async with open_provider(tmp_path) as provider:
        provider.payer.open_on_chain()
        provider.chain.change(provider.payer.key, **change)
        with pytest.raises(error):
            await perform(provider, provider.payer.opening(5))
        assert await provider.state() is None


async def test_a_bad_first_voucher_asks_no_node_for_the_transaction(tmp_path: Path) -> None:
    """OPEN-07, F-98: the signature is judged before anything that costs."""
    async with open_provider(tmp_path) as provider:
        provider.payer.open_on_chain()
        opening = provider.payer.opening(50)
        forged = replace(opening, voucher=replace(opening.voucher, cumulative_amount=60))
        with pytest.raises(SignerMismatchError):
            await perform(provider, forged)
        assert provider.chain.reads == 0
        with pytest.raises(AmountExceedsDepositError):
            await perform(provider, provider.payer.opening(DEPOSIT + 1))
        assert await provider.state() is None


async def test_a_deposit_counts_when_it_is_deep_enough(tmp_path: Path) -> None:
    """SEC-07, OPEN-12, F-70: neither an opening nor a top-up before its confirmations."""
    async with open_provider(tmp_path, confirmations=3, transaction_wait_s=HASTY_S) as provider:
        provider.payer.open_on_chain()
        with pytest.raises(VerificationFailedError, match="1 of 3"):
            await perform(provider, provider.payer.opening())
        provider.chain.block += 2
        await perform(provider, provider.payer.opening())
        top_up = provider.payer.top_up(500)
        with pytest.raises(VerificationFailedError, match="1 of 3"):
            await perform(provider, top_up)
        provider.chain.block += 2
        assert (await perform(provider, top_up)).state.deposit == DEPOSIT + 500


async def test_a_transaction_that_reverted_is_final_immediately(tmp_path: Path) -> None:
    """OPEN-02, F-76."""
    async with open_provider(tmp_path, transaction_wait_s=3600) as provider:
        provider.payer.open_on_chain()
        provider.chain.reverted.add(provider.payer.open_tx)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(TransactionRevertedError):
                await perform(provider, provider.payer.opening())


async def test_strangers_can_keep_only_so_many_node_checks_running(tmp_path: Path) -> None:
    """F-98, F-99: openings without a transaction behind them wait in bounded number.

    They leave room for checks that need one answer of a node, such as a wallet's voucher.
    """
    async with open_provider(tmp_path, transaction_wait_s=PATIENCE_S) as provider:
        attempts = []
        waiting_max = CHAIN_CHECKS_MAX // 2
        for number in range(waiting_max + 8):
            stranger = Payer(provider.chain, (1000 + number).to_bytes(32))
            stranger.open_on_chain()
            stranger.open_tx = TxHash(number.to_bytes(32))
            challenge = provider.engine.challenger.issue(provider.offer)
            credential = stranger.credential(challenge, stranger.opening())
            authenticated = provider.engine.challenger.authenticate(credential, [provider.offer])
            attempts.append(asyncio.create_task(provider.engine.perform(authenticated)))
        await until(lambda: sum(attempt.done() for attempt in attempts) >= 8)
        wallet = Payer(provider.chain, b"\x07" * 32)
        wallet.open_on_chain()
        challenge = provider.engine.challenger.issue(provider.offer)
        by_wallet = replace(wallet.opening(), voucher=replace(wallet.sign(1), signature=b"other"))
        credential = wallet.credential(challenge, by_wallet)
        with pytest.raises(InvalidSignatureError):  # the wallet's word, not 429
            await provider.engine.perform(
                provider.engine.challenger.authenticate(credential, [provider.offer])
            )
        assert sum(attempt.done() for attempt in attempts) == 8
        provider.chain.reverted |= {TxHash(number.to_bytes(32)) for number in range(len(attempts))}
        results = await asyncio.gather(*attempts, return_exceptions=True)
        kinds = [type(result) for result in results]
        assert kinds.count(TransactionRevertedError) == waiting_max
        assert kinds.count(TooManyRequestsError) == 8


async def test_a_wallet_signs_through_the_chain_and_fails_closed(tmp_path: Path) -> None:
    """ENC-07, F-15, F-20: a key's signature first, then the signer's contract."""
    async with open_provider(tmp_path, takes_contract_signatures=True) as provider:
        wallet = Address(b"\x77" * 20)
        provider.chain.contracts.add(wallet)
        provider.payer.terms = replace(provider.payer.terms, authorized_signer=wallet)
        provider.payer.open_on_chain()
        signed = provider.payer.sign(50)
        signature = b"approved by the wallet"
        opening = replace(provider.payer.opening(), voucher=replace(signed, signature=signature))
        with pytest.raises(InvalidSignatureError):
            await perform(provider, opening)
        digest = EVM.voucher_digest(provider.payer.key, 50)
        provider.chain.wallet_signatures.add((wallet, digest, signature))
        provider.chain.fail_with = ChainUnavailableError("No node answers.")
        with pytest.raises(ChainUnavailableError):
            await perform(provider, opening)
        provider.chain.fail_with = None
        assert (await perform(provider, opening)).state.accepted == 50


async def test_a_keys_signature_never_asks_the_chain(tmp_path: Path) -> None:
    """ENC-07: the hot path costs no call."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        await perform(provider, provider.payer.voucher(PRICE), hold(provider))
        assert provider.chain.wallet_reads == 0


async def test_replays_of_a_public_voucher_do_not_use_up_the_payers_rate(tmp_path: Path) -> None:
    """VCH-09, decision 5: a stranger can send a public voucher."""
    async with open_provider(tmp_path, vouchers_per_second=5) as provider:
        await opened(provider, 50)
        await provider.ledger.apply(provider.payer.key, [Publish(50)])
        provider.clock.advance(2)
        replays = [perform(provider, provider.payer.voucher(50)) for _ in range(20)]
        results = await asyncio.gather(*replays, return_exceptions=True)
        assert any(isinstance(result, TooManyRequestsError) for result in results)
        await perform(provider, provider.payer.voucher(60))


async def test_a_public_voucher_buys_neither_content_nor_a_stored_answer(tmp_path: Path) -> None:
    """Decision 5, VCH-04, F-32: even when something is left of it."""
    async with open_provider(tmp_path) as provider:
        await opened(provider, 50)
        await provider.ledger.apply(provider.payer.key, [Publish(50)])
        with pytest.raises(InsufficientBalanceError) as refusal:
            await perform(provider, provider.payer.voucher(50), hold(provider))
        assert refusal.value.required_cumulative == 50 + PRICE


async def test_a_stopped_channel_takes_nothing(tmp_path: Path) -> None:
    """Decision 4, F-70: the deposit was taken back by a reorg."""
    async with open_provider(tmp_path, fact_ttl_s=0, fact_age_s_max=0) as provider:
        await opened(provider, 500)
        provider.chain.change(provider.payer.key, deposit=400)
        with pytest.raises(ChannelStoppedError):
            await perform(provider, provider.payer.voucher(600), hold(provider))
        provider.chain.change(provider.payer.key, deposit=DEPOSIT)
        with pytest.raises(ChannelStoppedError):  # refused cheaply, from the books
            await perform(provider, provider.payer.voucher(600), hold(provider))
        assert (await provider.books()).accepted == 500


async def test_an_expired_challenge_takes_vouchers_only_while_a_stream_lives(
    tmp_path: Path,
) -> None:
    """AMB-05, F-61."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        authenticated = paid(provider, provider.payer.voucher(50))
        credential = authenticated.credential
        provider.clock.advance(301)
        expired = provider.engine.challenger.authenticate(credential, [provider.offer])
        with pytest.raises(ChallengeNotFoundError):
            await provider.engine.perform(expired)
        closing = replace(credential, payload=provider.payer.closing(0))
        with pytest.raises(ChallengeNotFoundError):
            provider.engine.challenger.authenticate(closing, [provider.offer])


async def test_proofs_that_are_not_offered_are_refused(tmp_path: Path) -> None:
    """CRED-05, CHAL-04: the challenge says hash, so nothing else is taken."""
    async with open_provider(tmp_path) as provider:
        provider.payer.open_on_chain()
        opening = provider.payer.opening()
        authorization = TransferAuthorization(
            funder=provider.payer.address,
            to=provider.payer.key.escrow,
            value=100,
            valid_after=0,
            valid_before=2**32,
            nonce=bytes(32),
        )
        other = OpenAuthorization(
            voucher=opening.voucher,
            salt=opening.salt,
            authorized_signer=opening.authorized_signer,
            authorization=authorization,
            signature=bytes(65),
        )
        with pytest.raises(MalformedPayloadError):
            paid(provider, other)


async def test_a_strangers_channel_is_not_the_payers(tmp_path: Path) -> None:
    """SEC-03, SEC-11: a good signature by the wrong key learns nothing of the channel's amounts."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        stranger = Payer(provider.chain, STRANGER_KEY)
        voucher = stranger.sign(50, provider.payer.key)
        with pytest.raises(SignerMismatchError) as refused:
            await perform(provider, VoucherPayload(voucher))
        assert refused.value.members() == {}


async def test_a_cancelled_request_leaves_nothing_held(tmp_path: Path) -> None:
    """F-42: the queued reservation is made, and given back immediately."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        task = asyncio.create_task(perform(provider, provider.payer.voucher(50), hold(provider)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await provider.engine.aclose()
        state = await provider.books()
        assert state.reserved == 0
        assert (
            await provider.ledger.apply(provider.payer.key, [Release(b"x")])
        ).state.reserved == 0


async def test_a_lagging_node_is_asked_again(tmp_path: Path) -> None:
    """F-72: the receipt came from one node, the state from another that is behind."""
    async with open_provider(tmp_path, transaction_wait_s=PATIENCE_S) as provider:
        provider.payer.open_on_chain()
        evidence = provider.chain.mined[provider.payer.open_tx]
        provider.chain.mined[provider.payer.open_tx] = replace(
            evidence, block_number=provider.chain.block + 1
        )
        opening = asyncio.create_task(perform(provider, provider.payer.opening()))
        await until(lambda: provider.chain.transaction_reads > 1)
        assert not opening.done()
        provider.chain.block += 1
        await opening


async def test_a_node_that_stays_behind_opens_nothing(tmp_path: Path) -> None:
    """O-98, F-72: what it shows is from before the transaction; later the same opening counts."""
    async with open_provider(tmp_path, transaction_wait_s=HASTY_S) as provider:
        provider.payer.open_on_chain()
        provider.chain.blocks_behind = 1
        with pytest.raises(ChainUnavailableError, match="behind"):
            await perform(provider, provider.payer.opening(5 * PRICE))
        assert await provider.state() is None
        provider.chain.blocks_behind = 0
        assert (
            await perform(provider, provider.payer.opening(5 * PRICE))
        ).state.accepted == 5 * PRICE


async def test_a_top_up_is_the_chains_word_and_moves_nothing_else(tmp_path: Path) -> None:
    """TOPUP-03, TOPUP-06, TOPUP-07, F-29."""
    async with open_provider(tmp_path) as provider:
        await opened(provider, 50)
        top_up = provider.payer.top_up(500)
        for _ in range(2):
            state = (await perform(provider, top_up)).state
            assert (state.deposit, state.accepted, state.spent) == (DEPOSIT + 500, 50, 0)
        with pytest.raises(VerificationFailedError):
            await perform(provider, replace(top_up, additional_deposit=501))
        provider.chain.change(provider.payer.key, is_finalized=True)
        later = provider.payer.top_up(1)
        assert (await perform(provider, later)).state.is_finalized
        with pytest.raises(ChannelFinalizedError):
            await perform(provider, later)


async def test_a_payers_top_up_reopens_a_channel_with_a_pending_close(tmp_path: Path) -> None:
    """TOPUP-05: when the chain says that the close is cancelled, so do the books."""
    async with open_provider(tmp_path, fact_ttl_s=0, fact_age_s_max=0) as provider:
        await opened(provider)
        provider.chain.change(provider.payer.key, close_requested_at=5)
        with pytest.raises(ChannelFinalizedError):
            await perform(provider, provider.payer.voucher(50))
        top_up = provider.payer.top_up(500)
        provider.chain.change(provider.payer.key, close_requested_at=0)
        await perform(provider, top_up)
        await perform(provider, provider.payer.voucher(50), hold(provider))


async def test_a_top_up_of_another_payees_channel_is_not_found(tmp_path: Path) -> None:
    """TOPUP-07: it exists, and pays another payee."""
    async with open_provider(tmp_path) as provider:
        provider.payer.terms = replace(provider.payer.terms, payee=Address(b"\x99" * 20))
        provider.payer.open_on_chain()
        with pytest.raises(ChannelNotFoundError):
            await perform(provider, provider.payer.top_up(500))


async def test_a_voucher_needs_no_source(tmp_path: Path) -> None:
    """O-98, CRED-02: its signature says whose it is; a source that is given must be the payer's."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        challenge = provider.engine.challenger.issue(provider.offer)
        for amount, source in ((50, None), (60, (31337, Address(b"\x01" * 20)))):
            credential = provider.payer.credential(challenge, provider.payer.voucher(amount))
            authenticated = provider.engine.challenger.authenticate(
                replace(credential, source=source), [provider.offer]
            )
            if source is None:
                assert (await provider.engine.perform(authenticated)).state.accepted == amount
            else:
                with pytest.raises(SignerMismatchError):
                    await provider.engine.perform(authenticated)
        assert (await provider.books()).accepted == 50


@pytest.mark.parametrize("field", ["payment-authorization", "X-Payment"])
async def test_credentials_travel_in_a_field_of_the_protocol_alone(
    tmp_path: Path, field: str
) -> None:
    """O-98, decision 15: a credential in another field would not be found, and buy nothing."""
    async with open_provider(tmp_path) as provider:
        with pytest.raises(ConfigError, match=field):
            Engine(
                ledger=provider.ledger,
                chain=provider.chain,
                binder=ChallengeBinder([SECRET]),
                settings=replace(SETTINGS, credential_header=field),
            )


async def test_an_opening_must_be_the_payers_own(tmp_path: Path) -> None:
    """OPEN-01, OPEN-03, CRED-02: source, id and transaction belong together."""
    async with open_provider(tmp_path, transaction_wait_s=HASTY_S) as provider:
        provider.payer.open_on_chain()
        opening = provider.payer.opening()
        challenge = provider.engine.challenger.issue(provider.offer)
        for source in (None, (1, provider.payer.address), (31337, Address(b"\x01" * 20))):
            credential = replace(provider.payer.credential(challenge, opening), source=source)
            authenticated = provider.engine.challenger.authenticate(credential, [provider.offer])
            with pytest.raises(MalformedPayloadError):
                await provider.engine.perform(authenticated)
        other = Payer(provider.chain, STRANGER_KEY)
        other.open_on_chain()
        with pytest.raises(VerificationFailedError):
            await perform(provider, replace(opening, tx_hash=other.open_tx))
        provider.chain.facts.pop(provider.payer.key.channel_id)
        with pytest.raises(VerificationFailedError):
            await perform(provider, opening)
        assert await provider.state() is None


async def test_an_opening_of_a_channel_at_its_end_is_refused_from_the_books(
    tmp_path: Path,
) -> None:
    """OPEN-10, VCH-05."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        await perform(provider, provider.payer.closing(0))
        with pytest.raises(ChannelFinalizedError):
            await perform(provider, provider.payer.opening())
        with pytest.raises(ChannelFinalizedError):
            await perform(provider, provider.payer.top_up(5))
