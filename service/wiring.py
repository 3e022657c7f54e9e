"""Builds every object of a provider, once, and closes them in order.

What would lose money later is checked here, before anything listens (decision 15): the node's
chain, the escrow's code, signing domain, token and grace period (OPEN-09), that the key is the
payee's (F-81), and that the ledger is durable. Each check raises `ConfigError`.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import msgspec

from channel.engine import Engine, EngineSettings
from channel.errors import LedgerUnavailableError
from channel.ledger.interface import Ledger
from channel.ledger.url import open_ledger
from channel.types import Address, address
from channel.verify.challenge_id import ChallengeBinder
from service.chain_watch import build_gate, build_watcher, rpc_urls
from service.keys import load_payee
from service.settings import Config, ProviderConfig
from settlement.escrow import EscrowReader
from settlement.exposure import ExposureGate
from settlement.rpc import Rpc, RpcLimits
from settlement.settler import EscrowSettler
from settlement.signer import KeySigner
from settlement.tx_manager import TxLimits, TxManager
from settlement.watcher import ChannelWatcher

__all__ = ["Parts", "build_parts", "parse_address"]

_log: Final = logging.getLogger(__name__)

_PRUNE_INTERVAL_S: Final = 600.0


class Parts(msgspec.Struct, frozen=True):
    """The objects of one provider: a gateway, or an application of its own."""

    config: ProviderConfig
    ledger: Ledger
    reader: EscrowReader
    settler: EscrowSettler
    engine: Engine
    watcher: ChannelWatcher
    is_first: bool = True
    """Whether this process does what one of several workers must do: settle, close, sweep."""

    def background(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """Return the tasks that must run as long as the gateway serves, by name.

        None of them ends by itself: whoever runs them stops serving when one does.
        """
        watching = {"watching the chain": self.watcher.run()}
        if not self.is_first:
            return watching
        lease_s = self.config.payment.reservation_lease_s
        return {
            **watching,
            "ending expired reservations": _expire_reservations(self.ledger, lease_s / 4),
            "pruning the ledger": _prune(self.ledger),
        }


@asynccontextmanager
async def build_parts(config: ProviderConfig, *, is_first: bool = True) -> AsyncIterator[Parts]:
    """Build, check and connect; on leaving, finish what must be finished and close.

    Of several workers that share the books, one is the first: it settles, closes and sweeps for
    all. The others watch the chain to serve by it, and change nothing there by themselves.

    Raises:
        ConfigError: A check failed; nothing was served.
        ChainUnavailableError: The node does not answer.
        LedgerUnavailableError: The ledger cannot be opened.
    """
    async with AsyncExitStack() as open_:
        payee = await asyncio.to_thread(load_payee, config.payee)
        ledger = await open_ledger(config.ledger.url, exclusive=True)
        open_.push_async_callback(ledger.close)
        rpc = await open_.enter_async_context(
            await Rpc.connect(
                rpc_urls(config.chain),
                chain_id=config.chain.id,
                limits=RpcLimits(timeout_s=config.chain.rpc_timeout_s),
            )
        )
        token = parse_address(config.chain.token)
        reader = EscrowReader(rpc, parse_address(config.chain.escrow))
        await reader.require_deployment(token=token)
        sender = TxManager(
            rpc,
            KeySigner(bytes(payee.key)),
            limits=TxLimits(mined_within_s=config.settlement.close_timeout_s),
        )
        settler = EscrowSettler(reader, sender)
        settler.require_payee(parse_address(config.payee.address))
        open_.push_async_callback(settler.drain)
        if config.ledger.url.startswith("sqlite:"):
            # We are the only gateway of these books: whatever is still held, its owner is dead.
            await ledger.end_all_reservations()
        gate = build_gate(config)
        engine = _build_engine(config, ledger, reader, settler, token=token, gate=gate)
        open_.push_async_callback(engine.aclose)
        watcher = build_watcher(
            config,
            reader,
            ledger,
            settler if is_first else None,
            payee=settler.payee,
            gate=gate,
            unit_price=config.price.per_unit if isinstance(config, Config) else 1,
        )
        yield Parts(config, ledger, reader, settler, engine, watcher, is_first)


def _build_engine(
    config: ProviderConfig,
    ledger: Ledger,
    reader: EscrowReader,
    settler: EscrowSettler,
    *,
    token: Address,
    gate: ExposureGate,
) -> Engine:
    payment = config.payment
    return Engine(
        ledger=ledger,
        chain=reader,
        closer=settler,
        admission=gate,
        binder=ChallengeBinder([secret.reveal().encode() for secret in payment.secrets]),
        settings=EngineSettings(
            realm=payment.realm,
            payee=settler.payee,
            token=token,
            confirmations=config.chain.confirmations,
            challenge_lifetime_s=payment.challenge_lifetime_s,
            vouchers_per_second=payment.vouchers_per_second,
            reservation_step_units=payment.reservation_step_units,
            reservation_lease_s=payment.reservation_lease_s,
        ),
    )


def parse_address(text: str) -> Address:
    """Return the address a checked setting spells."""
    return address(bytes.fromhex(text.removeprefix("0x")))


async def _expire_reservations(ledger: Ledger, interval_s: float) -> None:
    while True:
        await asyncio.sleep(interval_s)
        try:
            ended = await ledger.expire_reservations(int(time.time()))
        except LedgerUnavailableError:
            _log.exception("expired reservations were not ended; they will be the next time")
        else:
            if ended:
                _log.warning("ended the reservations of %d channels whose owner died", ended)


async def _prune(ledger: Ledger) -> None:
    while True:
        try:
            await ledger.prune(int(time.time()))
        except LedgerUnavailableError:
            _log.exception("the ledger was not pruned; it will be the next time")
        await asyncio.sleep(_PRUNE_INTERVAL_S)
