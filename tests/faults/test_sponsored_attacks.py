"""What happens between check and mining, and what strangers can do about it: Circle's USDC.

The deposit is made once or not at all, gas is paid at most once for it, and nothing is credited
that the chain does not show.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from msgspec.structs import replace

from channel.client.funding.signing import Window
from channel.wire.credential import Credential
from mpp_session.testing.chain import TestChain
from settlement import abi
from settlement.abi import Function
from settlement.dev.devnet import Devnet
from settlement.node.values import parse_quantity
from settlement.tx.orders import OrderLimits, OrderStatus
from tests.e2e.selling import DEPOSIT, PRICE
from tests.e2e.sponsored import LIMITS, GaslessPayer, Sponsored, fund_payer, sponsor_deposits
from tests.settlement.senders import copy_from_pool
from tests.waiting import HASTY_S, PATIENCE_S

if TYPE_CHECKING:
    from settlement.sponsor.orders.interface import DepositOrder

BLACKLIST = Function("blacklist(address)")


@pytest.fixture
async def sponsored(usdc: TestChain, tmp_path: Path) -> AsyncIterator[Sponsored]:
    async with usdc.connect() as chain, sponsor_deposits(chain, tmp_path) as running:
        yield running


def opening_call(payer: GaslessPayer, payload: Any, **changes: Any) -> bytes:
    """The relayed call by a stranger, perhaps with other terms."""
    inner = payload.authorization
    terms = {
        "payee": payer.terms.payee,
        "token": payer.terms.token,
        "amount": inner.value,
        "salt": payload.salt,
        "signer": payload.authorized_signer,
    } | changes
    window = (inner.valid_after, inner.valid_before, inner.nonce)
    return abi.open_with_authorization.encode(
        *terms.values(), payer.address, *window, payload.signature
    )


async def put(chain: Devnet, name: str, to: bytes, calldata: bytes, *, tip_gwei: int) -> str:
    """Send a transaction that Anvil signs for an account, with a tip of its own."""
    account = "0x" + chain.account(name).address.hex()
    await chain.rpc.command("anvil_impersonateAccount", account)
    tx_hash = await chain.rpc.command(
        "eth_sendTransaction",
        {
            "from": account,
            "to": "0x" + to.hex(),
            "data": "0x" + calldata.hex(),
            "gas": hex(500_000),
            "maxFeePerGas": hex(500 * 10**9),
            "maxPriorityFeePerGas": hex(tip_gwei * 10**9),
        },
    )
    return str(tx_hash)


async def overtake(chain: Devnet, call: bytes) -> None:
    """Have a stranger call the escrow, ahead of the provider in the block."""
    await put(chain, "stranger", chain.values.escrow, call, tip_gwei=50)


async def until_sent(sponsored: Sponsored) -> None:
    orders: list[DepositOrder] = []
    async with asyncio.timeout(PATIENCE_S):
        while not any(order.status is OrderStatus.SENT for order in orders):
            await asyncio.sleep(0.01)
            orders = await sponsored.orders.list_open()


async def present_between(
    sponsored: Sponsored, payload: Any, meanwhile: Callable[[], Awaitable[object]]
) -> httpx.Response:
    """Present a deposit, and do something while its transaction is in the pool."""
    async with sponsored.chain.mining_paused():
        presenting = asyncio.create_task(sponsored.provider.send(payload))
        await until_sent(sponsored)
        await meanwhile()
    return await presenting


async def insist(sponsored: Sponsored, payload: Any) -> httpx.Response:
    """Send a credential until it is taken, as blocks go by."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = await sponsored.provider.send(payload)
            if answer.status_code != 503:
                assert answer.status_code == 200, answer.text
                return answer
            if await sponsored.sent():
                await sponsored.chain.mine()
            await asyncio.sleep(0.05)


