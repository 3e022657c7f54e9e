"""Deposits that a payer only signed: each is credited once, or not at all."""

# ruff: noqa: SLF001 -- no payload of `evm` carries a transaction for the server to send

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.chain import SponsoredDeposit
from channel.client.funding.signer import LocalSigner
from channel.client.funding.signing import Domain, Window, sign_top_up_authorization
from channel.engine import Engine, Offer, Outcome, SponsorTerms, deposits
from channel.errors import MalformedPayloadError, VerificationFailedError
from channel.methods.evm.method import EvmMethod
from channel.methods.evm.payload import build_top_up
from channel.methods.interface import OpeningPlan, PayerTransaction, TopUpPlan
from channel.types import ChannelKey, TxHash, VerifiedVoucher
from channel.verify.challenge_id import ChallengeBinder
from channel.wire.challenge import SessionRequest
from channel.wire.funding import Deposit
from channel.wire.payload import Payload, TopUpPayload
from tests.channel.chain_model import ESCROW
from tests.channel.engine.test_engine import opened, perform
from tests.channel.selling import DEPOSIT, SECRET, SETTINGS, Provider, open_provider
from tests.waiting import HASTY_S, PATIENCE_S

TOKEN_DOMAIN = b"\xd0" * 32
TERMS = SponsorTerms(
    credential_types=("authorization", "hash"), token_domain=TOKEN_DOMAIN, deposit_min=1
)


class Relay:
    """Makes each signed top-up immediately, in the chain model; implements `DepositSponsor`."""

    def __init__(self, provider: Provider) -> None:
        self._chain = provider.chain
        self._facts = provider.chain.facts
        self.made: dict[bytes, TxHash] = {}
        self.is_node_empty = False
        """Whether the node that is asked next has no channel at all."""

    async def is_taken(self, deposit: SponsoredDeposit) -> bool:
        return deposit.signature in self.made

    async def take(
        self, deposit: SponsoredDeposit, *, by_wallet: bool, first: VerifiedVoucher | None
    ) -> None:
        assert not by_wallet
        assert first is None
        self.made[deposit.signature] = self._chain.top_up(deposit.key, deposit.amount)

    async def wait(self, deposit: SponsoredDeposit) -> TxHash:
        self._chain.facts = {} if self.is_node_empty else self._facts
        return self.made[deposit.signature]


class Shop:
    """An engine that pays the gas, on the same books."""

    def __init__(self, provider: Provider, transaction_wait_s: float) -> None:
        self.provider = provider
        self.relay = Relay(provider)
        self.engine = Engine(
            ledger=provider.ledger,
            chain=provider.chain,
            binder=ChallengeBinder([SECRET]),
            settings=replace(SETTINGS, sponsor=TERMS, transaction_wait_s=transaction_wait_s),
            sponsor=self.relay,
            now=provider.clock,
        )
        request = replace(
            provider.offer.request, fee_payer=True, credential_types=TERMS.credential_types
        )
        self.offer = replace(provider.offer, request=request)

    async def send(self, payload: Payload) -> Outcome:
        return await send(self.provider, self.engine, self.offer, payload)


async def send(provider: Provider, engine: Engine, offer: Offer, payload: Payload) -> Outcome:
    credential = provider.payer.credential(engine.challenger.issue(offer), payload)
    return await engine.perform(engine.challenger.authenticate(credential, [offer]))


async def sign_deposit(provider: Provider, number: int, amount: int) -> Deposit:
    """Sign a top-up; each `number` makes another one."""
    return await sign_top_up_authorization(
        LocalSigner(provider.payer.private_key),
        Domain(TOKEN_DOMAIN, ESCROW),
        Window(0, 2**32),
        channel_id=provider.payer.key.channel_id,
        salt=number.to_bytes(32),
        amount=amount,
    )


async def top_up(provider: Provider, number: int, amount: int) -> Payload:
    deposit = await sign_deposit(provider, number, amount)
    return build_top_up(deposit, provider.payer.key.channel_id)


@asynccontextmanager
async def open_shop(
    tmp_path: Path, *, transaction_wait_s: float = PATIENCE_S
) -> AsyncIterator[Shop]:
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        shop = Shop(provider, transaction_wait_s)
        try:
            yield shop
        finally:
            await shop.engine.aclose()


