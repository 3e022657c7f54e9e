"""A client pays servers that know the draft alone, and is robbed by none that lies."""

from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from mcp import MCPError, StdioServerParameters
from mcp_types import CONNECTION_CLOSED, CallToolResult

from channel.errors import (
    ConfigError,
    OfferRefusedError,
    PaymentOutcomeUnknownError,
    PaymentRefusedError,
    ReceiptViolationError,
)
from channel.methods.evm.payload import OpenHash
from channel.wire.encoding import encode_base64url
from channel.wire.payload import VoucherPayload
from mpp_session.mcp.client import server_url
from mpp_session.mcp.transport import CALL, Call, McpTransport
from mpp_session.mcp.wire import CREDENTIAL
from tests.channel.client.conftest import policy_of
from tests.mpp_session.mcp.foreign import Stranger, open_tools
from tests.mpp_session.mcp.shop import text

PRICE = 10


@pytest.fixture
def stranger() -> Stranger:
    return Stranger()


async def search(tools: Any, query: str = "why") -> str:
    return text(await tools.call_tool("search", {"query": query}))


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_an_opening_goes_with_the_call_that_it_pays_for(
    stranger: Stranger, tmp_path: Path, mode: str
) -> None:
    """MCP-13: a server that knows the draft alone would run a tool for it."""
    async with open_tools(stranger, tmp_path, mode=mode) as tools:
        assert [await search(tools), await search(tools)] == ["because", "because"]
        kinds = [type(seen.credential.payload) for seen in stranger.provider.paid]  # type: ignore[union-attr]
        assert kinds == [OpenHash, VoucherPayload]
        (closed,) = await tools.close()
        assert (closed.state, closed.settled, stranger.ran) == ("closed", 2 * PRICE, 2)
        assert await tools.close() == []


async def test_a_demand_as_an_errored_result_is_paid(stranger: Stranger, tmp_path: Path) -> None:
    """MCP-16"""
    stranger.demands_by_result = True
    async with open_tools(stranger, tmp_path) as tools:
        assert await search(tools) == "because"


@pytest.mark.parametrize(
    "capability", [{}, {"methods": ["evm"], "intents": ["session"]}, {"methods": {"evm": 1}}]
)
async def test_no_form_of_the_capability_is_relied_on(
    stranger: Stranger, tmp_path: Path, capability: dict[str, Any]
) -> None:
    """MCP-10, AMB-24: the lists of pympp, and nothing at all."""
    stranger.capability = capability
    async with open_tools(stranger, tmp_path) as tools:
        assert await search(tools) == "because"


async def test_of_several_challenges_the_one_that_can_be_paid_is(
    stranger: Stranger, tmp_path: Path
) -> None:
    """MCP-07: the others may be of another method, or unreadable."""
    foreign = {"id": "1", "realm": "r", "method": "tempo", "intent": "charge", "request": {}}
    stranger.extra_challenges = [foreign, "text", {"id": 1}, {**foreign, "request": {"a": [[]]}}]
    async with open_tools(stranger, tmp_path) as tools:
        assert await search(tools) == "because"


async def test_elicitation_is_not_a_demand(stranger: Stranger, tmp_path: Path) -> None:
    """MCP-15: MCP's own use of -32042."""
    async with open_tools(stranger, tmp_path) as tools:
        await search(tools)
        signed = (await tools.payments.channels())[0].signed
        elicitation = {"mode": "url", "elicitationId": "1", "url": "https://x", "message": "m"}
        stranger.fails = MCPError(-32042, "URL", {"elicitations": [elicitation]})
        with pytest.raises(MCPError) as raised:
            await search(tools)
        assert raised.value.data == {"elicitations": [elicitation]}
        assert await search(tools) == "because"
        assert (await tools.payments.channels())[0].signed == signed + PRICE


@pytest.mark.parametrize("code", [-32042, -32043])
async def test_an_error_without_challenges_is_the_callers(
    stranger: Stranger, tmp_path: Path, code: int
) -> None:
    stranger.extra_challenges = []
    stranger.provider.override = lambda _: stranger.provider.refuse(status=404)
    async with open_tools(stranger, tmp_path) as tools:
        stranger.fails = MCPError(code, "no", "words")
        with pytest.raises(MCPError):
            await search(tools)
        assert await tools.payments.channels() == []


async def test_a_failed_call_costs_nothing_and_its_voucher_pays_the_next(
    stranger: Stranger, tmp_path: Path
) -> None:
    async with open_tools(stranger, tmp_path) as tools:
        stranger.fails = MCPError(-32000 - 77, "the tool broke")
        with pytest.raises(MCPError, match="the tool broke"):
            await search(tools)
        assert await search(tools) == "because"
        (record,) = await tools.payments.channels()
        assert (record.signed, record.spent) == (PRICE, PRICE)


