"""A charge buys one answer: it is paid once and served once, where anything stops or fails."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from eth_account import Account
from mpp import Challenge, Credential
from mpp.methods.evm.client import evm
from mpp.runtime import CredentialParams
from msgspec.structs import replace
from x402 import x402Client
from x402.http import x402HTTPClient
from x402.mechanisms.evm.exact import ExactEvmClientScheme

from channel.errors import LedgerUnavailableError
from channel.verify.typed_data import keccak
from channel.wire.encoding import format_checksum_address
from mpp_session.discovery.offers import list_offers
from mpp_session.discovery.service import describe_service
from mpp_session.settings import Discovery
from mpp_session.testing.chain import TestChain
from settlement import abi
from settlement.charge.orders.interface import ChargeOrder
from settlement.tx.manager import TxManager
from settlement.tx.orders import OrderStatus
from settlement.tx.state import Sent, Signed
from tests.e2e.charging import JOKE, LIMITS, PRICE, Shop, open_shop
from tests.settlement.senders import FailingJournal
from tests.waiting import until

HASTY = replace(LIMITS, wait_s=0.05)
TIMES = 20
LEASE_S = LIMITS.lease_s
CANCEL = abi.Function("cancelAuthorization(address,bytes32,bytes)")


@pytest.fixture
async def shop(devnet: TestChain, tmp_path: Path) -> AsyncIterator[Shop]:
    async with devnet.connect() as chain, open_shop(chain, tmp_path) as opened:
        yield opened


@pytest.fixture
async def idle(devnet: TestChain, tmp_path: Path) -> AsyncIterator[Shop]:
    """A shop that waits for no transfer, and whose settler runs only when a test starts one."""
    async with (
        devnet.connect() as chain,
        open_shop(chain, tmp_path, limits=HASTY, sends=False) as opened,
    ):
        yield opened


class Payer:
    """The account without ether: it signs, and sends nothing."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        account = shop.chain.account("agent")
        self.address = account.address
        self.balance = 0
        """In tokens, when it last cancelled."""
        self._account = Account.from_key(account.private_key)
        values = shop.chain.values
        self._method = evm(
            account=self._account,
            currency=format_checksum_address(values.token),
            chain_id=values.chain_id,
            decimals=values.token_decimals,
            authorization={"name": "Dev USD", "version": "1"},
        )

    async def charge(self, path: str = JOKE) -> dict[str, str]:
        """Return the field that pays for a path by a charge."""
        answer = await self.shop.client.get(path)
        lines = answer.headers.get_list("www-authenticate")
        (line,) = [each for each in lines if 'intent="charge"' in each]
        challenge = Challenge.from_www_authenticate(line)
        return {
            "authorization": await self._method.create_credential(
                CredentialParams(challenge=challenge)
            )
        }

    async def cancel(self, payment: dict[str, str]) -> None:
        """Take an authorization back on the chain; a stranger sends it and pays the gas."""
        nonce = bytes.fromhex(
            Credential.from_authorization(payment["authorization"]).payload["nonce"][2:]
        )
        signed = self._account.sign_typed_data(
            {
                "name": "Dev USD",
                "version": "1",
                "chainId": self.shop.chain.values.chain_id,
                "verifyingContract": format_checksum_address(self.shop.chain.values.token),
            },
            {
                "CancelAuthorization": [
                    {"name": "authorizer", "type": "address"},
                    {"name": "nonce", "type": "bytes32"},
                ]
            },
            {"authorizer": self._account.address, "nonce": nonce},
        )
        self.balance = await self.shop.balance(self.address)
        call = CANCEL.encode(self.address, nonce, bytes(signed.signature))
        await self.shop.chain.sender("stranger").send(self.shop.chain.values.token, call)

    async def exact(self, path: str = JOKE) -> dict[str, str]:
        """Return the field that pays for a path by x402."""
        scheme = ExactEvmClientScheme(self._account)
        client = x402Client().set_spend_controls({"allowed_assets": True})
        http = x402HTTPClient(client.register("eip155:*", scheme))
        answer = await self.shop.client.get(path)
        url = str(answer.request.url)
        headers, _ = await http.handle_402_response(dict(answer.headers), answer.content, url)
        return dict(headers)


async def ask(shop: Shop, headers: dict[str, str], path: str = JOKE) -> httpx.Response:
    return await shop.client.get(path, headers=headers)


async def detail(answer: httpx.Response) -> str:
    return str(answer.json()["detail"])


async def test_one_402_carries_every_offer(shop: Shop) -> None:
    """Each challenge is a field line of its own; the problem body comes once."""
    answer = await shop.client.get(JOKE)
    lines = answer.headers.get_list("www-authenticate")
    assert [("session" in line, "charge" in line) for line in lines] == [
        (True, False),
        (False, True),
    ]
    assert len(answer.headers.get_list("payment-required")) == 1
    assert answer.headers["cache-control"] == "no-store"


