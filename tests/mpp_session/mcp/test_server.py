"""Tools, resources and prompts of an MCP server are served only when they are paid for."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import MCPError
from mcp.server.context import ServerRequestContext
from mcp_types import ReadResourceRequest, ReadResourceRequestParams

from channel.limits import FAILED_REQUESTS_MAX
from channel.wire.encoding import format_hex
from mpp_session.mcp.operations import list_operations
from mpp_session.mcp.wire import CREDENTIAL, RECEIPT, parse_challenge_object
from tests.mpp_session.mcp.shop import (
    ANY,
    PRICE,
    Shop,
    connected,
    open_shop,
    per_request,
    text,
)
from tests.waiting import until

MODES = ("auto", "legacy")
"""2026-07-28 and 2025-11-25."""


@pytest.fixture(params=MODES)
async def shop(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Shop]:
    """A shop under each revision of the protocol."""
    async with open_shop(tmp_path, request.param) as running:
        yield running


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Shop]:
    """A shop under the newer revision."""
    async with open_shop(tmp_path, MODES[0]) as running:
        yield running


def receipt(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = result.meta[RECEIPT]
    return found


async def test_a_call_without_a_credential_is_answered_by_a_challenge(shop: Shop) -> None:
    """MCP-01, MCP-02: plain JSON in `request`, and the status of HTTP beside it."""
    error = await shop.refusal()
    assert (error.code, error.message) == (-32042, "Payment Required")
    (challenge,) = error.data["challenges"]
    assert error.data["httpStatus"] == 402
    assert error.data["problem"]["type"].endswith("/payment-required")
    assert challenge["request"]["amount"] == str(PRICE)
    assert (challenge["method"], challenge["intent"]) == ("evm", "session")
    assert shop.served == 0


async def test_an_opening_runs_the_tool_and_its_result_carries_a_receipt(shop: Shop) -> None:
    """MCP-05, MCP-13"""
    result = await shop.open(PRICE)
    assert text(result) == "found x, 1"
    assert receipt(result) | {"timestamp": ""} == {
        "method": "evm",
        "intent": "session",
        "status": "success",
        "timestamp": "",
        "challengeId": receipt(result)["challengeId"],
        "reference": format_hex(shop.payer.key.channel_id),
        "channelId": format_hex(shop.payer.key.channel_id),
        "chainId": shop.payer.key.chain_id,
        "acceptedCumulative": str(PRICE),
        "spent": str(PRICE),
        "units": 1,
    }
    assert await shop.spent() == (PRICE, 0)


async def test_vouchers_buy_further_calls_on_the_same_channel(shop: Shop) -> None:
    await shop.open(PRICE)
    result = await shop.buy(shop.payer.voucher(2 * PRICE))
    assert receipt(result)["spent"] == str(2 * PRICE)
    assert shop.served == 2


async def test_a_top_up_and_a_close_run_nothing(shop: Shop) -> None:
    """MCP-13: their result is empty but for the receipt."""
    await shop.open(PRICE)
    more = await shop.buy(shop.payer.top_up(500))
    closed = await shop.buy(shop.payer.closing(PRICE))
    assert (more.content, closed.content, shop.served) == ([], [], 1)
    assert "txHash" in receipt(closed)
    books = await shop.provider.books()
    assert books.is_finalized or books.close_tx


async def test_a_credential_on_a_free_tool_is_ignored(shop: Shop) -> None:
    """MCP-04"""
    result = await shop.call("free", credential={"challenge": "nonsense"})
    assert text(result) == "free x"
    assert RECEIPT not in (result.meta or {})


async def test_an_errored_result_costs_nothing_and_has_no_receipt(shop: Shop) -> None:
    """MCP-05: neither a tool's error, nor an error that it raises, is sold."""
    await shop.open(PRICE)
    result = await shop.buy(shop.payer.voucher(2 * PRICE), name="broken")
    assert result.is_error
    assert RECEIPT not in (result.meta or {})
    error = await shop.refusal(
        "refuses", credential=await shop.answer(shop.payer.voucher(2 * PRICE), "refuses")
    )
    assert (error.code, error.message) == (-32001, "not x")
    assert shop.served == 3
    assert await shop.spent() == (PRICE, 0)