async def test_a_lost_answer_is_reported_and_its_key_used_again(
    stranger: Stranger, tmp_path: Path
) -> None:
    """MCP-14: nothing is sent twice by itself, and nothing is paid twice."""
    async with open_tools(stranger, tmp_path) as tools:
        await search(tools)
        stranger.loses = MCPError(CONNECTION_CLOSED, "gone")
        with pytest.raises(PaymentOutcomeUnknownError):
            await search(tools)
        assert await search(tools) == "because"
        (books,) = stranger.provider.books.values()
        assert (books.spent, stranger.ran) == (2 * PRICE, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"spent": 9_999, "accepted": 9_999},
        {"channel_id": b"\x01" * 32},
        {"challenge_id": "another"},
        {"chain_id": 1},
    ],
)
async def test_a_forged_receipt_stops_the_channel(
    stranger: Stranger, tmp_path: Path, change: dict[str, Any]
) -> None:
    stranger.provider.change_receipt = lambda fields: fields | change
    async with open_tools(stranger, tmp_path) as tools:
        with pytest.raises(ReceiptViolationError):
            await search(tools)


async def test_a_price_above_the_policy_is_refused_before_a_deposit(
    stranger: Stranger, tmp_path: Path
) -> None:
    stranger.provider.offer = {"unit_price": 51}
    async with open_tools(stranger, tmp_path) as tools:
        with pytest.raises(OfferRefusedError, match="51"):
            await search(tools)
    assert stranger.chain.deposited == []


async def test_a_price_that_rises_between_challenge_and_call_is_refused(
    stranger: Stranger, tmp_path: Path
) -> None:
    """F-95: also where the new price is within the policy."""
    lies = iter([True])

    def dearer(seen: Any) -> Any:
        if seen.credential is None or not next(lies, False):
            return None
        stranger.provider.offer = {"unit_price": 40}
        return stranger.provider.refuse("session/challenge-not-found")

    stranger.provider.override = dearer
    async with open_tools(stranger, tmp_path) as tools:
        with pytest.raises(OfferRefusedError):
            await search(tools)


async def test_a_server_that_refuses_each_payment_ends_it(
    stranger: Stranger, tmp_path: Path
) -> None:
    """The call is paid for and repeated once; a second demand ends it."""
    stranger.provider.override = lambda seen: (
        stranger.provider.refuse() if seen.credential else None
    )
    for stranger.has_problem in (True, False):
        async with open_tools(stranger, tmp_path) as tools:
            with pytest.raises(PaymentRefusedError):
                await search(tools)
    assert len(stranger.provider.paid) == 2


async def test_the_deposit_is_raised_before_it_is_used_up(
    stranger: Stranger, tmp_path: Path
) -> None:
    """MCP-13: a top-up runs nothing."""
    stranger.provider.offer = {"unit_price": 50, "suggested_deposit": 50}
    async with open_tools(stranger, tmp_path, policy=policy_of(expected_units=1)) as tools:
        for _ in range(5):
            assert await search(tools) == "because"
        (closed,) = await tools.close()
        assert (closed.settled, stranger.ran) == (250, 5)
        assert len(stranger.chain.deposited) > 1


async def test_a_restart_goes_on_with_the_channel(stranger: Stranger, tmp_path: Path) -> None:
    """Also one whose opening was never presented: it is on chain, and paid for."""
    async with open_tools(stranger, tmp_path) as tools:
        stranger.loses = MCPError(-32603, "crashed")
        with pytest.raises(MCPError):
            await search(tools)
    stranger.provider.books.clear()
    async with open_tools(stranger, tmp_path) as tools:
        assert await search(tools) == "because"
    assert len(stranger.chain.deposited) == 1


async def test_a_credential_of_another_intent_is_sent_as_it_is(
    stranger: Stranger, tmp_path: Path
) -> None:
    """A charge: the payer decides what it pays, and this carries it."""
    request = encode_base64url(b'{"amount":"5"}')
    challenge = {"id": "i", "realm": "r", "method": "evm", "intent": "charge", "request": request}
    credential = {"challenge": challenge, "payload": {"type": "authorization"}}
    field = "Payment " + encode_base64url(msgspec.json.encode(credential))
    sent: list[Any] = []

    async def send(meta: Any) -> CallToolResult:
        sent.append(meta)
        return CallToolResult(content=[])

    async with open_tools(stranger, tmp_path) as tools:
        asked = httpx.Request(
            "POST",
            "https://api.example/mcp/tools/call/search",
            headers={"Authorization": field},
            extensions={CALL: Call(send)},
        )
        answer = await McpTransport(tools.client, "https://api.example").handle_async_request(asked)
    assert answer.status_code == 200
    plain = {**credential, "challenge": {**challenge, "request": {"amount": "5"}}}
    assert sent == [{CREDENTIAL: plain}]


def test_a_server_has_a_name_in_the_books() -> None:
    one, two = (
        server_url(StdioServerParameters(command="npx", args=[name])) for name in ("one", "two")
    )
    assert one != two
    assert one.endswith(".stdio.invalid")
    assert server_url("https://a.example/mcp") == "https://a.example/mcp"
    with pytest.raises(ConfigError, match="give `server`"):
        server_url(object())
