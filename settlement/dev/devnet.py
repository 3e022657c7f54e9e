"""A local chain with everything deployed: Anvil, escrow, dollar, Permit2, funded accounts.

    async with Devnet.start() as devnet:
        devnet.values.escrow, devnet.account("payer").private_key, devnet.rpc

For development and tests only: the keys are derived from the accounts' names, and so public.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import msgspec
from eth_abi.abi import encode

from channel.types import Address
from channel.verify.signature import address_of
from channel.verify.typed_data import keccak
from settlement import abi
from settlement.addresses import PERMIT2
from settlement.artifacts import ContractName, load_artifact
from settlement.dev.anvil import Anvil, find_anvil
from settlement.dev.deploy import SenderNode, deploy_escrow
from settlement.dev.npm import Progress
from settlement.dev.usdc import deploy_usdc, mint
from settlement.errors import AnvilError
from settlement.node.rpc import Rpc
from settlement.tx.manager import TxManager
from settlement.tx.signer import KeySigner

__all__ = [
    "ACCOUNTS",
    "GASLESS",
    "MULTICALL3",
    "DevAccount",
    "Devnet",
    "DevnetValues",
    "TokenChoice",
]

TokenChoice = Literal["dusd", "usdc"]

MULTICALL3: Final = Address(bytes.fromhex("ca11bde05977b3631167028862be2a173976ca11"))

ACCOUNTS: Final = ("payer", "payee", "stranger")
"""Accounts that always exist, beside `deployer`, who owns the token."""

GASLESS: Final = "agent"
"""An account with tokens but no ether: it can sign, and cannot send."""

_ETHER: Final = 10**18
_ETHER_EACH: Final = 10_000
_DECIMALS: Final = 6
_DOLLARS_EACH: Final = 1_000_000
_CHAIN_ID: Final = 31337


class DevAccount(msgspec.Struct, frozen=True):
    """An account whose key is public, because it is derived from its name."""

    address: Address
    private_key: bytes


class DevnetValues(msgspec.Struct, frozen=True):
    """Addresses and keys of a devnet."""

    rpc_url: str
    chain_id: int
    escrow: Address
    factory: Address
    token: Address
    token_symbol: str
    token_decimals: int
    permit2: Address
    multicall3: Address
    accounts: dict[str, DevAccount]

    def to_json(self) -> bytes:
        """Return indented JSON: the same names, bytes as 0x-prefixed hexadecimal."""
        return msgspec.json.format(msgspec.json.encode(_plain(self)), indent=2) + b"\n"

    def write(self, path: Path) -> None:
        """Write the JSON for its owner alone (mode 0600), atomically."""
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.to_json())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


class Devnet:
    """A running devnet. `rpc` is connected to its chain; `deployer` owns the token."""

    def __init__(self, rpc: Rpc, values: DevnetValues) -> None:
        self.rpc = rpc
        self.values = values
        self.deployer = self.sender("deployer")

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        *,
        token: TokenChoice = "dusd",  # noqa: S107 -- a token of value
        port: int = 0,
        block_time_s: int | None = None,
        anvil_arguments: Sequence[str] = (),
        progress: Progress = lambda _: None,
    ) -> AsyncIterator[Self]:
        """Start a chain, deploy everything, and end the chain with the context.

        Blocks are mined on demand unless `block_time_s` is given.

        Raises:
            AnvilError: Anvil or the token's package is not available, or the chain does not start.
        """
        await asyncio.to_thread(_read_artifacts)
        program = await find_anvil(progress=progress)
        arguments = ["--chain-id", str(_CHAIN_ID), "--accounts", "1", *anvil_arguments]
        singletons = await _singletons(program)
        async with (
            await Anvil.start(program, arguments, port=port) as anvil,
            await Rpc.connect(anvil.url, chain_id=_CHAIN_ID) as rpc,
        ):
            progress("Deploying the escrow and the token")
            values = await _deploy(rpc, anvil.url, token, singletons, progress)
            if block_time_s is not None:
                await rpc.command("evm_setAutomine", False)  # noqa: FBT003 -- the wire's own
                await rpc.command("evm_setIntervalMining", block_time_s)
            yield cls(rpc, values)

    def account(self, name: str) -> DevAccount:
        """Return an account by name. Any name has a key; those in `values.accounts` have funds."""
        return _account(name)

    def sender(self, name: str) -> TxManager:
        """Return a new transaction manager for an account. Use one per account at a time."""
        return TxManager(self.rpc, self.signer(name))

    def signer(self, name: str) -> KeySigner:
        """Return an account as a signer of transactions."""
        return KeySigner(self.account(name).private_key)

    async def fund(self, address: Address, *, ether: int = 0, amount: int = 0) -> None:
        """Set an account's ether, and mint `amount` base units of the token to it."""
        if ether:
            await _set_ether(self.rpc, address, ether)
        if amount:
            await mint(self.deployer, self.values.token, address, amount)

    async def token_balance(self, address: Address) -> int:
        """Return an account's tokens in base units."""
        answer = await self.rpc.call(self.values.token, abi.balance_of.encode(address))
        return abi.balance_of.decode_int(answer)

    async def mine(self, blocks: int = 1) -> None:
        """Mine empty blocks."""
        await self.rpc.command("anvil_mine", hex(blocks))

    @contextlib.asynccontextmanager
    async def mining_paused(self) -> AsyncIterator[None]:
        """Mine no transaction within the context, except by `mine`."""
        await self.rpc.command("evm_setAutomine", False)  # noqa: FBT003 -- the wire's own
        try:
            yield
        finally:
            await self.rpc.command("evm_setAutomine", True)  # noqa: FBT003
            await self.mine()

    async def advance(self, seconds: int) -> None:
        """Mine one block with a timestamp that many seconds after the head's."""
        head = await self.rpc.block()
        after = head.timestamp + seconds
        # After a `revert` the clock may be ahead of it, and Anvil refuses to go back.
        await self.rpc.command("evm_setTime", after)
        await self.rpc.command("evm_setNextBlockTimestamp", after)
        await self.mine()

    async def snapshot(self) -> str:
        """Save the chain's state; the id is valid for one `revert`."""
        return str(await self.rpc.command("evm_snapshot"))

    async def revert(self, snapshot_id: str) -> None:
        """Go back to a snapshot, nonces included. Managers made before it are unusable.

        The next block has the wall clock's time, or follows the snapshot's if that is later.
        """
        if await self.rpc.command("evm_revert", snapshot_id) is not True:
            msg = f"The chain does not know snapshot {snapshot_id}."
            raise AnvilError(msg)
        head = await self.rpc.block()  # Anvil continues from its previous base fee
        await self.rpc.command("anvil_setNextBlockBaseFeePerGas", hex(head.base_fee_wei or 0))
        # Anvil continues from the snapshot's time: the chain would lag by all time since.
        await self.rpc.command("evm_setTime", max(head.timestamp + 1, int(time.time())))
        self.deployer = self.sender("deployer")


