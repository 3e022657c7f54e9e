"""A provider that sells by method `tempo`, on Anvil's Tempo mode, with a stand-in of its escrow."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route as Endpoint

from channel.engine import Engine, EngineSettings
from channel.http import PaidEventStream, PaymentGate, Price, Route
from channel.ledger.sqlite import SqliteLedger
from channel.methods.tempo.method import TEMPO
from channel.types import Address
from channel.verify.challenge_id import ChallengeBinder
from mpp_session.testing.settling import open_sender, settle_closes
from settlement import abi
from settlement.dev.anvil import Anvil, find_anvil
from settlement.escrow.reader import EscrowReader
from settlement.node.rpc import Rpc
from settlement.settle.settler import EscrowSettler
from settlement.tx.signer import KeySigner
from solidity import compile_contracts
from tests.mpp_session.serving import serve
from tests.waiting import until

__all__ = ["PATH_USD", "PAYEE", "PAYER_KEY", "TempoProvider", "open_tempo"]

PATH_USD: Final = Address(bytes.fromhex("20c0" + "00" * 18))
"""The token that Anvil's Tempo mode deploys, with a balance for each of its accounts."""
PAYER_KEY: Final = bytes.fromhex("59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d")
PAYEE: Final = KeySigner(
    bytes.fromhex("5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a")
)
"""Two of Anvil's accounts."""
_SOURCE: Final = "test/tempo/StreamChannelStandIn.sol"
_NAME: Final = "StreamChannelStandIn"
_PRICE: Final = Price(unit_price=100, unit_type="request")
_WORD_PRICE: Final = Price(unit_price=10, unit_type="word")
_WORDS: Final = 40


class TempoProvider:
    """The provider, and what its chain shows."""

    def __init__(
        self, chain_url: str, url: str, reader: EscrowReader, ledger: SqliteLedger
    ) -> None:
        self.chain_url = chain_url
        self.url = url
        self.reader = reader
        self.ledger = ledger

    async def balance(self, account: Address) -> int:
        """Return an account's PathUSD, in base units."""
        answer = await self.reader.rpc.call(PATH_USD, abi.balance_of.encode(account))
        return abi.balance_of.decode_int(answer)


@asynccontextmanager
async def open_tempo(folder: Path) -> AsyncIterator[TempoProvider]:
    """Start the chain, deploy the stand-in, and serve `/joke`, `/words` and `/long`."""
    async with (
        await Anvil.start(await find_anvil(), ["--network", "tempo", "--hardfork", "T4"]) as anvil,
        await Rpc.connect(anvil.url) as rpc,
    ):
        reader = EscrowReader(rpc, await _deploy(rpc), interface=TEMPO.escrow)
        await reader.require_deployment(token=PATH_USD)
        ledger = await SqliteLedger.open(folder / "ledger.db", exclusive=True)
        async with open_sender(rpc, PAYEE, folder) as (sender, _):
            settler = EscrowSettler(reader, sender)
            async with settle_closes(reader, ledger, settler, PAYEE.address):
                engine = Engine(
                    ledger=ledger,
                    chain=reader,
                    broadcaster=reader,
                    binder=ChallengeBinder([secrets.token_bytes(32)]),
                    settings=EngineSettings(
                        realm="tempo",
                        payee=PAYEE.address,
                        token=PATH_USD,
                        method=TEMPO,
                        vouchers_per_second=1000,  # mppx sends one for each word
                    ),
                )
                async with serve(_sell(engine)) as url:
                    yield TempoProvider(anvil.url, url, reader, ledger)
                await engine.aclose()
        await ledger.close()


async def _deploy(rpc: Rpc) -> Address:
    """Deploy the stand-in from one of Anvil's accounts."""
    outputs = await asyncio.to_thread(compile_contracts, [_SOURCE])
    code = "0x" + outputs[_NAME]["evm"]["bytecode"]["object"]
    deployer: Any = (await rpc.command("eth_accounts"))[0]
    tx_hash = await rpc.command(
        "eth_sendTransaction", {"from": deployer, "data": code, "gas": hex(28_000_000)}
    )
    await until(lambda: rpc.command("eth_getTransactionReceipt", tx_hash))
    receipt = await rpc.command("eth_getTransactionReceipt", tx_hash)
    return Address(bytes.fromhex(receipt["contractAddress"][2:]))


def _sell(engine: Engine) -> PaymentGate:
    app = Starlette(routes=[Endpoint("/joke", _joke), Endpoint("/words", _words)])
    routes = [
        Route(method="GET", path="/joke", price=_PRICE),
        Route(
            method="GET", path="/words", price=Price(unit_price=10, unit_type="word"), metered=True
        ),
    ]
    return PaymentGate(app, engine=engine, routes=routes)


async def _joke(_: Request) -> Response:
    return PlainTextResponse("a joke")


async def _words(_: Request) -> Response:
    return PaidEventStream(_say())


async def _say() -> AsyncIterator[str]:
    for number in range(_WORDS):
        yield f"word {number}"