async def test_a_cancelled_call_gives_back_what_it_reserved(shop: Shop) -> None:
    await shop.open(PRICE)
    credential = await shop.answer(shop.payer.voucher(2 * PRICE), "slow")
    call = asyncio.create_task(shop.call("slow", credential=credential))
    await shop.is_slow.wait()
    assert await shop.spent() == (PRICE, PRICE)
    call.cancel()
    await asyncio.wait({call})

    async def is_given_back() -> bool:
        return await shop.spent() == (PRICE, 0)

    await until(is_given_back)


async def test_the_other_operations_are_sold_too(shop: Shop) -> None:
    """MCP-12: `resources/read` by URI or template, and `prompts/get`."""
    await shop.open(PRICE)
    paid = 1
    for ask in (
        lambda meta: shop.client.read_resource("data://premium/today", meta=meta),
        lambda meta: shop.client.read_resource("data://reports/may", meta=meta),
        lambda meta: shop.client.get_prompt("advice", meta=meta),
    ):
        with pytest.raises(MCPError) as refused:
            await ask(None)
        assert refused.value.code == -32042
        paid += 1
        challenge = refused.value.data["challenges"][0]
        result = await ask({CREDENTIAL: answer(shop, challenge, paid)})
        assert receipt(result)["spent"] == str(paid * PRICE)
    with pytest.raises(MCPError) as refused:
        await shop.client.read_resource("data://premium/today")
    closing: Any = {
        CREDENTIAL: answer(shop, refused.value.data["challenges"][0], paid, closes=True)
    }
    closed = await shop.client.read_resource("data://premium/today", meta=closing)
    assert (closed.contents, receipt(closed)["spent"]) == ([], str(paid * PRICE))


def answer(shop: Shop, challenge: Any, paid: int, *, closes: bool = False) -> Any:
    payload = (shop.payer.closing if closes else shop.payer.voucher)(paid * PRICE)
    return shop.credential(parse_challenge_object(challenge), payload)


async def test_escapes_in_a_uri_do_not_get_around_its_price(shop: Shop) -> None:
    for uri in ("data://pr%65mium/today", "data://premium/tod%2561y", "data://r%65ports/may"):
        request = ReadResourceRequest(params=ReadResourceRequestParams(uri=uri))
        with pytest.raises(MCPError) as refused:
            await shop.client.session.send_request(request, ANY)
        assert refused.value.code == -32602
    free = await shop.client.read_resource("data://public/m%61y")
    assert RECEIPT not in (free.meta or {})


async def test_a_metered_tool_pays_for_what_it_counts(shop: Shop) -> None:
    await shop.open(PRICE)
    result = await shop.buy(shop.payer.voucher(4 * PRICE), name="words", query="one two three")
    assert (text(result), receipt(result)["units"]) == ("ONE TWO THREE", 3)
    assert await shop.spent() == (4 * PRICE, 0)


async def test_a_metered_tool_without_cover_is_refused_with_the_voucher_it_needs(
    shop: Shop,
) -> None:
    """MCP-13: before it delivers anything."""
    await shop.open(PRICE)
    credential = await shop.answer(shop.payer.voucher(2 * PRICE), "words")
    error = await shop.refusal("words", credential=credential, query="one two three")
    assert error.code == -32043
    assert error.data["failure"]["reason"] == "session/insufficient-balance"
    assert error.data["problem"]["requiredCumulative"] == str(4 * PRICE)
    assert shop.served == 1
    assert await shop.spent() == (PRICE, 0)


async def test_a_repeat_of_a_key_gets_the_first_result_and_pays_once(shop: Shop) -> None:
    """MCP-14: under a key of our own, which the draft does not have."""
    await shop.open(PRICE)
    credential = await shop.answer(shop.payer.voucher(2 * PRICE))
    first = await shop.call("search", credential=credential, key="k1")
    again = await shop.call("search", credential=credential, key="k1")
    assert text(first) == text(again)
    assert receipt(again)["spent"] == str(2 * PRICE)
    assert shop.served == 2
    error = await shop.refusal("search", credential=credential, key="k1", query="y")
    assert (error.code, error.data["httpStatus"]) == (-32043, 422)
    assert error.data["challenges"]


