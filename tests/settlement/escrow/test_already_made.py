"""Whose deposit it is: what was signed, and not merely the same amount."""

from pathlib import Path

import pytest

from channel.client.funding.signer import LocalSigner
from channel.client.funding.signing import sign_top_up_authorization, sign_top_up_permit
from channel.methods.evm.payload import (
    build_top_up,
)
from mpp_session.testing.chain import TestChain
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.escrow.already_made import find_made
from settlement.escrow.deposit_calls import DepositCall
from settlement.escrow.reader import EscrowReader
from settlement.tx.manager import TxManager
from tests.e2e.selling import PRICE
from tests.e2e.sponsored import GaslessPayer, Sponsored, sponsor_deposits

AMOUNT = 500


@pytest.mark.parametrize("kind", ["authorization", "permit2"])
async def test_a_transaction_of_an_equal_amount_is_not_taken_for_ours(
    devnet: TestChain, tmp_path: Path, kind: str
) -> None:
    """AMB-10, TOPUP-04, F-83: a stranger's top-up of the same size is not the payer's."""
    async with devnet.connect() as chain, sponsor_deposits(chain, tmp_path) as one:
        await one.payer.approve_permit2()
        assert (await one.provider.manage(await one.payer.opening(PRICE))).status_code == 200
        ours = await one.payer.top_up(kind, amount=AMOUNT)
        inner = ours.authorization
        call = DepositCall(
            opens=False,
            amount=AMOUNT,
            funder=one.payer.address,
            authorization_nonce=inner.nonce if isinstance(inner.nonce, bytes) else None,
            signature=ours.signature,
        )
        channel_id = one.payer.key.channel_id
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        assert await find_made(reader, channel_id, call) is None
        await top_up_as_a_stranger(chain, one, kind)
        assert await find_made(reader, channel_id, call) is None
        assert (await one.provider.manage(ours)).status_code == 200
        assert await find_made(reader, channel_id, call) is not None


async def top_up_as_a_stranger(chain: Devnet, one: Sponsored, kind: str) -> None:
    stranger = LocalSigner(chain.account("stranger").private_key)
    window, payer = await one.payer.window(), one.payer
    if kind == "authorization":
        signed = await sign_top_up_authorization(
            stranger,
            payer.token_domain,
            window,
            channel_id=payer.key.channel_id,
            salt=bytes(32),
            amount=AMOUNT,
        )
    else:
        await approve(chain, "stranger", payer)
        signed = await sign_top_up_permit(
            stranger,
            payer.permit2_domain,
            token=payer.terms.token,
            channel_id=payer.key.channel_id,
            amount=AMOUNT,
            nonce=1,
            deadline=window.valid_before,
        )
    answer = await one.provider.manage(build_top_up(signed, payer.key.channel_id))
    assert answer.status_code == 200, answer.text


async def approve(chain: Devnet, name: str, payer: GaslessPayer) -> None:
    permit2 = chain.values.permit2
    sender = TxManager(chain.rpc, chain.signer(name))
    await sender.send(payer.terms.token, abi.approve.encode(permit2, 2**256 - 1))