async def test_expired_between_check_and_mining(sponsored: Sponsored) -> None:
    """OPEN-05, F-76: it reverts once, is not sent again, and nothing is credited."""
    payer, chain = sponsored.payer, sponsored.chain
    now = (await chain.rpc.block()).timestamp
    payload = await payer.opening(PRICE, window=Window(0, now + 90))

    async def wait() -> None:
        await chain.rpc.command("evm_setNextBlockTimestamp", now + 100)

    answer = await present_between(sponsored, payload, wait)
    assert answer.status_code in (402, 409), answer.text
    again = await sponsored.provider.send(payload)
    assert (again.status_code, again.json()["type"]) == (answer.status_code, answer.json()["type"])
    assert await sponsored.sent() == 1
    assert await sponsored.provider.ledger.load(payer.key) is None
    payer.next_channel()
    assert (await sponsored.provider.send(await payer.opening(PRICE))).status_code == 200


async def test_blacklisted_between_check_and_mining(sponsored: Sponsored) -> None:
    """F-79: the token refuses in the block; no channel, no content, gas paid once."""
    payer, chain = sponsored.payer, sponsored.chain
    payload = await payer.opening(PRICE)
    ban = BLACKLIST.encode(payer.address)
    answer = await present_between(
        sponsored, payload, lambda: put(chain, "deployer", chain.values.token, ban, tip_gwei=50)
    )
    assert answer.json()["type"].endswith("session/insufficient-balance"), answer.text
    assert (await sponsored.provider.send(payload)).status_code == 402
    assert await sponsored.sent() == 1
    assert sponsored.provider.served == 0


@pytest.mark.parametrize("when", ["in the same block", "before our check"])
async def test_front_run_by_the_same_call_is_adopted(sponsored: Sponsored, when: str) -> None:
    """AMB-10, OPEN-11, F-83: the intended channel exists, so a stranger's payment is success."""
    payer, chain = sponsored.payer, sponsored.chain
    payload = await payer.opening(PRICE)
    call = opening_call(payer, payload)
    if when == "before our check":
        await chain.sender("stranger").send(chain.values.escrow, call)
        answer = await sponsored.provider.send(payload)
    else:
        answer = await present_between(sponsored, payload, lambda: overtake(chain, call))
    assert answer.status_code == 200, answer.text
    books = await sponsored.provider.ledger.load(payer.key)
    assert books is not None
    assert (books.deposit, books.accepted, books.spent) == (DEPOSIT, PRICE, PRICE)
    assert await sponsored.sent() == (0 if when == "before our check" else 1)
    assert await chain.token_balance(chain.values.escrow) == DEPOSIT


async def test_an_authorization_that_was_never_valid_is_no_crash(sponsored: Sponsored) -> None:
    """F-01, AMB-10: `validBefore` of 0, for a channel that a stranger has opened; no 500."""
    payer, chain = sponsored.payer, sponsored.chain
    call = opening_call(payer, await payer.opening(PRICE))
    await chain.sender("stranger").send(chain.values.escrow, call)
    answer = await sponsored.provider.send(await payer.opening(PRICE, window=Window(0, 0)))
    assert answer.status_code == 200, answer.text  # the channel is there, as it was meant
    assert await sponsored.sent() == 0


@pytest.mark.parametrize("kind", ["authorization", "permit2"])
async def test_a_deposit_that_was_copied_from_the_pool_is_adopted(
    sponsored: Sponsored, kind: str
) -> None:
    """O-33, AMB-10, TOPUP-04, F-83: the same signature, not merely the same amount."""
    payer, chain = sponsored.payer, sponsored.chain
    if kind == "permit2":
        await payer.approve_permit2()
    opening = await payer.opening(PRICE, kind)
    answer = await present_between(sponsored, opening, lambda: copy_from_pool(chain))
    assert answer.status_code == 200, answer.text
    payload = await payer.top_up(kind, amount=500)
    answer = await present_between(sponsored, payload, lambda: copy_from_pool(chain))
    assert answer.status_code == 200, answer.text
    assert (await sponsored.provider.manage(payload)).status_code == 200
    books = await sponsored.provider.ledger.load(payer.key)
    assert books is not None
    assert books.deposit == DEPOSIT + 500
    assert await chain.token_balance(chain.values.escrow) == DEPOSIT + 500