async def test_discovery_lists_what_the_402_offers(shop: Shop) -> None:
    """DISC-07: a charge at the price of one request, and none where a route takes none."""
    assert shop.rails is not None
    gate = shop.gate(shop.rails)
    service = describe_service(gate, Discovery(), chain_id=shop.chain.values.chain_id, url=None)
    listed = {
        one.path: [(offer.intent, offer.amount) for offer in list_offers(service, one)]
        for one in service.paid
        if one.method == "GET"
    }
    answer = await shop.client.get(JOKE)
    (line,) = [
        each for each in answer.headers.get_list("www-authenticate") if 'intent="charge"' in each
    ]
    amount = Challenge.from_www_authenticate(line).request["amount"]
    assert listed[JOKE] == [("session", str(PRICE)), ("charge", amount)]
    assert listed["/cheap"] == [("session", "1")]
    assert listed["/metered"] == [("session", str(PRICE))]
    assert answer.json()["status"] == 402


async def test_the_client_says_which_offers_it_wants(shop: Shop) -> None:
    """CORE-11."""
    answer = await shop.client.get(JOKE, headers={"accept-payment": "evm/charge"})
    (line,) = answer.headers.get_list("www-authenticate")
    assert 'intent="charge"' in line
    answer = await shop.client.get(JOKE, headers={"accept-payment": "evm/session"})
    (line,) = answer.headers.get_list("www-authenticate")
    assert 'intent="session"' in line
    assert "payment-required" not in answer.headers


@pytest.mark.parametrize("path", ["/metered", "/cheap"])
async def test_a_route_that_takes_no_single_payment_offers_none(shop: Shop, path: str) -> None:
    """A metered price is not known in advance, and a small one does not pay its gas."""
    payment = await Payer(shop).charge()
    answer = await shop.client.get(path)
    (line,) = answer.headers.get_list("www-authenticate")
    assert 'intent="session"' in line
    assert "payment-required" not in answer.headers
    refused = await ask(shop, payment, path)
    assert refused.status_code == 400
    assert "takes no single payments" in await detail(refused)
    assert shop.served == 0


@pytest.mark.parametrize("kind", ["charge", "exact"])
async def test_it_is_paid_and_served_once(shop: Shop, kind: str) -> None:
    payer = Payer(shop)
    payment = await getattr(payer, kind)()
    before = await shop.balance(payer.address)
    answers = await asyncio.gather(*[ask(shop, payment) for _ in range(4)])
    assert [each.status_code for each in answers].count(200) == 1
    assert (await ask(shop, payment)).status_code == 402
    assert (shop.served, await shop.sent()) == (1, 1)
    assert before - await shop.balance(payer.address) == PRICE
    (sold,) = shop.sales.receipts
    assert (sold.action, sold.cost, sold.payer) == ("charge", PRICE, payer.address)


async def test_two_payments_of_a_request_are_refused(shop: Shop) -> None:
    payer = Payer(shop)
    answer = await ask(shop, {**await payer.charge(), **await payer.exact()})
    assert answer.status_code == 400
    assert shop.served == 0


async def test_a_payment_for_another_route_buys_nothing(shop: Shop) -> None:
    payment = await Payer(shop).charge("/stream")
    answer = await ask(shop, payment)
    assert answer.status_code == 402
    assert len(answer.headers.get_list("www-authenticate")) == 2
    assert shop.served == 0


@pytest.mark.parametrize("path", [JOKE, "/refused"])
async def test_a_request_that_fails_costs_nothing_and_its_payment_is_still_good(
    shop: Shop, path: str
) -> None:
    shop.is_refusing = True
    payer = Payer(shop)
    payment = await payer.charge(path)
    answer = await ask(shop, payment, path)
    assert answer.status_code in (404, 503)
    assert "payment-receipt" not in answer.headers
    assert await shop.sent() == 0
    shop.is_refusing = False
    again = await ask(shop, payment, path)
    assert again.status_code == (404 if path == "/refused" else 200)


async def test_a_stream_is_paid_before_it_begins(shop: Shop) -> None:
    answer = await ask(shop, await Payer(shop).charge("/stream"), "/stream")
    assert (answer.text, answer.status_code) == ("one two", 200)
    assert "payment-receipt" in answer.headers
    assert await shop.sent() == 1