async def _deploy(
    rpc: Rpc, url: str, choice: TokenChoice, singletons: dict[Address, str], progress: Progress
) -> DevnetValues:
    # Two chains started in the same second would have identical blocks, to the last hash.
    await _set_ether(rpc, Address(os.urandom(20)), 1)
    for address, code in singletons.items():
        await rpc.command("anvil_setCode", _hex(address), code)
    accounts = {name: _account(name) for name in ("deployer", *ACCOUNTS, GASLESS)}
    for name in ("deployer", *ACCOUNTS):
        await _set_ether(rpc, accounts[name].address, _ETHER_EACH)
    deployer = TxManager(rpc, KeySigner(_account("deployer").private_key))
    if choice == "usdc":
        token, symbol = await deploy_usdc(deployer, progress=progress), "USDC"
    else:
        token, symbol = await _deploy_dusd(deployer), "dUSD"
    deployment = await deploy_escrow(SenderNode(deployer), token)
    for name in (*ACCOUNTS, GASLESS):
        amount = _DOLLARS_EACH * 10**_DECIMALS
        await mint(deployer, token, accounts[name].address, amount)
    return DevnetValues(
        rpc_url=url,
        chain_id=rpc.chain_id,
        escrow=deployment.escrow,
        factory=deployment.factory,
        token=token,
        token_symbol=symbol,
        token_decimals=_DECIMALS,
        permit2=PERMIT2,
        multicall3=MULTICALL3,
        accounts=accounts,
    )


async def _deploy_dusd(deployer: TxManager) -> Address:
    init_code = load_artifact("DevUSD").bytecode + encode(["address"], [deployer.address])
    receipt = await deployer.send(None, init_code)
    if receipt.contract is None:
        msg = "The deployment of the token created no contract."
        raise AnvilError(msg)
    return receipt.contract


async def _singletons(program: Path) -> dict[Address, str]:
    """Read the code of contracts that every public chain has and plain Anvil lacks.

    Anvil contains them for its Tempo mode: one is started briefly and read. Permit2 computes its
    domain from the running chain, so its code works on any chain.
    """
    async with (
        await Anvil.start(program, ["--network", "tempo"]) as tempo,
        await Rpc.connect(tempo.url) as rpc,
    ):
        codes = {address: await rpc.code(address) for address in (PERMIT2, MULTICALL3)}
    if not all(codes.values()):
        msg = "This Anvil does not carry Permit2 and Multicall3."
        raise AnvilError(msg)
    return {address: _hex(code) for address, code in codes.items()}


async def _set_ether(rpc: Rpc, address: Address, ether: int) -> None:
    await rpc.command("anvil_setBalance", _hex(address), hex(ether * _ETHER))


def _read_artifacts() -> None:
    """Load the artifacts here, in a thread; they stay cached."""
    for name in get_args(ContractName):
        load_artifact(name)


@cache
def _account(name: str) -> DevAccount:
    private_key = keccak(f"mpp-session devnet account: {name}".encode())
    return DevAccount(address=address_of(private_key), private_key=private_key)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return _hex(value)
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, msgspec.Struct):
        return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
    return value


def _hex(value: bytes) -> str:
    return "0x" + value.hex()
