"""Every reader of the chain holds our vouchers: they authorise nothing (decision 5).

Each test settles on chain, and takes the voucher from the transaction, which is public.
"""

import pytest

from channel.methods.evm.method import EVM
from channel.state.commands import Publish
from channel.types import SignedVoucher, TxHash
from channel.verify.signature import sign
from channel.wire.payload import (
    ClosePayload,
    VoucherPayload,
)
from settlement.abi import decode_entries
from tests.e2e.selling import DEPOSIT, PRICE, Provider

KEY = {"idempotency-key": "asked before"}
PROMISED = 200


async def read_from_chain(seller: Provider, tx_hash: TxHash | None) -> SignedVoucher:
    """The voucher, from the calldata of a settle."""
    assert tx_hash is not None
    transaction = await seller.chain.rpc.read("eth_getTransactionByHash", f"0x{tx_hash.hex()}")
    (entry,) = decode_entries(bytes.fromhex(transaction["input"][2:]))
    return SignedVoucher(entry.channel_id, entry.cumulative_amount, entry.signature)


async def publish(seller: Provider, amount: int) -> SignedVoucher:
    """Settle up to an amount, and return the voucher that is public then."""
    signature = seller.payer.sign(amount).signature
    result = await seller.settler.settle_channel(seller.payer.key, amount, signature)
    published = await read_from_chain(seller, result.tx_hash)
    assert published == seller.payer.sign(amount)
    return published


@pytest.mark.parametrize("amount", [PRICE, PROMISED], ids=["spent", "above-spent"])
async def test_a_published_voucher_buys_nothing_and_repeats_nothing(
    seller: Provider, amount: int
) -> None:
    """VCH-04, IDEM-04, F-32: no content, and no answer that its payer was given before."""
    await seller.opened()
    bought = await seller.send(seller.payer.voucher(PROMISED), headers=KEY)
    assert (bought.status_code, seller.served) == (200, 1)
    published = await publish(seller, amount)
    for headers in ({}, KEY):
        answer = await seller.send(VoucherPayload(published), headers=headers)
        assert answer.status_code == 402
        assert answer.json()["type"].endswith("/insufficient-balance")
        assert bought.content not in answer.content
    books = await seller.books()
    assert books is not None
    assert (books.spent, books.reserved, seller.served) == (PRICE, 0, 1)
    repeat = await seller.send(seller.payer.voucher(PROMISED + 100), headers=KEY)
    assert (repeat.content, seller.served) == (bought.content, 1)


async def test_a_published_voucher_above_spent_closes_nothing(seller: Provider) -> None:
    """CLOSE-02, F-33: else a stranger could give the payee what was never delivered."""
    await seller.opened()
    await seller.send(seller.payer.voucher(PROMISED))
    published = await publish(seller, PROMISED)
    refused = await seller.send(ClosePayload(published), method="POST")
    assert refused.status_code == 402
    assert refused.json()["type"].endswith("/insufficient-balance")
    books = await seller.books()
    assert books is not None
    assert (books.is_closing, books.is_finalized) == (False, False)
    fact = await seller.reader.read_channel(seller.payer.key.channel_id)
    assert fact is not None
    assert (fact.settled, fact.is_finalized) == (PROMISED, False)
    assert (await seller.send(seller.payer.voucher(PROMISED + 100))).status_code == 200


async def test_a_published_voucher_at_spent_closes_nothing_and_a_new_one_exactly_that(
    seller: Provider,
) -> None:
    """CLOSE-02, CLOSE-07, F-33, O-21: the rest of the deposit goes back to the payer."""
    await seller.opened(PRICE)
    assert (await seller.send(seller.payer.voucher(PROMISED))).status_code == 200
    key = seller.payer.key
    await seller.ledger.apply(key, [Publish(PRICE)])  # as the settler does before it sends
    published = await publish(seller, PRICE)
    before = await seller.chain.token_balance(seller.payer.address)
    refused = await seller.send(ClosePayload(published), method="POST")
    assert refused.status_code == 402
    assert refused.json()["type"].endswith("/insufficient-balance")
    fact = await seller.reader.read_channel(key.channel_id)
    assert fact is not None
    assert not fact.is_finalized
    digest = EVM.voucher_digest(key, PRICE)
    signature = sign(seller.payer.private_key, digest, entropy=(1).to_bytes(32))
    fresh = SignedVoucher(key.channel_id, PRICE, signature)
    closed = await seller.send(ClosePayload(fresh), method="POST")
    assert closed.status_code == 200, closed.text
    fact = await seller.reader.read_channel(key.channel_id)
    assert fact is not None
    assert (fact.settled, fact.is_finalized) == (PRICE, True)
    after = await seller.chain.token_balance(seller.payer.address)
    assert after - before == DEPOSIT - PRICE