async def test_the_signature_serves_no_other_payee_and_no_other_salt(sponsored: Sponsored) -> None:
    """F-83: who copies it for itself is refused by the escrow; ours is mined as signed."""
    payer, chain = sponsored.payer, sponsored.chain
    payload = await payer.opening(PRICE)
    thieves = [
        opening_call(payer, payload, payee=chain.account("stranger").address),
        opening_call(payer, payload, salt=bytes([9] * 32)),
    ]

    async def steal() -> None:
        for tip_gwei, call in enumerate(thieves, 50):
            await put(chain, "stranger", chain.values.escrow, call, tip_gwei=tip_gwei)

    answer = await present_between(sponsored, payload, steal)
    assert answer.status_code == 200, answer.text
    stranger = "0x" + chain.account("stranger").address.hex()
    count = await chain.rpc.read("eth_getTransactionCount", stranger, "latest")
    assert parse_quantity(count) == 2  # both were mined, and reverted
    assert await chain.token_balance(chain.values.escrow) == DEPOSIT


async def test_when_the_voucher_fails_after_all_the_deposit_is_kept(sponsored: Sponsored) -> None:
    """VCH-07: another voucher overtook this one while the deposit was mined; no money is lost."""
    payer, provider = sponsored.payer, sponsored.provider
    assert (await provider.manage(await payer.opening(PRICE))).status_code == 200
    merged = payer.voucher(PRICE + 25, await payer.top_up_deposit(amount=500))
    answer = await present_between(
        sponsored, merged, lambda: provider.manage(payer.voucher(PRICE + 20))
    )
    assert answer.json()["type"].endswith("session/delta-too-small"), answer.text
    books = await provider.ledger.load(payer.key)
    assert books is not None
    assert (books.deposit, books.accepted) == (DEPOSIT + 500, PRICE + 20)


async def test_while_it_is_under_way_the_client_is_asked_to_retry(
    usdc: TestChain, tmp_path: Path
) -> None:
    """F-75, F-82: a bounded wait, 503 with Retry-After and no challenge; the retry finds it."""
    limits = replace(LIMITS, wait_s=0.2)
    async with usdc.connect() as chain, sponsor_deposits(chain, tmp_path, limits=limits) as running:
        payload = await running.payer.opening(PRICE)
        async with chain.mining_paused():
            for _ in range(2):
                answer = await running.provider.send(payload)
                assert answer.status_code == 503, answer.text
                assert int(answer.headers["retry-after"]) > 0
                assert "www-authenticate" not in answer.headers
        answer = await insist(running, payload)
        assert answer.text == "joke 1"
        assert await running.sent() == 1


async def test_gas_above_the_ceiling_is_not_paid(sponsored: Sponsored) -> None:
    """F-78, F-98: refused with `sponsoring-paused`, no transaction; later it is taken."""
    chain, payload = sponsored.chain, await sponsored.payer.opening(PRICE)
    await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(200 * 10**9))
    await chain.mine()
    answer = await sponsored.provider.send(payload)
    assert (answer.status_code, answer.json()["type"].rpartition("/")[2]) == (
        503,
        "sponsoring-paused",
    )
    assert await sponsored.sent() == 0
    await chain.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(10**9))
    await chain.mine()
    assert (await sponsored.provider.send(payload)).status_code == 200


@pytest.mark.parametrize("forged", [b"\x00", b"\x00" * 65], ids=["short", "long"])
async def test_a_stranger_cannot_use_up_the_share_of_a_payer(
    usdc: TestChain, tmp_path: Path, forged: bytes
) -> None:
    """F-98: top-ups that name a victim as their funder, and look like one that was made."""
    limits = replace(LIMITS, orders=replace(LIMITS.orders, per_funder=2))
    async with usdc.connect() as chain, sponsor_deposits(chain, tmp_path, limits=limits) as running:
        attacker, provider = running.payer, running.provider
        assert (await provider.manage(await attacker.opening(PRICE))).status_code == 200
        await chain.fund(chain.account("stranger").address, amount=500)
        real: Any = await attacker.top_up(amount=500)
        inner = real.authorization
        window = (inner.valid_after, inner.valid_before, inner.nonce)
        call = abi.top_up_with_authorization.encode(
            real.channel_id, 500, attacker.address, real.salt, *window, real.signature
        )
        stranger = chain.sender("stranger")
        await stranger.send(chain.values.escrow, call + forged)  # what follows a call is ignored
        victim = GaslessPayer(chain, attacker.token_domain.separator, "victim")
        await fund_payer(chain, "victim")
        for _ in range(3):
            lie: Any = await attacker.top_up("permit2", amount=500)
            named = replace(lie.authorization, funder=victim.address)
            await provider.manage(replace(lie, authorization=named, signature=forged))
        credential = await provider.credential(await victim.opening(PRICE))
        own = replace(credential, source=(victim.key.chain_id, victim.address))
        assert (await provider.send(own)).status_code == 200
        assert await running.sent() == 2