@pytest.mark.parametrize("kind", ["charge", "exact"])
async def test_a_stream_that_breaks_off_is_a_credit_of_its_payer(shop: Shop, kind: str) -> None:
    """Never paid and not served: by the same secret, or by a new signature; and then once."""
    payer = Payer(shop)
    payment = await getattr(payer, kind)("/stream")
    shop.fails = True
    with pytest.raises(httpx.RemoteProtocolError):
        await ask(shop, payment, "/stream")
    shop.fails = False
    if kind == "exact":  # all of it is on the chain, for anyone to send
        refused = await ask(shop, payment, "/stream")
        assert refused.status_code == 402
        assert "is a credit" in await detail(refused)
        payment = await payer.exact("/stream")
    answer = await ask(shop, payment, "/stream")
    assert (answer.status_code, answer.text) == (200, "one two")
    assert await shop.sent() == 1
    assert (await ask(shop, payment, "/stream")).status_code == 402


async def test_a_cancelled_authorization_buys_nothing(shop: Shop) -> None:
    """F-83: its payer took it back on the chain; the handler does not run, no gas is spent."""
    payer = Payer(shop)
    payment = await payer.charge()
    await payer.cancel(payment)
    answer = await ask(shop, payment)
    assert answer.status_code == 402
    assert "refuses the transfer" in await detail(answer)
    assert (shop.served, await shop.sent()) == (0, 0)


async def test_an_authorization_cancelled_while_the_handler_runs_gets_no_answer(
    shop: Shop,
) -> None:
    """F-83: the answer is made, and leaves only for a transfer that is mined."""
    payer = Payer(shop)
    payment = await payer.charge()
    shop.may_go_on.clear()
    asking = asyncio.create_task(ask(shop, payment))
    await until(lambda: shop.served == 1)
    await payer.cancel(payment)
    shop.may_go_on.set()
    answer = await asking
    assert answer.status_code == 402, answer.text
    assert "joke 1" not in answer.text
    assert await shop.balance(payer.address) == payer.balance


async def test_tokens_that_are_gone_buy_nothing(shop: Shop) -> None:
    """The token takes no transfer of them; the handler does not run."""
    payer = Payer(shop)
    payment = await payer.charge()
    await spend_elsewhere(shop, payer)
    answer = await ask(shop, payment)
    assert answer.status_code == 402
    assert "refuses the transfer" in await detail(answer)
    assert (shop.served, await shop.sent()) == (0, 0)


async def spend_elsewhere(shop: Shop, payer: Payer) -> None:
    """Move the payer's tokens away, so that nothing can be transferred."""
    sender = shop.chain.sender("agent")
    await shop.chain.fund(payer.address, ether=1)
    rest = await shop.balance(payer.address)
    away = shop.chain.account("stranger").address
    await sender.send(shop.chain.values.token, abi.transfer.encode(away, rest))


async def test_an_authorization_that_expires_too_soon_is_refused(shop: Shop) -> None:
    await shop.chain.mine()  # the head may be old, and the challenge goes by this machine's clock
    payment = await Payer(shop).charge()
    await shop.chain.advance(290)
    answer = await ask(shop, payment)
    assert answer.status_code == 402
    assert "must be valid for" in await detail(answer)
    assert shop.served == 0


async def test_money_that_is_gone_when_it_is_taken_is_an_unpaid_answer(idle: Shop) -> None:
    """The payer spent it elsewhere while the handler ran: no answer leaves, no gas is spent."""
    payer = Payer(idle)
    payment = await payer.charge()
    assert (await ask(idle, payment)).status_code == 503  # ordered; no settler runs
    await spend_elsewhere(idle, payer)
    async with idle.settler():
        await until(lambda: has_ended(idle))
    answer = await ask(idle, payment)
    assert answer.status_code == 402
    assert "refuses the transfer" in await detail(answer)
    assert await idle.sent() == 0


async def has_ended(shop: Shop) -> bool:
    return await shop.orders.list_open() == []


async def test_a_transfer_that_another_sent_first_counts(idle: Shop) -> None:
    """F-83: the tokens can only go to the payee. It is served, and no gas is spent on it."""
    payment = await Payer(idle).charge()
    assert (await ask(idle, payment)).status_code == 503
    (order,) = await idle.orders.list_open()
    await idle.chain.sender("stranger").send(idle.chain.values.token, order.calldata)
    async with idle.settler():
        answer = await paid(idle, payment)
    assert answer.text == "joke 1"
    assert await idle.sent() == 0


async def paid(shop: Shop, payment: dict[str, str]) -> httpx.Response:
    """Ask until the payment is mined, as the answer says."""
    answer = await ask(shop, payment)
    while answer.status_code in (409, 503):
        await asyncio.sleep(0.02)
        answer = await ask(shop, payment)
    assert answer.status_code == 200, answer.text
    return answer