async def test_a_replayed_credential_buys_nothing_more(shop: Shop) -> None:
    """MCP-09: a challenge is of several uses, a voucher of one."""
    await shop.open(PRICE)
    credential = await shop.answer(shop.payer.voucher(2 * PRICE))
    await shop.call("search", credential=credential)
    error = await shop.refusal("search", credential=credential)
    assert (error.code, error.data["failure"]["reason"]) == (-32043, "session/insufficient-balance")
    assert shop.served == 2


async def test_another_tools_challenge_buys_nothing(shop: Shop) -> None:
    """MCP-03: the operation is part of what the id covers."""
    await shop.open(PRICE)
    credential = await shop.answer(shop.payer.voucher(2 * PRICE), "other")
    error = await shop.refusal("search", credential=credential)
    assert (error.code, error.data["httpStatus"]) == (-32043, 402)
    assert error.data["failure"]["reason"] == "session/challenge-not-found"
    assert error.data["challenges"]
    assert shop.served == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("realm", "evil.example"), ("expires", "2099-01-01T00:00:00Z"), ("id", "AAAA")],
)
async def test_an_altered_challenge_buys_nothing(one: Shop, field: str, value: str) -> None:
    """MCP-03, MCP-09"""
    credential = await opened(one)
    credential["challenge"][field] = value
    error = await one.refusal("search", credential=credential)
    assert (error.code, one.served) == (-32043, 1)


async def test_an_altered_price_buys_nothing(one: Shop) -> None:
    """MCP-03: the id covers the canonical form of the request."""
    credential = await opened(one)
    credential["challenge"]["request"]["amount"] = "1"
    error = await one.refusal("search", credential=credential)
    assert (error.code, one.served) == (-32043, 1)


async def opened(shop: Shop) -> dict[str, Any]:
    await shop.open(PRICE)
    return await shop.answer(shop.payer.voucher(2 * PRICE))


async def test_an_expired_challenge_buys_nothing_and_is_replaced(one: Shop) -> None:
    """MCP-09"""
    credential = await opened(one)
    one.provider.clock.advance(24 * 3600)
    error = await one.refusal("search", credential=credential)
    assert (error.code, error.data["failure"]["reason"]) == (-32043, "payment-expired")
    assert error.data["challenges"][0]["id"] != credential["challenge"]["id"]


async def test_a_challenge_keeps_its_price_when_the_tool_becomes_dearer(one: Shop) -> None:
    credential = await opened(one)
    one.reprice(list_operations({"search": per_request(5 * PRICE)}, {}, {}, ()))
    await one.call("search", credential=credential)
    assert await one.spent() == (2 * PRICE, 0)
    assert (await one.refusal()).data["challenges"][0]["request"]["amount"] == str(5 * PRICE)


@pytest.mark.parametrize(
    "credential",
    [
        "text",
        {},
        {"challenge": "x", "payload": {}},
        {"challenge": {"request": "eyJ9"}, "payload": {}},
        {"challenge": {"id": "i", "request": {"amount": 1.5}}, "payload": {}},
        {"challenge": {"id": "i", "request": {}}, "payload": {"padding": "x" * 70_000}},
        {
            "challenge": {
                "id": "i",
                "realm": "r",
                "method": "evm",
                "intent": "session",
                "request": {},
            }
        },
    ],
)
async def test_a_malformed_credential_is_an_invalid_parameter(
    one: Shop, credential: object
) -> None:
    """MCP-06: also one that is larger than the bound (CORE-14)."""
    error = await one.refusal("search", credential=credential)
    assert (error.code, error.message) == (-32602, "Invalid params")
    assert error.data["detail"]
    assert one.served == 0


async def test_a_server_that_cannot_charge_is_an_internal_error(one: Shop) -> None:
    """MCP-06"""
    credential = await opened(one)
    one.is_paused = True
    error = await one.refusal("search", credential=credential)
    assert (error.code, error.data["httpStatus"]) == (-32603, 503)
    assert one.served == 1


async def never(_: ServerRequestContext[Any, Any]) -> None:
    pytest.fail("the tool runs")


