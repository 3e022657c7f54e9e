"""kill -9 of an agent without ether, at every request it makes: one purpose, one deposit."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from channel.types import ChannelId
from mpp_session.testing import TestChain
from settlement import abi
from settlement.dev.devnet import GASLESS, Devnet
from settlement.escrow.reader import EscrowReader
from tests.e2e.provider import TOKEN_PRICE, open_shop, sponsored
from tests.e2e.test_gasless_agent import balances, sent

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).parents[2]
KILLS = 5
"""Before each of the first five requests of a run is sent, and after each is answered."""

PROGRAM = """
import asyncio, json, os, signal, sys
from pathlib import Path
import httpx
from mpp_session.agent.client import open_client
from mpp_session.devnet_file import read_devnet
from settlement.dev.devnet import GASLESS
from tests.e2e.test_gasless_agent import CHAT, policy_of

folder, url, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
values = read_devnet(folder / "devnet.json")
real, seen = httpx.AsyncHTTPTransport.handle_async_request, [0]


def dies(when, at):
    async def handle(self, request):
        seen[0] += 1
        if (when, at) == ("before", seen[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        response = await real(self, request)
        if (when, at) == ("after", seen[0]):
            os.kill(os.getpid(), signal.SIGKILL)
        return response
    httpx.AsyncHTTPTransport.handle_async_request = handle


async def run(name, is_last):
    async with open_client(
        rpc_url=values.rpc_url,
        private_key=values.accounts[GASLESS].private_key,
        policy=policy_of(values, expected_units=150, lost_units_max=10_000),
        store=folder / f"{name}.db",
        base_url=url,
    ) as client:
        async with client.stream("POST", CHAT, json={"stream": True}) as response:
            assert response.status_code == 200, await response.aread()
            await response.aread()
        if is_last:
            await client.payments.close()


def child(name, when, at, is_last):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    dies(when, at)
    try:
        asyncio.run(run(name, is_last))
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)


ends = []
for at in range(1, kills + 1):
    for when in ("before", "after"):
        name = f"{when}-{at}"
        ends.append((child(name, when, at, False), child(name, "never", 0, True)))
print(json.dumps(ends))
"""


async def test_an_agent_killed_at_any_request_deposits_once_and_goes_on(
    devnet: TestChain, tmp_path: Path
) -> None:
    """F-75, CLIENT-05: every deposit is by a signature of its own, and all of it ends."""
    await asyncio.to_thread(devnet.values.write, tmp_path / "devnet.json")
    async with (
        devnet.connect() as chain,
        sponsored(chain, tmp_path) as sponsoring,
        open_shop(chain, tmp_path, tokens=250, sponsoring=sponsoring) as shop,
    ):
        before, first = await balances(chain), await chain.rpc.block_number()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, str(tmp_path), shop.url, str(KILLS)),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        ends = json.loads(output)
        assert [again for _, again in ends] == [0] * len(ends)
        assert sum(end == -9 for end, _ in ends) >= len(ends) - 2  # some make fewer requests
        opened, deposits = await _deposits(chain, first)
        assert len(opened) == 2 * KILLS  # killed or not, a client opens one channel
        assert len(deposits) == len(set(deposits))
        reader = EscrowReader(chain.rpc, chain.values.escrow)
        facts = [await reader.read_channel(channel_id) for channel_id in opened]
        assert all(fact is not None and fact.is_finalized for fact in facts)
        settled = sum(fact.settled for fact in facts if fact is not None)
        assert settled >= 2 * KILLS * 250 * TOKEN_PRICE
        after = await balances(chain)
        assert [b - a for a, b in zip(before, after, strict=True)] == [-settled, settled, 0]
        assert await sent(chain, GASLESS) == 0


async def _deposits(chain: Devnet, after_block: int) -> tuple[list[ChannelId], list[bytes]]:
    """Return the channels that were opened, and the nonce of each deposit that was mined."""
    payee = chain.account("payee").address
    head = await chain.rpc.block_number()
    reader = EscrowReader(chain.rpc, chain.values.escrow)
    opened = await reader.find_channels(payee, from_block=after_block + 1, to_block=head)
    logs = await chain.rpc.logs(
        chain.values.token,
        [abi.AUTHORIZATION_USED_TOPIC],
        from_block=after_block + 1,
        to_block=head,
    )
    return opened, [log.topics[2] for log in logs]
