"""How old a chain fact may be: never slow per voucher, never older than a tenth of the grace."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.engine import Authenticated, facts
from channel.errors import (
    ChainUnavailableError,
    ChannelFinalizedError,
    ChannelStoppedError,
    TooManyRequestsError,
    TransactionRevertedError,
    VerificationFailedError,
)
from channel.limits import CHAIN_CHECKS_MAX, CHAIN_CHECKS_PER_SOURCE_MAX
from channel.types import TxHash
from tests.channel.engine.test_closing import has_begun
from tests.channel.engine.test_engine import hold, opened, perform
from tests.channel.selling import DEPOSIT, STRANGER_KEY, Payer, Provider, open_provider
from tests.waiting import PATIENCE_S, until


async def settle_down(provider: Provider) -> None:
    """Let what runs in the background end."""
    await provider.engine.aclose()


async def test_a_young_fact_costs_no_read(tmp_path: Path) -> None:
    """VCH-10."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        reads = provider.chain.reads
        for amount in (10, 20, 30):
            await perform(provider, provider.payer.voucher(amount))
        assert provider.chain.reads == reads


async def test_a_fact_whose_age_was_forgotten_is_read_before_its_voucher_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-98, VCH-10: of more channels than are remembered none is served by an old deposit."""
    monkeypatch.setattr(facts, "FACT_AGES_MAX", 1)
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        other = Payer(provider.chain, STRANGER_KEY)
        other.open_on_chain()
        challenge = provider.engine.challenger.issue(provider.offer)
        opening = other.credential(challenge, other.opening())
        await provider.engine.perform(
            provider.engine.challenger.authenticate(opening, [provider.offer])
        )
        provider.chain.change(provider.payer.key, is_finalized=True)
        with pytest.raises(ChannelFinalizedError):
            await perform(provider, provider.payer.voucher(10))
        assert (await provider.books()).accepted == 0


async def test_an_older_fact_is_read_again_beside_the_voucher(tmp_path: Path) -> None:
    """VCH-10, F-63: the voucher does not wait; the next one sees the requested close."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        provider.clock.advance(6)
        provider.chain.change(provider.payer.key, close_requested_at=1_800_000_000)
        provider.chain.answers.clear()
        async with asyncio.timeout(PATIENCE_S):
            await perform(provider, provider.payer.voucher(10))
        provider.chain.answers.set()
        await settle_down(provider)
        with pytest.raises(ChannelFinalizedError):
            await perform(provider, provider.payer.voucher(20))


async def test_one_read_of_a_channel_runs_at_a_time(tmp_path: Path) -> None:
    """F-63: many vouchers, one node call."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        reads = provider.chain.reads
        provider.clock.advance(6)
        provider.chain.delay_s = 0.02
        await asyncio.gather(*[perform(provider, provider.payer.voucher(n)) for n in range(1, 9)])
        assert provider.chain.reads == reads + 1


async def test_the_first_voucher_after_a_long_pause_waits_for_the_chain(tmp_path: Path) -> None:
    """VCH-10, F-63: an hour later the channel may be gone."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        provider.clock.advance(3600)
        provider.chain.change(provider.payer.key, is_finalized=True)
        with pytest.raises(ChannelFinalizedError):
            await perform(provider, provider.payer.voucher(10))


