"""The voucher that would be used shows whether a channel depends on a contract wallet."""

import pytest
from msgspec.structs import replace

from channel.methods.evm.method import EVM
from channel.state.channel_state import ChannelState, LadderVoucher
from channel.types import ZERO_ADDRESS, ChannelTerms
from channel.verify.signature import address_of, sign
from settlement.escrow import wallets
from settlement.escrow.wallets import WalletSigners
from tests.settlement.settle.test_schedule import channel

KEY = b"\x11" * 32


def signed(amount: int, *, by_key: bool) -> ChannelState:
    """A channel of a delegated account that signed this amount by key, or by its code."""
    state = channel(vouchers=(amount,), spent=amount)
    terms = ChannelTerms(address_of(KEY), state.terms.payee, state.terms.token, ZERO_ADDRESS)
    signature = (
        sign(KEY, EVM.voucher_digest(state.key, amount)) if by_key else b"a wallet's form" * 5
    )
    voucher = LadderVoucher(amount, signature)
    return replace(state, terms=terms, highest=voucher, at_or_below_spent=voucher)


def test_a_keys_voucher_depends_on_no_contract() -> None:
    """F-18."""
    assert not WalletSigners(EVM.escrow.domain).is_wallet(signed(500, by_key=True))
    assert WalletSigners(EVM.escrow.domain).is_wallet(signed(500, by_key=False))


def test_who_signed_by_key_first_and_by_code_later_is_a_wallet_from_then_on() -> None:
    """F-19: else its later vouchers would be trusted as a key's, and could be taken back."""
    signers = WalletSigners(EVM.escrow.domain)
    assert not signers.is_wallet(signed(500, by_key=True))
    assert signers.is_wallet(signed(600, by_key=False))
    assert not signers.is_wallet(signed(700, by_key=True))


def test_a_channel_on_which_nothing_was_signed_is_none() -> None:
    assert not WalletSigners(EVM.escrow.domain).is_wallet(channel())


def test_so_many_vouchers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound the one that is longest known goes, and is looked at again."""
    monkeypatch.setattr(wallets, "WALLETS_KNOWN_MAX", 2)
    looks = []
    look = wallets._is_wallet  # noqa: SLF001

    def count(state: ChannelState, voucher: LadderVoucher, domain: str) -> bool:
        looks.append(voucher.cumulative_amount)
        return look(state, voucher, domain)

    monkeypatch.setattr(wallets, "_is_wallet", count)
    signers = WalletSigners(EVM.escrow.domain)
    for amount in (500, 600, 500, 600):
        assert not signers.is_wallet(signed(amount, by_key=True))
    assert looks == [500, 600]
    for amount in (700, 500):
        assert not signers.is_wallet(signed(amount, by_key=True))
    assert looks == [500, 600, 700, 500]