async def stop_after_the_claim(shop: Shop, payment: dict[str, str]) -> None:
    """The worker dies while the handler runs: its claim is on disk, and nothing is ordered."""
    served = shop.served
    shop.may_go_on.clear()
    asking = asyncio.create_task(ask(shop, payment))
    await until(lambda: shop.served > served)
    claimed = await shop.orders.find(order_id(shop, payment))
    assert claimed is not None
    assert claimed.status is None
    shop.is_refusing = True
    shop.may_go_on.set()
    assert (await asking).status_code == 503
    shop.is_refusing = False
    await shop.orders.claim(claimed, now=int(shop.clock()), is_private=True)
    assert (await ask(shop, payment)).status_code == 409


def order_id(shop: Shop, payment: dict[str, str]) -> bytes:
    """Return the id of the order for a charge."""
    payload = Credential.from_authorization(payment["authorization"]).payload
    payer, nonce = [bytes.fromhex(payload[name][2:]) for name in ("from", "nonce")]
    values = shop.chain.values
    return keccak(values.chain_id.to_bytes(32) + values.token + payer + nonce)


async def order_only(shop: Shop, payment: dict[str, str]) -> ChargeOrder:
    assert (await ask(shop, payment)).status_code == 503
    found = await shop.orders.find(order_id(shop, payment))
    assert found is not None
    return found


async def stop_after_the_order(shop: Shop, payment: dict[str, str]) -> None:
    await order_only(shop, payment)


def stop_in_the_journal(
    before: tuple[type, ...] = (), after: tuple[type, ...] = ()
) -> Callable[[Shop, dict[str, str]], Awaitable[None]]:
    async def stop(shop: Shop, payment: dict[str, str]) -> None:
        order = await order_only(shop, payment)
        journal = FailingJournal(shop.journal, before=before, after=after)
        sender = TxManager(shop.chain.rpc, shop.provider.sender.signer, journal=journal)
        with suppress(LedgerUnavailableError):
            await sender.broadcast(shop.chain.values.token, order.calldata)

    return stop


async def stop_after_the_broadcast(shop: Shop, payment: dict[str, str]) -> None:
    """The transaction is in the pool; the order does not say so."""
    order = await order_only(shop, payment)
    sender = TxManager(shop.chain.rpc, shop.provider.sender.signer, journal=shop.journal)
    async with shop.chain.mining_paused():
        await sender.broadcast(shop.chain.values.token, order.calldata)


async def stop_after_the_block(shop: Shop, payment: dict[str, str]) -> None:
    """It is mined, and the journal knows; the order does not."""
    order = await order_only(shop, payment)
    sender = TxManager(shop.chain.rpc, shop.provider.sender.signer, journal=shop.journal)
    await sender.send(shop.chain.values.token, order.calldata)


async def stop_before_the_answer(shop: Shop, payment: dict[str, str]) -> None:
    """It is recorded as paid, and the worker dies before it sends the answer."""
    order = await order_only(shop, payment)
    async with shop.settler():
        await until(lambda: has_ended(shop))
    claim = await shop.orders.claim(
        replace(order, owner=b"a dead worker..."[:16], owned_until=int(shop.clock()) + LEASE_S),
        now=int(shop.clock()),
        is_private=True,
    )
    assert claim.is_owner
    assert claim.order.status is OrderStatus.MADE


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(stop_after_the_claim, id="claimed"),
        pytest.param(stop_after_the_order, id="ordered"),
        pytest.param(stop_in_the_journal(before=(Signed,)), id="intended"),
        pytest.param(stop_in_the_journal(after=(Signed,)), id="signed"),
        pytest.param(stop_in_the_journal(before=(Sent,)), id="broadcast, not recorded"),
        pytest.param(stop_after_the_broadcast, id="broadcast"),
        pytest.param(stop_after_the_block, id="mined"),
        pytest.param(stop_before_the_answer, id="paid"),
    ],
)
async def test_a_stop_at_any_step_is_paid_once_and_served(
    idle: Shop, stop: Callable[[Shop, dict[str, str]], Awaitable[None]]
) -> None:
    """F-74, F-75, F-80: the same payment is sent again, and gets its answer; 20 times each."""
    payer = Payer(idle)
    before = await idle.balance(payer.address)
    payments = [await payer.charge() for _ in range(TIMES)]
    for payment in payments:
        await stop(idle, payment)
    idle.clock.ahead_s += 2 * LEASE_S  # a dead worker owns nothing any more
    async with idle.settler():
        answers = [await ask(idle, payment) for payment in payments]
        await until(lambda: has_ended(idle))
    for payment, answer in zip(payments, answers, strict=True):
        if answer.status_code != 200:
            assert (await ask(idle, payment)).status_code == 200
    assert (await ask(idle, payments[0])).status_code == 402
    assert before - await idle.balance(payer.address) == TIMES * PRICE
    assert await idle.sent() == TIMES
    assert await idle.orders.list_credits() == []