async def test_a_top_up_is_credited_once_also_when_it_is_no_longer_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-98, F-29: a repeat adds nothing; only a forgotten one asks the node again."""
    monkeypatch.setattr(deposits, "FACT_AGES_MAX", 2)
    async with open_shop(tmp_path) as shop:
        payloads = [await top_up(shop.provider, number, 100) for number in range(3)]
        for payload in payloads:
            await shop.send(payload)
        reads = shop.provider.chain.transaction_reads
        for payload in payloads[1:]:
            await shop.send(payload)
        assert shop.provider.chain.transaction_reads == reads
        await shop.send(payloads[0])
        assert shop.provider.chain.transaction_reads == reads + 1
        assert (await shop.provider.books()).deposit == DEPOSIT + 300
        assert len(shop.relay.made) == 3


async def test_a_top_up_that_the_escrow_does_not_show_is_credited_by_its_repeat(
    tmp_path: Path,
) -> None:
    """O-98, F-72: a node without the channel adds nothing, and the payer does not pay twice."""
    async with open_shop(tmp_path, transaction_wait_s=HASTY_S) as shop:
        chain = shop.provider.chain
        payload = await top_up(shop.provider, 1, 500)
        shop.relay.is_node_empty = True
        with pytest.raises(VerificationFailedError, match="does not show"):
            await shop.send(payload)
        assert (await shop.provider.books()).deposit == DEPOSIT
        shop.relay.is_node_empty = False
        assert (await shop.send(payload)).state.deposit == DEPOSIT + 500
        assert chain.facts[shop.provider.payer.key.channel_id].deposit == DEPOSIT + 500


async def test_a_server_without_a_relayer_takes_no_signed_deposit(tmp_path: Path) -> None:
    """O-98, CHAL-04: though its route says that it does."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        request = replace(provider.offer.request, credential_types=TERMS.credential_types)
        offer = replace(provider.offer, request=request)
        with pytest.raises(MalformedPayloadError, match="submits no deposits"):
            await send(provider, provider.engine, offer, await top_up(provider, 1, 500))
        assert (await provider.books()).deposit == DEPOSIT
        await perform(provider, provider.payer.voucher(50))


async def test_a_credential_without_a_deposit_deposits_nothing(tmp_path: Path) -> None:
    """The engine asks for deposits alone; a mistake of its own must not pass for one."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        payload = provider.payer.voucher(50)
        credential = provider.payer.credential(
            provider.engine.challenger.issue(provider.offer), payload
        )
        paid = provider.engine.challenger.authenticate(credential, [provider.offer])
        with pytest.raises(MalformedPayloadError, match="expected a deposit, found none"):
            await provider.engine._deposits.make(paid, payload, None)
        assert (await provider.books()).accepted == 0


class ByTransaction(EvmMethod):
    """A method whose top-ups, attached to vouchers too, carry the payer's own transaction."""

    def plan_top_up(
        self, payload: TopUpPayload, *, key: ChannelKey, asked: SessionRequest
    ) -> TopUpPlan:
        plan = super().plan_top_up(payload, key=key, asked=asked)
        return TopUpPlan(plan.amount, PayerTransaction(TxHash(b"\x05" * 32), raw=b"signed"))


async def test_a_payers_transaction_attached_to_a_voucher_is_refused(tmp_path: Path) -> None:
    """VCH-06: only what the server submits may come with a voucher; neither is taken."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        node = Node(takes=True)
        engine = Engine(
            ledger=provider.ledger,
            chain=provider.chain,
            binder=ChallengeBinder([SECRET]),
            settings=replace(SETTINGS, method=ByTransaction()),
            broadcaster=node,
            now=provider.clock,
        )
        deposit = await sign_deposit(provider, 1, 500)
        payload = replace(provider.payer.voucher(50), deposit=deposit)
        request = replace(provider.offer.request, credential_types=TERMS.credential_types)
        with pytest.raises(MalformedPayloadError, match="expected a signature of the funder"):
            await send(provider, engine, replace(provider.offer, request=request), payload)
        books = await provider.books()
        assert (books.deposit, books.accepted, node.sent) == (DEPOSIT, 0, [])


class Node:
    """Takes payers' transactions, or refuses them; none of them is ever mined."""

    def __init__(self, *, takes: bool) -> None:
        self._takes = takes
        self.sent: list[bytes] = []

    async def broadcast(self, raw: bytes) -> bool:
        self.sent.append(raw)
        return self._takes


@pytest.mark.parametrize("takes", [True, False])
async def test_a_transaction_that_the_server_sends_and_the_chain_does_not_show_credits_nothing(
    tmp_path: Path,
    takes: bool,  # noqa: FBT001
) -> None:
    """OPEN-02: of a method whose credentials carry the payer's transaction; F-75 says why."""
    node = Node(takes=takes)
    payers = PayerTransaction(TxHash(b"\x05" * 32), raw=b"signed")
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        engine = Engine(
            ledger=provider.ledger,
            chain=provider.chain,
            binder=ChallengeBinder([SECRET]),
            settings=replace(SETTINGS, transaction_wait_s=HASTY_S),
            broadcaster=node,
            now=provider.clock,
        )
        plan = OpeningPlan(provider.payer.terms, payers)
        assert not await engine._deposits._is_taken(plan)
        with pytest.raises(VerificationFailedError) as refused:
            await engine._deposits._find(payers)
        assert ("The node refused it." in str(refused.value)) is not takes
        assert node.sent == [b"signed"]
        with pytest.raises(MalformedPayloadError, match="sends no transactions"):
            await provider.engine._deposits._find(payers)
        await engine.aclose()
