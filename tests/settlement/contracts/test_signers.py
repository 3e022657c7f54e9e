"""Who may sign a voucher: EOAs, contract wallets, delegated EOAs (ENC-07)."""

from typing import Any

import pytest
from eth_account import Account as EthAccount

from local_chain import Account, Chain, Contract
from tests.settlement.contracts.world import PLENTY, World, deploy_mock, reverts

MAGIC_AND_MORE = 7
USES_MUCH_GAS = 8


def asks(world: World, signer: str, voucher: tuple[bytes, int, bytes]) -> bool:
    """What the engine asks: the same check, as a view."""
    channel_id, amount, signature = voucher
    digest = world.escrow.call("getVoucherDigest", channel_id, amount)
    assert digest == world.digest(channel_id, amount)
    valid: bool = world.escrow.call("isValidVoucherSigner", signer, digest, signature)
    return valid


def delegate(chain: Chain, account: Account, code: str) -> None:
    """Make an EOA run `code`, as EIP-7702 has it: a signed authorization in a transaction."""
    chain_id, zero = chain.chain_id, {"maxFeePerGas": 0, "maxPriorityFeePerGas": 0}
    nonce = int(chain.rpc("eth_getTransactionCount", account.address, "latest"), 16)
    key = account.key.secret
    authorization = EthAccount.sign_authorization(
        {"chainId": chain_id, "address": bytes.fromhex(code[2:]), "nonce": nonce + 1}, key
    )
    transaction = {
        **zero,
        "chainId": chain_id,
        "nonce": nonce,
        "gas": 200_000,
        "to": bytes.fromhex(account.address[2:]),
        "value": 0,
        "data": "0x",
        "authorizationList": [authorization],
    }
    signed = EthAccount.sign_transaction(transaction, key)
    chain.rpc("eth_sendRawTransaction", "0x" + signed.raw_transaction.hex())
    chain.rpc("evm_mine")
    assert chain.code(account.address) == bytes.fromhex("ef0100" + code[2:])


def test_a_contract_wallet_signs(chain: Chain, mocks: dict[str, Any], world: World) -> None:
    """CONTRACT-08: ERC-1271, as authorizedSigner."""
    wallet = deploy_mock(chain, mocks, "KeyWallet", ["address"], world.signer.address)
    channel_id = world.open(signer=wallet.address)
    voucher = world.voucher(channel_id, 5, world.signer)
    assert asks(world, wallet.address, voucher)
    world.escrow.send("settle", *voucher, sender=world.payee.address)
    for other in (world.payer, world.stranger):
        wrong = world.voucher(channel_id, 6, other)
        assert not asks(world, wallet.address, wrong)
        with reverts("InvalidSignature"):
            world.escrow.send("settle", *wrong, sender=world.payee.address)


def test_a_contract_wallet_pays_and_is_paid(
    chain: Chain, mocks: dict[str, Any], world: World
) -> None:
    """CONTRACT-01, RELAY-02: payer and payee may both be wallets; the payee's 1271 counts too."""
    payer = deploy_mock(chain, mocks, "KeyWallet", ["address"], world.signer.address)
    payee = deploy_mock(chain, mocks, "KeyWallet", ["address"], world.payee.address)
    chain.impersonate(payer.address)
    world.fund(payer.address)
    terms = (payee.address, *world.terms()[1:])
    world.escrow.send("open", *terms, sender=payer.address)
    channel_id = world.id_of(payer.address, terms)
    voucher = world.voucher(channel_id, 5, world.signer)
    payee.send("run", world.escrow.address, world.escrow.encode("settle", *voucher))
    signed = world.authorize("Close", channel_id, 9, 1)
    voucher = world.voucher(channel_id, 9, world.signer)
    world.escrow.send("closeWithAuthorization", *signed, voucher[2])
    assert world.balance(payee.address) == 9
    assert world.balance(payer.address) == PLENTY - 9


def test_a_rotated_wallet_key_invalidates_its_vouchers(
    chain: Chain, mocks: dict[str, Any], world: World
) -> None:
    """F-19: the risk the engine must bound; the contract asks the wallet as it is now."""
    wallet = deploy_mock(chain, mocks, "KeyWallet", ["address"], world.signer.address)
    channel_id = world.open(signer=wallet.address)
    voucher = world.voucher(channel_id, 5, world.signer)
    assert asks(world, wallet.address, voucher)
    wallet.send("rotate", world.stranger.address)
    assert not asks(world, wallet.address, voucher)
    with reverts("InvalidSignature"):
        world.escrow.send("settle", *voucher, sender=world.payee.address)
    fresh = world.voucher(channel_id, 5, world.stranger)
    world.escrow.send("settle", *fresh, sender=world.payee.address)


