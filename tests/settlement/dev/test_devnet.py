"""The devnet has everything a payment needs, fast, and can be handed over as one file."""

import asyncio
import signal
import stat
import sys
import time
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import msgspec
import pytest
from eth_abi.abi import encode

from channel.errors import ChainUnavailableError
from channel.types import Address
from channel.verify.typed_data import keccak
from settlement import abi
from settlement.addresses import PERMIT2, escrow_address, factory_address
from settlement.dev.devnet import ACCOUNTS, GASLESS, MULTICALL3, Devnet, DevnetValues, TokenChoice
from settlement.errors import AnvilError
from settlement.node.rpc import Rpc, RpcLimits
from tests.waiting import until, within

_DOMAIN_SEPARATOR = abi.Function("DOMAIN_SEPARATOR()", ["bytes32"])
_PERMIT2_DOMAIN = keccak(b"EIP712Domain(string name,uint256 chainId,address verifyingContract)")
_RECEIVE = bytes.fromhex("88b7ab63")  # receiveWithAuthorization, the overload with bytes


@pytest.mark.parametrize("token", ["dusd", "usdc"])
async def test_everything_is_deployed_and_funded(token: TokenChoice) -> None:
    async with Devnet.start(token=token) as devnet:
        values = devnet.values
        assert values.factory == factory_address()
        assert values.escrow == escrow_address(values.token)
        for address in (values.escrow, values.factory, PERMIT2, MULTICALL3):
            assert await devnet.rpc.code(address)
        for name in ACCOUNTS:
            account = devnet.account(name)
            assert await devnet.token_balance(account.address) == 1_000_000 * 10**6
            assert await devnet.rpc.balance_wei(account.address) > 0
        agent = devnet.account(GASLESS).address
        assert values.accounts[GASLESS].address == agent
        assert await devnet.token_balance(agent) == 1_000_000 * 10**6
        assert await devnet.rpc.balance_wei(agent) == 0
        assert _RECEIVE in await devnet.rpc.code(values.token)


async def test_permit2_signs_for_this_chain() -> None:
    """Its code was taken from a chain with another id: the domain must be computed anew."""
    async with Devnet.start() as devnet:
        answer = await devnet.rpc.call(PERMIT2, _DOMAIN_SEPARATOR.encode())
        types = ["bytes32", "bytes32", "uint256", "address"]
        domain = [_PERMIT2_DOMAIN, keccak(b"Permit2"), devnet.values.chain_id, PERMIT2]
        assert answer == keccak(encode(types, domain))


async def test_a_warm_start_takes_less_than_a_second_and_a_half() -> None:
    """The best of several: the machine has something else to do now and then."""
    in_time = 0
    for _ in range(8):
        with suppress(TimeoutError):
            async with AsyncExitStack() as running:
                async with within(1.5):
                    await running.enter_async_context(Devnet.start())
                in_time += 1
        if in_time:
            break
    assert in_time


def test_the_file_is_whole_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "devnet.json"
    values = asyncio.run(_start_and_stop())
    values.write(path)
    values.write(path)
    written = msgspec.json.decode(path.read_bytes())
    assert written["escrow"] == "0x" + values.escrow.hex()
    assert written["accounts"]["payer"]["private_key"].startswith("0x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


async def test_a_snapshot_goes_back_once() -> None:
    async with Devnet.start() as devnet:
        stranger = devnet.account("stranger").address
        before = await devnet.token_balance(stranger)
        snapshot = await devnet.snapshot()
        await devnet.fund(stranger, amount=5)
        assert await devnet.token_balance(stranger) == before + 5
        await devnet.revert(snapshot)
        assert await devnet.token_balance(stranger) == before
        await devnet.fund(stranger, amount=7)
        assert await devnet.token_balance(stranger) == before + 7
        with pytest.raises(AnvilError, match="does not know snapshot"):
            await devnet.revert(snapshot)


async def test_a_chain_that_goes_back_does_not_fall_behind() -> None:
    """Else a provider in a long test run finds its clock ahead of the chain's, and alarms ring."""
    async with Devnet.start() as devnet:
        head = await devnet.rpc.block()
        snapshot = await devnet.snapshot()
        await devnet.advance(5000)
        await until(lambda: time.time() >= head.timestamp + 2)
        await devnet.revert(snapshot)
        before = int(time.time())
        await devnet.mine()
        assert before <= (await devnet.rpc.block()).timestamp <= time.time() + 1


async def test_a_snapshot_of_the_future_stays_there() -> None:
    async with Devnet.start() as devnet:
        await devnet.advance(5000)
        head = await devnet.rpc.block()
        snapshot = await devnet.snapshot()
        await devnet.advance(1000)
        await devnet.revert(snapshot)
        await devnet.mine()
        assert 0 < (await devnet.rpc.block()).timestamp - head.timestamp < 1000


async def test_time_is_moved_by_blocks_not_by_the_clock() -> None:
    """F-113: the wall clock has no say."""
    async with Devnet.start() as devnet:
        before = await devnet.rpc.block()
        await devnet.advance(1000)
        after = await devnet.rpc.block()
        assert (after.number, after.timestamp) == (before.number + 1, before.timestamp + 1000)


async def test_blocks_come_by_the_clock_when_asked() -> None:
    async with Devnet.start(block_time_s=60) as devnet:
        before = await devnet.rpc.block_number()
        tx_hash = await devnet.deployer.broadcast(devnet.account("payee").address, b"")
        assert await devnet.rpc.receipt(tx_hash) is None
        await devnet.mine()
        assert (await devnet.deployer.resume(tx_hash)).block_number == before + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_as_a_process_it_ends_with_its_chain(number: signal.Signals, tmp_path: Path) -> None:
    """Asked to stop, it stops in order; killed, its chain still does not outlive it."""
    out = tmp_path / "devnet.json"
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "mpp_session.cli", "devnet", "--port", "0", "--json"],
        *["--out", str(out)],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert process.stdout is not None
    said = b""
    while not said.rstrip().endswith(b"}\n}"):
        said += await process.stdout.readline()
    url = msgspec.json.decode(said)["rpc_url"]
    process.send_signal(number)
    assert await process.wait() == (-number if number == signal.SIGKILL else 0)
    assert await asyncio.to_thread(out.exists) == (number == signal.SIGKILL)
    for _ in range(1000):
        try:
            async with await Rpc.connect(url, limits=RpcLimits(read_attempts_max=1)):
                await asyncio.sleep(0.02)
        except ChainUnavailableError:
            return
    pytest.fail("the chain outlived its devnet")


async def test_an_anvil_without_the_singletons_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("settlement.dev.devnet.MULTICALL3", Address(b"\x01" * 20))
    with pytest.raises(AnvilError, match="does not carry Permit2"):
        async with Devnet.start():
            pass


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    values = asyncio.run(_start_and_stop())
    with pytest.raises(OSError, match="taken"):
        values.write(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("token", ["usdc"])
async def test_a_package_without_usdc_is_refused(
    token: TokenChoice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def empty(*_: object, **__: object) -> Path:
        return tmp_path

    monkeypatch.setattr("settlement.dev.usdc.npm_package", empty)
    with pytest.raises(AnvilError, match="no usable SignatureChecker"):
        async with Devnet.start(token=token):
            pass


async def _start_and_stop() -> DevnetValues:
    async with Devnet.start() as devnet:
        return devnet.values
