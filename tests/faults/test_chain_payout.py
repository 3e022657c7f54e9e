"""A token that would not pay what is owed: found early, on Circle's dollar and on ours."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from channel.types import Address
from mpp_session.testing.chain import TestChain
from settlement import abi
from settlement.alarms import AlarmKind, Alarms
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.escrow.payout_check import find_payout_obstacle
from settlement.escrow.reader import EscrowReader
from settlement.settle.exposure import ExposureGate
from settlement.watch.health import HealthChecks, Payout
from settlement.watch.watcher import ChannelWatcher
from tests.e2e.selling import PRICE, TOKENS, Provider, provide
from tests.faults.chain_world import WATCH
from tests.settlement.channels import Channels

UNTIL = {"pause()": "unpause()", "blacklist(address)": "unBlacklist(address)"}


@pytest.fixture(params=["devnet", "usdc"])
def running(request: pytest.FixtureRequest) -> TestChain:
    """A chain with our dollar, and one with Circle's."""
    chain: TestChain = request.getfixturevalue(request.param)
    return chain


async def order(chain: Devnet, function: str, account: Address | None) -> None:
    """Have the token's owner do something."""
    words = [] if account is None else [account]
    await chain.deployer.send(chain.values.token, abi.Function(function).encode(*words))


def named(chain: Devnet, who: str | None) -> Address | None:
    if who is None:
        return None
    return chain.values.escrow if who == "escrow" else chain.account(who).address


@asynccontextmanager
async def watched(provider: Provider, gate: ExposureGate) -> AsyncIterator[ChannelWatcher]:
    """Look at the chain for a provider, as its gateway does."""
    values, payee = provider.chain.values, provider.payer.terms.payee
    health = HealthChecks(
        provider.reader, Alarms(), gate, gas_account=None, payout=Payout(values.token, payee)
    )
    yield ChannelWatcher(provider.reader, provider.ledger, None, limits=WATCH, health=health)


@pytest.mark.parametrize(
    ("function", "who"),
    [("pause()", None), ("blacklist(address)", "payee"), ("blacklist(address)", "escrow")],
    ids=["paused", "payee on the blacklist", "escrow on the blacklist"],
)
async def test_nothing_more_is_sold_while_the_token_would_not_pay(
    running: TestChain, tmp_path: Path, function: str, who: str | None
) -> None:
    """O-13: no voucher, no request, no opening; what was held is delivered; it ends by itself."""
    gate = ExposureGate()
    async with (
        running.connect() as chain,
        provide(chain, tmp_path, admission=gate, reservation_step_units=3) as provider,
        watched(provider, gate) as watcher,
    ):
        payer = provider.payer
        await provider.opened(20 * PRICE)
        await watcher.sweep()
        assert not gate.is_unpayable
        first = payer.key, payer.salt, payer.open_tx
        await payer.open()
        second = payer.opening(PRICE)
        payer.key, payer.salt, payer.open_tx = first
        async with provider.client.stream(
            "GET",
            f"{TOKENS}?count=6",
            headers={
                "authorization": await provider.authorization(payer.voucher(22 * PRICE), TOKENS)
            },
        ) as answer:
            assert answer.status_code == 200
            await order(chain, function, named(chain, who))
            await watcher.sweep()
            (alarm,) = watcher.alarms.ringing
            assert alarm.kind is AlarmKind.PAYOUT_REFUSED
            await answer.aread()
        assert answer.text.count("data: token") >= 3
        state = await provider.books()
        assert state is not None
        assert (state.reserved, state.spent) == (0, PRICE * answer.text.count("data: token"))
        served = provider.served
        refused = await provider.send(payer.voucher(30 * PRICE))
        assert refused.json()["type"].endswith("exposure-limit")
        assert (await provider.send(payer.voucher(22 * PRICE))).status_code == 503
        assert (await provider.send(second)).json()["type"].endswith("openings-paused")
        assert provider.served == served
        await order(chain, UNTIL[function], named(chain, who))
        await watcher.sweep()
        assert watcher.alarms.ringing == []
        assert (await provider.send(payer.voucher(30 * PRICE))).status_code == 200


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("0x5f5f5260205ff3", "returned that it transferred nothing"),
        ("0x60025f5260205ff3", "returned that it transferred nothing"),
        ("0x5f5ffd", "refuses a transfer"),
        ("0x5b5f56", "gas"),
        ("0x", "no contract"),
        ("0x00", None),
        ("0x60015f5260205ff3", None),
    ],
    ids=["false", "garbage", "reverts", "burns all gas", "gone", "silent", "true"],
)
async def test_a_token_is_judged_as_the_escrow_judges_it(
    chain: Devnet, code: str, why: str | None
) -> None:
    """O-13: for each way in which the token makes a payout fail."""
    reader = EscrowReader(chain.rpc, chain.values.escrow)
    token, payee = chain.values.token, chain.account("payee").address
    await chain.rpc.command("anvil_setCode", "0x" + token.hex(), code)
    found = await find_payout_obstacle(reader, token, payee, owed=5)
    assert (found is None) if why is None else (why in (found or ""))


async def test_an_escrow_that_lost_what_is_owed_does_not_pay(chain: Devnet) -> None:
    """O-13: an issuer can take tokens away."""
    reader = EscrowReader(chain.rpc, chain.values.escrow)
    token, payee = chain.values.token, chain.account("payee").address
    await Channels(chain, PayerAccount(chain.sender("payer"))).open(100)
    assert await find_payout_obstacle(reader, token, payee, owed=100) is None
    assert await find_payout_obstacle(reader, token, payee, owed=101) is not None


async def test_before_the_first_deposit_only_the_payee_can_be_refused(chain: Devnet) -> None:
    """O-13: a token that moves no 0, or is paused, is not what keeps the first payer out."""
    reader = EscrowReader(chain.rpc, chain.values.escrow)
    token, payee = chain.values.token, chain.account("payee").address
    assert await find_payout_obstacle(reader, token, payee, owed=0) is None
    await order(chain, "blacklist(address)", payee)
    assert await find_payout_obstacle(reader, token, payee, owed=0) is not None
    await order(chain, "pause()", None)
    assert await find_payout_obstacle(reader, token, payee, owed=0) is None