def context(params: dict[str, Any], request_id: int | None) -> ServerRequestContext[Any, Any]:
    session: Any = None
    return ServerRequestContext(
        session=session,
        lifespan_context={},
        protocol_version="2026-07-28",
        method="tools/call",
        params=params,
        request_id=request_id,
    )


async def test_a_notification_of_a_priced_operation_runs_nothing(one: Shop) -> None:
    """MCP-08"""
    assert await one.paid(context({"name": "search"}, None), never) is None


async def test_a_priced_tool_does_not_run_as_a_task(one: Shop) -> None:
    """Its result would be fetched later, and unpaid."""
    with pytest.raises(MCPError, match="Invalid params"):
        await one.paid(context({"name": "search", "task": {"ttl": 1000}}, 7), never)


async def test_a_priced_tool_that_answers_without_content_is_an_error(one: Shop) -> None:
    """Such as a promise of a later result: nothing is charged, and nothing is handed out."""
    credential = await opened(one)

    async def promise(_: ServerRequestContext[Any, Any]) -> dict[str, Any]:
        return {"resultType": "later", "id": 1}

    params = {"name": "search", "_meta": {CREDENTIAL: credential}}
    with pytest.raises(MCPError, match="must answer with its content"):
        await one.paid(context(params, 7), promise)
    assert await one.spent() == (PRICE, 0)


async def test_a_round_that_asks_for_input_costs_nothing(one: Shop) -> None:
    credential = await opened(one)
    asked = {"resultType": "input_required", "inputRequests": {}}

    async def ask(_: ServerRequestContext[Any, Any]) -> dict[str, Any]:
        return asked

    params = {"name": "search", "_meta": {CREDENTIAL: credential}}
    assert await one.paid(context(params, 7), ask) == asked
    assert await one.spent() == (PRICE, 0)


async def test_the_server_advertises_the_method_and_intent(shop: Shop) -> None:
    """MCP-10: under `experimental`, in the answer of either handshake."""
    experimental = shop.client.server_capabilities.experimental
    assert experimental is not None
    assert experimental["payment"]["methods"]["evm"]["intents"] == ["session"]


async def test_calls_that_work_and_fail_are_bounded(one: Shop) -> None:
    """A tool may work for long before it fails, and that costs its caller nothing."""
    await one.open(PRICE)
    credential = await one.answer(one.payer.voucher(2 * PRICE), "broken")
    for _ in range(FAILED_REQUESTS_MAX):
        assert (await one.call("broken", credential=credential)).is_error
    error = await one.refusal("broken", credential=credential)
    assert (error.code, error.data["httpStatus"]) == (-32043, 429)
    assert error.data["retryAfter"] > 0
    assert error.data["challenges"]
    assert one.served == 1 + FAILED_REQUESTS_MAX


async def test_no_credential_is_in_a_log(one: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """MCP-11: neither one that buys, nor one that is refused."""
    caplog.set_level(logging.DEBUG)
    credential = await opened(one)
    await one.call("search", credential=credential)
    await one.refusal("search", credential=credential)
    await one.refusal("search", credential={**credential, "payload": {"signature": "0xdead"}})
    written = "".join(record.getMessage() for record in caplog.records)
    assert credential["payload"]["signature"] not in written
    assert "0xdead" not in written


async def test_a_credential_that_buys_nothing_runs_nothing(shop: Shop) -> None:
    """MCP-13: what HEAD is in HTTP, for clients that ask for it."""
    shop.payer.open_on_chain()
    result = await shop.buy(shop.payer.opening(PRICE), manages=True)
    assert (result.content, receipt(result)["acceptedCumulative"]) == ([], str(PRICE))
    assert await shop.spent() == (0, 0)
    assert (await shop.refusal("free", manages=True)).code == -32602
    assert (await shop.refusal("search", manages=True)).code == -32042
    assert shop.served == 0


async def test_a_result_that_was_charged_outlives_the_server(one: Shop) -> None:
    """MCP-14: the charge and the result are one transaction of the ledger."""
    credential = await opened(one)
    first = await one.call("search", credential=credential, key="k")
    after = Shop(one.provider)
    async with connected(after, "legacy"):
        again = await after.call("search", credential=credential, key="k")
    assert (text(again), after.served) == (text(first), 0)
    assert await one.spent() == (2 * PRICE, 0)