async def test_a_clock_that_was_set_back_makes_no_fact_young(tmp_path: Path) -> None:
    """VCH-10, F-63: a fact read in the clock's future has an unknown age."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        provider.clock.advance(-3600)
        provider.chain.change(provider.payer.key, close_requested_at=1_800_000_000)
        with pytest.raises(ChannelFinalizedError):
            await perform(provider, provider.payer.voucher(10))


async def test_a_clock_that_is_set_back_prolongs_no_wait(tmp_path: Path) -> None:
    """F-99: neither for a transaction, nor for a node, nor for what runs on a closing channel."""
    async with open_provider(tmp_path, transaction_wait_s=0.2, close_wait_s=0.2) as provider:
        await opened(provider)
        held = hold(provider)
        await perform(provider, provider.payer.voucher(50), held)
        stranger = Stranger(provider, b"\x05" * 32, TxHash(b"\x09" * 32))
        waiting = asyncio.create_task(provider.engine.perform(stranger.asked(b"one")))
        closing = asyncio.create_task(perform(provider, provider.payer.closing(0)))
        await until(lambda: has_begun(provider))
        provider.clock.advance(-3600)
        with pytest.raises(VerificationFailedError):
            await waiting
        assert (await closing).state.is_finalized


async def test_without_a_node_service_goes_on_for_a_minute_and_no_longer(tmp_path: Path) -> None:
    """VCH-10, F-63."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        provider.chain.fail_with = ChainUnavailableError("No node answers.")
        provider.clock.advance(59)
        await perform(provider, provider.payer.voucher(10))
        provider.clock.advance(2)
        with pytest.raises(ChainUnavailableError):
            await perform(provider, provider.payer.voucher(20))
        provider.chain.fail_with = None
        await perform(provider, provider.payer.voucher(20))


async def test_a_read_that_has_just_failed_is_not_the_next_ones_answer(tmp_path: Path) -> None:
    """F-63: the node is back; who asks between a read's end and its clearing up reads anew."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        provider.chain.fail_with = ChainUnavailableError("No node answers.")
        provider.clock.advance(6)
        provider.chain.answers.clear()
        await perform(provider, provider.payer.voucher(10))
        (failing,) = [task for task in asyncio.all_tasks() if "ChainFacts._refresh" in repr(task)]
        provider.chain.answers.set()
        while not failing.done():  # noqa: ASYNC110 - and not a moment later
            await asyncio.sleep(0)
        provider.chain.fail_with = None
        provider.clock.advance(100)
        await perform(provider, provider.payer.voucher(20))


async def test_a_top_up_is_seen_though_an_older_read_is_on_its_way(tmp_path: Path) -> None:
    """F-50: that one left before the top-up was mined; what it brings is not the chain's word."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        provider.clock.advance(6)
        provider.chain.answers.clear()
        await perform(provider, provider.payer.voucher(10))
        await until(lambda: provider.chain.reads == 2)
        provider.chain.top_up(provider.payer.key, 500)
        raising = asyncio.create_task(perform(provider, provider.payer.voucher(DEPOSIT + 500)))
        await asyncio.sleep(0.05)
        provider.chain.answers.set()
        assert (await raising).state.accepted == DEPOSIT + 500