def test_a_delegated_eoa_signs_with_its_own_key(
    chain: Chain, mocks: dict[str, Any], world: World
) -> None:
    """ENC-07, F-18: ECDSA first, though the account has code that says no."""
    odd = deploy_mock(chain, mocks, "OddWallet")
    channel_id = world.open()
    delegate(chain, world.payer, odd.address)
    voucher = world.voucher(channel_id, 5)
    assert asks(world, world.payer.address, voucher)
    world.escrow.send("settle", *voucher, sender=world.payee.address)
    wrong = world.voucher(channel_id, 6, world.stranger)
    assert not asks(world, world.payer.address, wrong)


def test_a_delegated_eoa_may_also_answer_by_its_code(
    chain: Chain, mocks: dict[str, Any], world: World
) -> None:
    """ENC-07: then ERC-1271, because an EIP-7702 account has code."""
    odd = deploy_mock(chain, mocks, "OddWallet")
    channel_id = world.open()
    delegate(chain, world.payer, odd.address)
    delegated = Contract(chain, world.payer.address, mocks["OddWallet"]["abi"])
    delegated.send("set", USES_MUCH_GAS, 0)
    voucher = (channel_id, 5, b"anything")
    assert asks(world, world.payer.address, voucher)
    world.escrow.send("settle", *voucher, sender=world.payee.address)


@pytest.mark.parametrize("mode", range(7))
def test_a_wrong_answer_is_no_signature(
    chain: Chain, mocks: dict[str, Any], world: World, mode: int
) -> None:
    """F-20: revert, all gas, nothing, four bytes, true, dirty magic, another magic."""
    odd = deploy_mock(chain, mocks, "OddWallet")
    odd.send("set", mode, 0)
    channel_id = world.open(signer=odd.address)
    assert not asks(world, odd.address, (channel_id, 5, b"x"))
    with reverts("InvalidSignature"):
        world.escrow.send("settle", channel_id, 5, b"x", sender=world.payee.address)


def test_a_long_answer_is_read_no_further_than_the_magic(
    chain: Chain, mocks: dict[str, Any], world: World
) -> None:
    """F-20: three hundred kilobytes of return data cost the wallet, not us."""
    odd = deploy_mock(chain, mocks, "OddWallet")
    odd.send("set", MAGIC_AND_MORE, 0)
    channel_id = world.open(signer=odd.address)
    receipt = world.escrow.send("settle", channel_id, 5, b"x", sender=world.payee.address)
    assert int(receipt["gasUsed"], 16) < 100_000 + 400_000


@pytest.mark.parametrize(("gas_to_use", "verdict"), [(380_000, "valid"), (400_001, "refused")])
def test_a_wallet_has_its_gas_cap_and_no_more(
    chain: Chain, mocks: dict[str, Any], world: World, gas_to_use: int, verdict: str
) -> None:
    """F-20: ERC1271_GAS_CAP is what the engine mirrors."""
    assert world.escrow.call("ERC1271_GAS_CAP") == 400_000
    odd = deploy_mock(chain, mocks, "OddWallet")
    odd.send("set", USES_MUCH_GAS, gas_to_use)
    channel_id = world.open(signer=odd.address)
    assert asks(world, odd.address, (channel_id, 5, b"x")) is (verdict == "valid")


@pytest.mark.parametrize(("size", "verdict"), [(4096, "valid"), (4097, "refused")])
def test_a_signature_is_passed_on_up_to_its_greatest_length(
    chain: Chain, mocks: dict[str, Any], world: World, size: int, verdict: str
) -> None:
    """ENC-06: the bound the engine has."""
    assert world.escrow.call("ERC1271_SIGNATURE_BYTES_MAX") == 4096
    odd = deploy_mock(chain, mocks, "OddWallet")
    odd.send("set", USES_MUCH_GAS, 0)
    channel_id = world.open(signer=odd.address)
    assert asks(world, odd.address, (channel_id, 5, bytes(size))) is (verdict == "valid")


def test_too_little_gas_for_a_wallet_is_no_verdict(
    chain: Chain, mocks: dict[str, Any], world: World
) -> None:
    """RELAY-07 for single calls: InsufficientGas, never InvalidSignature."""
    odd = deploy_mock(chain, mocks, "OddWallet")
    odd.send("set", USES_MUCH_GAS, 300_000)
    channel_id = world.open(signer=odd.address)
    with reverts("InsufficientGas"):
        world.escrow.call("settle", channel_id, 5, b"x", sender=world.payee.address, gas=450_000)


def test_no_signature_is_valid_for_the_zero_address(world: World) -> None:
    """F-17: a failed recovery gives the zero address, which is no signer."""
    channel_id = world.open()
    assert not asks(world, "0x" + "00" * 20, (channel_id, 5, b"\x00" * 65))
    assert not asks(world, "0x" + "00" * 20, (channel_id, 5, b""))
