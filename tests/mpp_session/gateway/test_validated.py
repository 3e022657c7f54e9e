"""`mpp-session validate` finds no fault in a gateway, and pays it for a stream."""

from collections.abc import AsyncIterator

import msgspec

from mpp_session.operator.doctor import Verdict
from mpp_session.operator.validate import Examined, Subject, examine_server
from mpp_session.operator.validate_paid import examine_paid
from mpp_session.testing import TestChain
from tests.mpp_session.gateway.conftest import OpenAgent, RunGateway, Running

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "stream": True}


def subject_of(gateway: Running) -> Subject:
    return Subject(url=gateway.completions, method="POST", content=msgspec.json.encode(BODY))


async def by_name(checks: AsyncIterator[Examined]) -> dict[str, Examined]:
    return {check.name: check async for check in checks}


async def test_a_gateway_passes_whole(
    run_gateway: RunGateway, open_agent: OpenAgent, devnet: TestChain
) -> None:
    """Without payment, and with one request paid, repeated, closed and refunded on chain."""
    async with run_gateway() as gateway:
        subject = subject_of(gateway)
        checks = await by_name(examine_server(subject))
        assert {name: one.found for name, one in checks.items() if one.remedy} == {}
        skipped = {name for name, one in checks.items() if one.verdict is Verdict.SKIPPED}
        assert skipped == {"x402", "CORS"}
        async with open_agent() as agent:
            paid = await by_name(examine_paid(subject, agent, rpc_url=devnet.values.rpc_url))
        assert {name: one.found for name, one in paid.items() if one.remedy} == {}
        assert {one.verdict for one in paid.values()} == {Verdict.OK}
        channel = await gateway.channel()
        assert channel.is_finalized
        assert paid["payment"].found.startswith(f"{channel.spent} base units")