async def test_a_channel_that_vanished_from_the_chain_is_not_served(tmp_path: Path) -> None:
    """F-70: its opening was reorged out."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        provider.chain.facts.clear()
        provider.clock.advance(100)
        with pytest.raises(ChannelStoppedError):
            await perform(provider, provider.payer.voucher(10))


async def test_a_deposit_rises_when_deep_and_falls_immediately(tmp_path: Path) -> None:
    """OPEN-12, F-49, F-70: the head is believed where it says less."""
    async with open_provider(tmp_path, confirmations=3) as provider:
        provider.payer.open_on_chain()
        provider.chain.block += 2
        await perform(provider, provider.payer.opening())
        provider.clock.advance(100)
        provider.chain.change(provider.payer.key, deposit=400)
        await perform(provider, provider.payer.voucher(10))
        assert (await provider.books()).deposit == 400


@pytest.mark.parametrize(("blocks_later", "deposit"), [(1, DEPOSIT), (2, DEPOSIT + 500)])
async def test_a_top_up_counts_from_the_block_that_makes_it_deep(
    tmp_path: Path, blocks_later: int, deposit: int
) -> None:
    """O-96: neither one block early nor one late."""
    async with open_provider(tmp_path, confirmations=3) as provider:
        provider.payer.open_on_chain()
        provider.chain.block += 2
        await perform(provider, provider.payer.opening())
        provider.chain.change(provider.payer.key, deposit=DEPOSIT + 500)
        provider.chain.block += blocks_later
        provider.clock.advance(100)
        await perform(provider, provider.payer.voucher(10))
        assert (await provider.books()).deposit == deposit


async def test_one_source_cannot_take_every_place(tmp_path: Path) -> None:
    """F-98: invented transactions from one address leave room for those of others."""
    async with open_provider(tmp_path, transaction_wait_s=PATIENCE_S) as provider:
        provider.payer.open_on_chain()
        invented = TxHash(b"\x09" * 32)
        strangers = [
            Stranger(provider, number.to_bytes(32), invented)
            for number in range(1, CHAIN_CHECKS_PER_SOURCE_MAX + 3)
        ]
        flood = [
            asyncio.create_task(provider.engine.perform(stranger.asked(b"one")))
            for stranger in strangers
        ]
        await until(lambda: sum(task.done() for task in flood) >= 2)
        await perform(provider, provider.payer.opening())
        assert sum(task.done() for task in flood) == 2
        provider.chain.reverted.add(invented)
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds.count(TooManyRequestsError) == 2
        assert kinds.count(TransactionRevertedError) == CHAIN_CHECKS_PER_SOURCE_MAX


@pytest.mark.parametrize("of_address_max", [2, 20])
async def test_how_many_places_an_address_has_is_a_setting(
    tmp_path: Path, of_address_max: int
) -> None:
    """O-35: nine agents behind one proxy, together; one more than the setting is refused."""
    async with open_provider(
        tmp_path, transaction_wait_s=PATIENCE_S, chain_checks_per_address=of_address_max
    ) as provider:
        invented = TxHash(b"\x09" * 32)
        flood = [
            asyncio.create_task(
                provider.engine.perform(
                    Stranger(provider, number.to_bytes(32), invented).asked(b"one")
                )
            )
            for number in range(1, of_address_max + 2)
        ]
        await until(lambda: any(task.done() for task in flood))
        provider.chain.reverted.add(invented)
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds.count(TooManyRequestsError) == 1
        assert kinds.count(TransactionRevertedError) == of_address_max


async def test_a_check_that_has_ended_frees_its_places(tmp_path: Path) -> None:
    """F-98: those of its address, of its signer and of all that wait, however often it comes."""
    async with open_provider(tmp_path) as provider:
        invented = TxHash(b"\x09" * 32)
        provider.chain.reverted.add(invented)
        stranger = Stranger(provider, b"\x05" * 32, invented)
        for _ in range(CHAIN_CHECKS_MAX + 1):
            with pytest.raises(TransactionRevertedError):
                await provider.engine.perform(stranger.asked(b"one"))


async def test_one_signer_has_a_few_places_wherever_it_comes_from(tmp_path: Path) -> None:
    """F-98: as many addresses as it likes; it is the key that counts."""
    async with open_provider(tmp_path, transaction_wait_s=PATIENCE_S) as provider:
        invented = TxHash(b"\x09" * 32)
        stranger = Stranger(provider, b"\x05" * 32, invented)
        flood = [
            asyncio.create_task(provider.engine.perform(stranger.asked(bytes([number]))))
            for number in range(CHAIN_CHECKS_PER_SOURCE_MAX + 1)
        ]
        await until(lambda: any(task.done() for task in flood))
        provider.chain.reverted.add(invented)
        outcomes = await asyncio.gather(*flood, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes].count(TooManyRequestsError) == 1


class Stranger:
    """A stranger with a key, who claims that a transaction opened a channel."""

    def __init__(self, provider: Provider, private_key: bytes, tx_hash: TxHash) -> None:
        self._provider = provider
        self._payer = Payer(provider.chain, private_key)
        self._payer.open_on_chain()
        self._payload = replace(self._payer.opening(), tx_hash=tx_hash)

    def asked(self, client: bytes) -> Authenticated:
        challenge = self._provider.engine.challenger.issue(self._provider.offer)
        credential = self._payer.credential(challenge, self._payload)
        return self._provider.engine.challenger.authenticate(
            credential, [self._provider.offer], client=client
        )
