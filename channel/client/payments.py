"""An agent's operations on its channels: list, close, leave without the server, sum up."""

import asyncio
import logging

import httpx
import msgspec
from msgspec.structs import replace

from channel.client.http.management import HeadManagementClient
from channel.client.http.transport import is_safe, origin_of
from channel.client.payment.closing import close_channel
from channel.client.payment.payer import Payer
from channel.client.store.record import Account
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

    async def channels(self) -> list[Account]:
        """Return every channel ever opened with this store, oldest first."""
        return await self._payer.store.accounts()

    async def summary(self) -> list[Summary]:
        """Return what was deposited, signed, spent and refunded, per chain and token."""
        groups: dict[tuple[int, Address], list[Account]] = {}
        for account in await self.channels():
            groups.setdefault((account.key.chain_id, account.terms.token), []).append(account)
        return [
            _add_up(*group, accounts, unit=await self._unit(*group, accounts[0].origin))
            for group, accounts in groups.items()
        ]

    async def close(self, which: ChannelId | str | None = None) -> list[Account]:
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
        return [await self._close(account) for account in found if account.state != "closed"]

    async def request_close(self, which: ChannelId) -> Account:
        """Start the grace period on chain, without the server (CLOSE-08, CLIENT-12).

        Prefer to close with the server: that pays what was spent, while an absent payee may settle
        the lowest voucher that covers it, up to everything that is signed. The difference is
        `ChannelRecord.ahead`, and is logged as a warning before anything is sent.
        """
        account = await self._one(which)
        if account.ahead:
            _log.warning(
                "leaving channel 0x%s without its server: %d base units delivered, %d signed, and "
                "the payee may settle up to what is signed; `close` pays what was spent",
                account.key.channel_id.hex(),
                account.counted,
                account.signed,
            )
        chain = self._payer.opener.chain(account.key.chain_id, account.origin)
        await chain.request_close(escrow=account.key.escrow, channel_id=account.key.channel_id)
        return await self._payer.leave(account)

    async def find_opening(self, which: ChannelId) -> TxHash | None:
        """Return the transaction that opened a channel, the server's if it paid the gas."""
        account = await self._one(which)
        if account.open_tx is not None:
            return account.open_tx
        chain = self._payer.opener.chain(account.key.chain_id, account.origin)
        return await chain.find_opening(
            escrow=account.key.escrow, channel_id=account.key.channel_id
        )

    async def withdraw(self, which: ChannelId) -> Account:
        """Withdraw the rest of the deposit, once the grace period is over."""
        account = await self._one(which)
        chain = self._payer.opener.chain(account.key.chain_id, account.origin)
        tx_hash = await chain.withdraw(escrow=account.key.escrow, channel_id=account.key.channel_id)
        await self._payer.store.update(
            account.key, lambda current: replace(current, end_tx=tx_hash)
        )
        return await self._payer.leave(account)

    async def _unit(self, chain_id: int, token: Address, origin: str) -> TokenUnit | None:
        try:
            async with asyncio.timeout(_NAME_S):
                return await self._payer.opener.chain(chain_id, origin).read_token_unit(token)
        except (TimeoutError, ChainUnavailableError, OfferRefusedError):
            return None

    async def _select(self, which: ChannelId | str | None) -> list[Account]:
        accounts = await self.channels()
        if isinstance(which, str):
            origin = origin_of(httpx.URL(which))
            accounts = [account for account in accounts if account.origin == origin]
        elif which is not None:
            accounts = [account for account in accounts if account.key.channel_id == which]
        if which is not None and not accounts:
            raise ChannelUnusableError(
                f"There is no channel {_spell(which)} in this store. Check the id or the URL, and "
                "the path of the store."
            )
        return accounts

    async def _one(self, which: ChannelId) -> Account:
        return (await self._select(which))[0]

    async def _close(self, account: Account) -> Account:
        url = httpx.URL(account.url)
        allow_loopback_http = self._payer.policy.allow_loopback_http
        if not is_safe(url, allow_loopback_http=allow_loopback_http):
            raise OfferRefusedError(
                field="a close over", asked="plain http", allowed="https", origin=account.origin
            )
        return await close_channel(self._payer, account, HeadManagementClient(self._inner, url))


def _add_up(
    chain_id: int, token: Address, accounts: list[Account], *, unit: TokenUnit | None
) -> Summary:
    closed = [account for account in accounts if account.state == "closed"]
    deposited = sum(account.deposit for account in accounts if account.state != "opening")
    gone = sum(account.deposit for account in closed)
    return Summary(
        chain_id=chain_id,
        token=token,
        channels=len(accounts),
        channels_closed=len(closed),
        deposited=deposited,
        signed=sum(account.signed for account in accounts),
        spent=sum(account.spent for account in accounts),
        settled=sum(account.settled for account in accounts),
        refunded=sum(account.refund for account in closed),
        locked=deposited - gone,
        vouchers=sum(account.vouchers for account in accounts),
        units=sum(account.units for account in accounts),
        unit=unit,
    )


def _spell(which: ChannelId | str) -> str:
    return which if isinstance(which, str) else f"0x{which.hex()}"