async def present_together(
    sponsored: Sponsored, credentials: list[Credential]
) -> list[httpx.Response]:
    """Present deposits before the first of them is mined."""
    async with sponsored.chain.mining_paused():
        presenting = [
            asyncio.create_task(sponsored.provider.send(credential)) for credential in credentials
        ]
        await until_sent(sponsored)
        await asyncio.sleep(1)  # time enough to send them all
    return [await answer for answer in presenting]


async def test_one_nonce_signed_for_many_windows_costs_gas_once(sponsored: Sponsored) -> None:
    """F-90, F-98: each passes the simulation until the first is mined; none pays for a revert."""
    payer, provider = sponsored.payer, sponsored.provider
    now = (await sponsored.chain.rpc.block()).timestamp
    credentials = [
        await provider.credential(await payer.opening(PRICE, window=Window(0, now + 3600 + later)))
        for later in range(5)
    ]
    answers = await present_together(sponsored, credentials)
    assert sorted(answer.status_code for answer in answers) == [200, 402, 402, 402, 402]
    assert await sponsored.sent() == 1


async def test_one_balance_signed_away_many_times_costs_gas_once(sponsored: Sponsored) -> None:
    """F-98: five openings by a payer that can fund one; none pays for a revert."""
    chain, provider = sponsored.chain, sponsored.provider
    poor = GaslessPayer(chain, sponsored.payer.token_domain.separator, "poor")
    await fund_payer(chain, "poor", DEPOSIT)
    credentials = []
    for _ in range(5):
        poor.next_channel()
        credential = await provider.credential(await poor.opening(PRICE))
        credentials.append(replace(credential, source=(poor.key.chain_id, poor.address)))
    answers = await present_together(sponsored, credentials)
    assert sorted(answer.status_code for answer in answers) == [200, 402, 402, 402, 402]
    assert await sponsored.sent() == 1


async def test_five_hundred_dust_opens_cost_no_more_than_the_budget(
    usdc: TestChain, tmp_path: Path
) -> None:
    """F-98, OPEN-12: fifty payers, each within its own bounds; the hour's gas is the bound."""
    orders = OrderLimits(period_s=3600, gas_gwei=8_000_000, per_funder=8)
    limits = replace(LIMITS, orders=orders)
    async with usdc.connect() as chain, sponsor_deposits(chain, tmp_path, limits=limits) as running:
        domain = running.payer.token_domain.separator
        payers = []
        for number in range(50):
            payer = GaslessPayer(chain, domain, f"dust {number}")
            await fund_payer(chain, f"dust {number}", 10_000)
            payers.append(payer)
        before = await running.ether()
        challenge = await running.provider.challenge()
        outcomes: dict[int, int] = {}

        async def flood(payer: GaslessPayer) -> None:
            for _ in range(10):
                payer.next_channel()
                payload = await payer.opening(0, amount=100)
                credential = await running.provider.credential(payload, challenge=challenge)
                named = replace(credential, source=(payer.key.chain_id, payer.address))
                answer = await running.provider.send(named, method="HEAD")
                outcomes[answer.status_code] = outcomes.get(answer.status_code, 0) + 1

        for start in range(0, len(payers), 5):
            await asyncio.gather(*[flood(payer) for payer in payers[start : start + 5]])
        paid = before - await running.ether()
        sent = await running.sent()
    assert sum(outcomes.values()) == 500
    assert 0 < outcomes[200] == sent < 400
    assert outcomes[503] > 0
    assert 0 < paid <= orders.gas_gwei * 10**9


