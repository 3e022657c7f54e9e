"""What a contract vouches for and takes back: on a real chain, over HTTP (O-01)."""

from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from channel.methods.evm.method import EVM
from channel.methods.evm.payload import (
    OpenHash,
)
from channel.types import Address, SignedVoucher
from channel.verify.signature import sign
from channel.wire.payload import (
    VoucherPayload,
)
from mpp_session.testing import TestChain
from settlement.settle.exposure import ExposureGate, ExposureLimits
from tests.e2e.selling import DEPOSIT, PRICE, Payer, Provider, provide
from tests.settlement.wallets import deploy_wallet

ANY = b"the contract says yes to this"


def opening(payer: Payer, voucher: SignedVoucher) -> OpenHash:
    return replace(payer.opening(), voucher=voucher)


def by_contract(payer: Payer, amount: int) -> SignedVoucher:
    return SignedVoucher(payer.key.channel_id, amount, ANY)


async def buy(provider: Provider, amount: int) -> httpx.Response:
    """Buy one joke by a voucher that the contract vouches for."""
    return await provider.send(VoucherPayload(by_contract(provider.payer, amount)))


async def test_by_default_a_contracts_word_buys_nothing(devnet: TestChain, tmp_path: Path) -> None:
    """O-01: 19 bytes of code that say yes, or an account that gets them after the opening."""
    async with devnet.connect() as chain, provide(chain, tmp_path) as provider:
        await provider.opened()
        wallet = await deploy_wallet(chain.deployer, "agrees")
        assert len(await chain.rpc.code(wallet)) < 20
        later = Address(b"\x42" * 20)
        for signer in (wallet, later):
            await provider.payer.open(signer=signer)
            if signer == later:
                code = "0x" + (await chain.rpc.code(wallet)).hex()
                await chain.rpc.command("anvil_setCode", "0x" + later.hex(), code)
            answer = await provider.send(
                opening(provider.payer, by_contract(provider.payer, DEPOSIT))
            )
            assert answer.status_code == 402
            problem = answer.json()
            assert problem["type"].endswith("session/invalid-signature")
            assert "`authorizedSigner`" in problem["detail"]
            assert await provider.books() is None
        assert provider.served == 0


@pytest.mark.parametrize("delegated", [False, True], ids=["key", "delegated key (EIP-7702)"])
async def test_a_key_that_a_channel_names_is_taken_with_any_code(
    devnet: TestChain, tmp_path: Path, *, delegated: bool
) -> None:
    """O-01, F-18: the escrow tries the key first, and so its voucher can not be taken back."""
    async with devnet.connect() as chain, provide(chain, tmp_path) as provider:
        await provider.opened()
        payer, signer = provider.payer, chain.account("stranger")
        await payer.open(signer=signer.address)
        if delegated:
            wallet = await deploy_wallet(chain.deployer, "reverts")
            code = "0xef0100" + wallet.hex()
            await chain.rpc.command("anvil_setCode", "0x" + signer.address.hex(), code)
        voucher = replace(
            payer.sign(0),
            signature=sign(signer.private_key, EVM.voucher_digest(payer.key, 20)),
        )
        answer = await provider.send(opening(payer, replace(voucher, cumulative_amount=20)))
        assert (answer.status_code, provider.served) == (200, 1)
        state = await provider.books()
        assert state is not None
        settled = await provider.settler.settle_channel(
            payer.key, 20, state.highest.signature, value=20
        )
        assert settled.fact.settled == 20
        await chain.rpc.command("anvil_setCode", "0x" + signer.address.hex(), "0x")


async def test_what_is_allowed_is_bounded_over_channels_when_it_is_accepted(
    devnet: TestChain, tmp_path: Path
) -> None:
    """O-01: many channels of one contract, and another contract of the same payer."""
    gate = ExposureGate(ExposureLimits(contract_signed_max=3 * PRICE))
    gate.trust_contracts(frozenset())
    async with (
        devnet.connect() as chain,
        provide(chain, tmp_path, admission=gate, takes_contract_signatures=True) as provider,
    ):
        await provider.opened()
        payer = provider.payer
        wallets = [await deploy_wallet(chain.deployer, "agrees") for _ in range(2)]
        await payer.open(signer=wallets[0])
        answer = await provider.send(opening(payer, by_contract(payer, 2 * PRICE)))
        assert answer.status_code == 200
        assert (await buy(provider, 4 * PRICE)).status_code == 503
        for wallet in wallets:
            await payer.open(signer=wallet)
            answer = await provider.send(opening(payer, by_contract(payer, 2 * PRICE)))
            assert answer.status_code == 503
            assert answer.json()["type"].endswith("exposure-limit")
            assert "send a voucher for up to 10 now" in answer.json()["detail"]
            assert await provider.books() is None
        assert provider.served == 1
        await payer.open()  # by its own key it goes on
        assert (await provider.send(opening(payer, payer.sign(20 * PRICE)))).status_code == 200
