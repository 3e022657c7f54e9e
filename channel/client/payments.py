"""An agent's operations on its channels: list, close, leave without the server, sum up; quotes."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager

import httpx
import msgspec
from msgspec.structs import replace

from channel.client.http.management import MODEL_FIELD, HeadManagementClient
from channel.client.http.transport import expect, is_safe, origin_of, route_of
from channel.client.http.websocket import PayingWebSocket, open_websocket
from channel.client.payment.closing import close_channel
from channel.client.payment.payer import Payer
from channel.client.policy.quote import Quote, quote_of
from channel.client.store.charge import ChargeRecord
from channel.client.store.record import ChannelRecord
from channel.errors import ChainUnavailableError, ChannelUnusableError, OfferRefusedError
from channel.types import Address, ChannelId, TokenUnit, TxHash

__all__ = ["Payments", "Summary"]

_log = logging.getLogger(__name__)

_AMOUNTS = ("deposited", "signed", "spent", "settled", "refunded", "locked")
_NAME_S = 3.0
"""How long a node may take to name a token: the sums are right without."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The sums over all channels of one token on one chain; amounts in base units."""

    chain_id: int
    token: Address
    channels: int
    channels_closed: int
    deposited: int
    signed: int
    spent: int
    """According to the servers' last receipts."""
    settled: int
    """What payees were paid on chain, as far as it was read."""
    refunded: int
    """What closed channels paid back."""
    locked: int
    """Deposits of channels that are not closed."""
    vouchers: int
    units: int
    unit: TokenUnit | None = None
    """How amounts of the token are written; None where the token or its chain does not say."""

    def __repr__(self) -> str:
        unit = self.unit or TokenUnit("base units", 0)
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "unit"}
        fields |= {name: unit.format(fields[name]) for name in _AMOUNTS}
        shown = fields | {"token": f"0x{self.token.hex()}"}
        return f"Summary({', '.join(f'{name}={value}' for name, value in shown.items())})"