async def test_a_reorg_of_a_sponsored_open_credits_once(usdc: TestChain, tmp_path: Path) -> None:
    """F-70, F-71, OPEN-12: taken back before it is deep, mined again, and credited then."""
    async with (
        usdc.connect() as chain,
        sponsor_deposits(chain, tmp_path, confirmations=3, transaction_wait_s=HASTY_S) as running,
    ):
        payload = await running.payer.opening(PRICE)
        answer = await running.provider.send(payload)
        assert answer.status_code == 503, answer.text  # mined, one block deep
        assert await running.provider.ledger.load(running.payer.key) is None
        await chain.rpc.command("anvil_rollback", 1)
        assert await running.sent() == 0
        await chain.mine()  # another block took its place
        await insist(running, payload)  # meanwhile the same bytes go out again
        books = await running.provider.ledger.load(running.payer.key)
        assert books is not None
        assert (books.deposit, books.spent) == (DEPOSIT, PRICE)
        assert await chain.token_balance(chain.values.escrow) == DEPOSIT
        assert await running.sent() == 1


async def test_a_reorg_of_what_was_served_freezes_and_resumes(
    usdc: TestChain, tmp_path: Path
) -> None:
    """F-70: nothing is served on a deposit that is gone; mined again, `spent` is what it was."""
    async with usdc.connect() as chain, sponsor_deposits(chain, tmp_path) as running:
        provider, payer = running.provider, running.payer
        assert (await provider.send(await payer.opening(PRICE))).status_code == 200
        (tx_hash,) = [order.tx_hash for order in await running.orders.list_unknown(2**40)]
        assert tx_hash is not None
        tx = await running.journal.find(tx_hash)
        assert tx is not None
        await chain.rpc.command("anvil_rollback", 1)
        await chain.mine(2)
        refused = await provider.send(payer.voucher(3 * PRICE))
        assert (refused.status_code, provider.served) == (503, 1), refused.text
        await chain.rpc.command("eth_sendRawTransaction", "0x" + tx.newest.raw.hex())
        answer = await insist(running, payer.voucher(3 * PRICE))  # as its nodes would, again
        assert answer.text == "joke 2"
        books = await provider.ledger.load(payer.key)
        assert books is not None
        assert (books.deposit, books.spent) == (DEPOSIT, 2 * PRICE)
        assert await chain.token_balance(chain.values.escrow) == DEPOSIT


async def test_a_wallet_that_takes_much_gas_is_not_paid_for(sponsored: Sponsored) -> None:
    """F-18, F-98: else one signature could use up the hour's gas, and block closes behind it."""
    chain, payer = sponsored.chain, sponsored.payer
    counts_first = "0x62030d405b600190038060045750631626ba7e60e01b60005260206000f3"
    wallet = GaslessPayer(chain, payer.token_domain.separator, "wallet")
    await fund_payer(chain, "wallet")
    await chain.rpc.command("anvil_setCode", "0x" + wallet.address.hex(), counts_first)
    payload = replace(await wallet.opening(PRICE), signature=b"any words a wallet takes")
    credential = await sponsored.provider.credential(payload)
    named = replace(credential, source=(wallet.key.chain_id, wallet.address))
    answer = await sponsored.provider.send(named)
    assert answer.json()["type"].endswith("session/invalid-signature"), answer.text
    assert await sponsored.orders.list_open() == []
    assert await sponsored.sent() == 0


async def test_a_contract_wallet_signs_its_deposit(sponsored: Sponsored) -> None:
    """ENC-07, F-18: no key made the signature; the token asks the wallet, and so do we."""
    chain, payer = sponsored.chain, sponsored.payer
    says_yes = "0x631626ba7e60e01b60005260206000f3"  # returns ERC-1271's magic value, always
    wallet = GaslessPayer(chain, payer.token_domain.separator, "wallet")
    await fund_payer(chain, "wallet")
    await chain.rpc.command("anvil_setCode", "0x" + wallet.address.hex(), says_yes)
    payload = replace(await wallet.opening(PRICE), signature=b"any words a wallet takes")
    credential = await sponsored.provider.credential(payload)
    named = replace(credential, source=(wallet.key.chain_id, wallet.address))
    answer = await sponsored.provider.send(named)
    assert answer.status_code == 200, answer.text
    assert await sponsored.sent() == 1
