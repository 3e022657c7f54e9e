"""Vouchers that no key made: refused unless a contract may vouch, and asked about in bounds."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from channel.engine import voucher_verifier
from channel.engine.outcome import Outcome
from channel.errors import (
    InvalidSignatureError,
    ProblemError,
    SignerMismatchError,
    TooManyRequestsError,
)
from channel.limits import (
    CODELESS_TRUSTED_S,
    CONTRACT_QUESTIONS_MAX,
    CONTRACT_QUESTIONS_PER_SOURCE_MAX,
)
from channel.methods.evm.method import EVM
from channel.types import Address, SignedVoucher
from channel.verify.signature import sign
from channel.wire.payload import (
    VoucherPayload,
)
from tests.channel.engine.test_engine import opened, perform
from tests.channel.selling import Payer, Provider, open_provider

OTHER_KEY = b"\x09" * 32


def forged(payer: Payer, signature: bytes = bytes(65)) -> VoucherPayload:
    return VoucherPayload(SignedVoucher(payer.key.channel_id, 50, signature))


async def send(provider: Provider, payer: Payer, *, client: bytes = b"") -> Outcome:
    challenge = provider.engine.challenger.issue(provider.offer)
    credential = payer.credential(
        challenge, replace(payer.opening(), voucher=forged(payer).voucher)
    )
    return await provider.engine.perform(
        provider.engine.challenger.authenticate(credential, [provider.offer], client=client)
    )


def contract_payer(provider: Provider, number: int) -> Payer:
    """A payer whose channel names a contract of its own."""
    payer = Payer(provider.chain, (100 + number).to_bytes(32))
    signer = Address(number.to_bytes(20))
    payer.terms = replace(payer.terms, authorized_signer=signer)
    payer.open_on_chain()
    return payer


@pytest.mark.parametrize(
    "signature",
    [bytes(65), b"a wallet's own form" * 9, b"", sign(OTHER_KEY, bytes(32))],
    ids=["no point", "long", "empty", "another key's"],
)
async def test_what_only_a_contract_can_vouch_for_is_refused_with_a_hint(
    tmp_path: Path, signature: bytes
) -> None:
    """O-01, O-25: by default, and no node is asked; the payer's own vouchers are taken."""
    async with open_provider(tmp_path) as provider:
        await opened(provider)
        reads = provider.chain.reads
        provider.chain.contracts.add(provider.payer.terms.signer)
        for _ in range(3):
            with pytest.raises((InvalidSignatureError, SignerMismatchError), match="ordinary key"):
                await perform(provider, forged(provider.payer, signature))
        assert (provider.chain.wallet_reads, provider.chain.code_reads, provider.chain.reads) == (
            0,
            0,
            reads,
        )
        await perform(provider, provider.payer.voucher(50))


async def test_a_contract_as_signer_opens_nothing(tmp_path: Path) -> None:
    """O-01: not even with a first voucher of 0; a contract that names a key does."""
    async with open_provider(tmp_path) as provider:
        provider.payer.terms = replace(
            provider.payer.terms, authorized_signer=Address(b"\x77" * 20)
        )
        provider.payer.open_on_chain()
        digest = EVM.voucher_digest(provider.payer.key, 0)
        provider.chain.contracts.add(provider.payer.terms.authorized_signer)
        provider.chain.wallet_signatures.add(
            (provider.payer.terms.authorized_signer, digest, b"yes")
        )
        voucher = SignedVoucher(provider.payer.key.channel_id, 0, b"yes")
        with pytest.raises(InvalidSignatureError, match="authorizedSigner"):
            await perform(provider, replace(provider.payer.opening(), voucher=voucher))
        assert await provider.ledger.load(provider.payer.key) is None