class Payments:
    """The agent's channels: `client.payments` of a client from `mpp_session.open_client`."""

    def __init__(self, payer: Payer, inner: httpx.AsyncBaseTransport) -> None:
        self._payer = payer
        self._inner = inner

    def over(self, inner: httpx.AsyncBaseTransport) -> "Payments":
        """Return the same channels, managed through what `inner` sends."""
        return Payments(self._payer, inner)

    async def channels(self) -> list[ChannelRecord]:
        """Return every channel ever opened with this store, oldest first."""
        return await self._payer.store.records()

    async def charges(self) -> list[ChargeRecord]:
        """Return every payment for one request ever signed with this store, oldest first."""
        return await self._payer.store.charges()

    async def summary(self) -> list[Summary]:
        """Return what was deposited, signed, spent and refunded, per chain and token."""
        groups: dict[tuple[int, Address], list[ChannelRecord]] = {}
        for record in await self.channels():
            groups.setdefault((record.key.chain_id, record.terms.token), []).append(record)
        return [
            _add_up(*group, records, unit=await self._unit(*group, records[0].origin))
            for group, records in groups.items()
        ]

    async def quote(self, request: httpx.Request) -> Quote:
        """Return what a request can cost at most under the server's current offer.

        Nothing is signed, and the request is not sent: a HEAD asks for the offer unless a fresh one
        is known. `client.build_request(...)` makes the request, whose body is read.

        Raises:
            OfferRefusedError: The policy does not allow what the server asks.
            PaymentRefusedError: The server offers nothing, as for a request that is free.
            httpx.TransportError: The server cannot be reached.
        """
        content = await request.aread()
        origin = origin_of(request.url)
        self._require_safe(request.url, origin, "payment over")
        expectation = expect(request, content)
        headers = request.headers.copy()
        if expectation.model.isascii() and expectation.model.isprintable():
            headers[MODEL_FIELD] = expectation.model
        management = HeadManagementClient(
            self._inner, request.url, headers=headers, extensions=request.extensions
        )
        route = request.method, route_of(request.url), expectation.model
        offer, limits = await self._payer.find_offer(route, origin, management)
        cost = self._payer.count(offer.request, expectation)
        unit = limits.unit or await self._unit(limits.chain_id, limits.token, origin)
        return quote_of(origin, cost, limits, unit=unit)

    def websocket(
        self, url: str, *, headers: Mapping[str, str] | None = None, protocols: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[PayingWebSocket]:
        """Open a websocket that is paid for; see `open_websocket`."""
        return open_websocket(self._payer, self._inner, url, headers=headers, protocols=protocols)

    async def close(self, which: ChannelId | str | None = None) -> list[ChannelRecord]:
        """Close channels with their servers at exactly what was spent, and return their records.

        Args:
            which: A channel's id, a server's URL (all its channels), or None for all.

        The last voucher is presented again first, to learn what was spent; the close is signed for
        that amount (CLOSE-06). If a server does not answer, leave its channel with `request_close`
        and `withdraw`.

        Raises:
            ChannelUnusableError: There is no such channel.
            PaymentRefusedError: A server does not close; the channels before it are closed.
        """
        found = await self._select(which)
        return [await self._close(record) for record in found if record.state != "closed"]

    async def request_close(self, which: ChannelId) -> ChannelRecord:
        """Start the grace period on chain, without the server (CLOSE-08, CLIENT-12).

        Prefer to close with the server: that pays what was spent, while an absent payee may settle
        the lowest voucher that covers it, up to everything that is signed. The difference is
        `ChannelRecord.ahead`, and is logged as a warning before anything is sent.

        A second call sends nothing: the escrow would take it, and the account pay its gas.
        """
        async with self._payer.leaving:
            record = await self._payer.opener.check(await self._one(which))
            if record.close_requested_at or record.state == "closed":
                return record
            return await self._request_close(record)

    async def _request_close(self, record: ChannelRecord) -> ChannelRecord:
        if record.ahead:
            _log.warning(
                "leaving channel 0x%s without its server: %d base units delivered, %d signed, and "
                "the payee may settle up to what is signed; `close` pays what was spent",
                record.key.channel_id.hex(),
                record.counted,
                record.signed,
            )
        chain = self._payer.opener.chain(record.key.chain_id, record.origin)
        await chain.request_close(escrow=record.key.escrow, channel_id=record.key.channel_id)
        return await self._payer.leave(record)

    async def find_opening(self, which: ChannelId) -> TxHash | None:
        """Return the transaction that opened a channel, the server's if it paid the gas."""
        record = await self._one(which)
        if record.open_tx is not None:
            return record.open_tx
        chain = self._payer.opener.chain(record.key.chain_id, record.origin)
        return await chain.find_opening(escrow=record.key.escrow, channel_id=record.key.channel_id)

    async def withdraw(self, which: ChannelId) -> ChannelRecord:
        """Withdraw the rest of the deposit, once the grace period is over."""
        async with self._payer.leaving:  # two at the same time would both be sent
            record = await self._one(which)
            key = record.key
            chain = self._payer.opener.chain(key.chain_id, record.origin)
            tx_hash = await chain.withdraw(escrow=key.escrow, channel_id=key.channel_id)
            await self._payer.store.update(key, lambda current: replace(current, end_tx=tx_hash))
            return await self._payer.leave(record)

    async def _unit(self, chain_id: int, token: Address, origin: str) -> TokenUnit | None:
        try:
            async with asyncio.timeout(_NAME_S):
                return await self._payer.opener.chain(chain_id, origin).read_token_unit(token)
        except (TimeoutError, ChainUnavailableError, OfferRefusedError):
            return None

    async def _select(self, which: ChannelId | str | None) -> list[ChannelRecord]:
        records = await self.channels()
        if isinstance(which, str):
            origin = origin_of(httpx.URL(which))
            records = [record for record in records if record.origin == origin]
        elif which is not None:
            records = [record for record in records if record.key.channel_id == which]
        if which is not None and not records:
            raise ChannelUnusableError(
                f"There is no channel {_spell(which)} in this store. Check the id or the URL, and "
                "the path of the store."
            )
        return records

    async def _one(self, which: ChannelId) -> ChannelRecord:
        return (await self._select(which))[0]

    async def _close(self, record: ChannelRecord) -> ChannelRecord:
        url = httpx.URL(record.url)
        self._require_safe(url, record.origin, "a close over")
        return await close_channel(self._payer, record, HeadManagementClient(self._inner, url))

    def _require_safe(self, url: httpx.URL, origin: str, field: str) -> None:
        if not is_safe(url, allow_loopback_http=self._payer.policy.allow_loopback_http):
            raise OfferRefusedError(field=field, asked="plain http", allowed="https", origin=origin)


def _add_up(
    chain_id: int, token: Address, records: list[ChannelRecord], *, unit: TokenUnit | None
) -> Summary:
    closed = [record for record in records if record.state == "closed"]
    deposited = sum(record.deposit for record in records if record.state != "opening")
    gone = sum(record.deposit for record in closed)
    return Summary(
        chain_id=chain_id,
        token=token,
        channels=len(records),
        channels_closed=len(closed),
        deposited=deposited,
        signed=sum(record.signed for record in records),
        spent=sum(record.spent for record in records),
        settled=sum(record.settled for record in records),
        refunded=sum(record.refund for record in closed),
        locked=deposited - gone,
        vouchers=sum(record.vouchers for record in records),
        units=sum(record.units for record in records),
        unit=unit,
    )


def _spell(which: ChannelId | str) -> str:
    return which if isinstance(which, str) else f"0x{which.hex()}"