async def test_signers_without_code_are_asked_about_once_in_a_while(tmp_path: Path) -> None:
    """O-25: forgeries on ordinary channels cost no call each, however many channels there are."""
    async with open_provider(tmp_path, takes_contract_signatures=True) as provider:
        payers = []
        for number in range(3):
            payer = Payer(provider.chain, (500 + number).to_bytes(32))
            payer.open_on_chain()
            payers.append(payer)
        for _ in range(20):
            for payer in payers:
                with pytest.raises(InvalidSignatureError):
                    await send(provider, payer)
        assert (provider.chain.code_reads, provider.chain.wallet_reads) == (3, 0)
        # One that gets code later is asked when what was known is old.
        provider.chain.contracts.add(payers[0].terms.signer)
        digest = EVM.voucher_digest(payers[0].key, 50)
        provider.chain.wallet_signatures.add((payers[0].terms.signer, digest, bytes(65)))
        provider.clock.advance(CODELESS_TRUSTED_S)
        assert (await send(provider, payers[0])).state.accepted == 50


async def test_signers_without_code_are_remembered_in_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-98, O-25: one that was forgotten is asked about again, and is paid nothing either way."""
    monkeypatch.setattr(voucher_verifier, "CODELESS_SIGNERS_MAX", 2)
    async with open_provider(tmp_path, takes_contract_signatures=True) as provider:
        payers = []
        for number in range(3):
            payer = Payer(provider.chain, (500 + number).to_bytes(32))
            payer.open_on_chain()
            payers.append(payer)
        for payer in [*payers, *payers[1:], payers[0]]:
            with pytest.raises(InvalidSignatureError):
                await send(provider, payer)
        assert provider.chain.code_reads == 4
        assert [await provider.ledger.load(payer.key) for payer in payers] == [None] * 3


async def test_one_address_asks_so_many_questions_and_no_more(tmp_path: Path) -> None:
    """O-25: however many signers it names; another address is answered meanwhile."""
    async with open_provider(tmp_path, takes_contract_signatures=True) as provider:
        for number in range(CONTRACT_QUESTIONS_PER_SOURCE_MAX):
            with pytest.raises(InvalidSignatureError):
                await send(provider, contract_payer(provider, number), client=b"one")
        with pytest.raises(TooManyRequestsError):
            await send(provider, contract_payer(provider, 98), client=b"one")
        with pytest.raises(InvalidSignatureError):
            await send(provider, contract_payer(provider, 99), client=b"two")
        assert provider.chain.code_reads == CONTRACT_QUESTIONS_PER_SOURCE_MAX + 1
        provider.clock.advance(1)
        with pytest.raises(InvalidSignatureError):
            await send(provider, contract_payer(provider, 98), client=b"one")


async def test_all_addresses_together_ask_so_many_questions_and_no_more(tmp_path: Path) -> None:
    """O-25: from as many addresses as one likes, on one channel or on many."""
    async with open_provider(tmp_path, takes_contract_signatures=True) as provider:
        payers = [contract_payer(provider, number) for number in range(CONTRACT_QUESTIONS_MAX + 10)]
        results = [
            await asyncio.gather(send(provider, payer, client=bytes([n])), return_exceptions=True)
            for n, payer in enumerate(payers)
        ]
        kinds = [type(result) for (result,) in results]
        assert kinds.count(TooManyRequestsError) == 10
        assert provider.chain.code_reads == CONTRACT_QUESTIONS_MAX


async def test_one_channel_asks_its_contract_so_often(tmp_path: Path) -> None:
    """VCH-09, F-99: and the payer's own vouchers are taken all the while."""
    async with open_provider(
        tmp_path, takes_contract_signatures=True, vouchers_per_second=3
    ) as provider:
        await opened(provider)
        provider.chain.contracts.add(provider.payer.terms.signer)  # a delegated account
        provider.clock.advance(2)
        kinds = []
        for _ in range(10):
            with pytest.raises(ProblemError) as refusal:
                await perform(provider, forged(provider.payer))
            kinds.append(refusal.type)
        assert kinds == [InvalidSignatureError] * 3 + [TooManyRequestsError] * 7
        assert provider.chain.wallet_reads == 3
        await perform(provider, provider.payer.voucher(50))
