"""Channels that are open on chain and known to a ledger, for tests of who watches them."""

from channel.ledger.interface import Ledger
from channel.state.channel_state import ChannelState, ReservationKind
from channel.state.commands import (
    AcceptVoucher,
    Command,
    OpenChannel,
    Release,
    Reserve,
    Spend,
)
from channel.types import ChannelId, ChannelKey, VerifiedVoucher
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount
from settlement.escrow.reader import EscrowReader
from tests.settlement.channels import Channels

__all__ = ["NOW", "Books", "request_close"]

NOW = 1_800_000_000


class Books:
    """Channels that are open on chain and known to the ledger."""

    def __init__(self, reader: EscrowReader, ledger: Ledger, channels: Channels) -> None:
        self._reader, self._ledger, self._channels = reader, ledger, channels

    def sign(self, channel_id: ChannelId, amount: int) -> bytes:
        return self._channels.sign(channel_id, amount)

    def key(self, channel_id: ChannelId) -> ChannelKey:
        return self._channels.key(channel_id)

    async def open(
        self, *, accepted: int = 0, spent: int = 0, signed_by: str = "payer"
    ) -> ChannelId:
        channel_id = await self._channels.open()
        fact = await self._reader.read_channel(channel_id)
        assert fact is not None
        first = OpenChannel(fact, self._voucher(channel_id, accepted, signed_by), NOW)
        (await self._ledger.apply(fact.key, [first])).require()
        if spent:
            await self.reserve(channel_id, spent)
            delivered: list[Command] = [Spend(b"r" * 16, spent), Release(b"r" * 16)]
            (await self._ledger.apply(fact.key, delivered)).require()
        return channel_id

    async def accept(self, channel_id: ChannelId, amount: int, *, at: int = NOW) -> None:
        command = AcceptVoucher(self._voucher(channel_id, amount), 0, at)
        (await self._ledger.apply(self.key(channel_id), [command])).require()

    async def reserve(self, channel_id: ChannelId, amount: int, *, name: bytes = b"r") -> None:
        command = Reserve(
            reservation_id=name * 16,
            kind=ReservationKind.STREAM,
            amount_min=amount,
            amount_max=amount,
            presented=amount,
            min_voucher_delta=0,
            lease_expires_at=NOW + 60,
        )
        (await self._ledger.apply(self.key(channel_id), [command])).require()

    async def state(self, channel_id: ChannelId) -> ChannelState:
        state = await self._ledger.load(self.key(channel_id))
        assert state is not None
        return state

    def _voucher(
        self, channel_id: ChannelId, amount: int, signed_by: str = "payer"
    ) -> VerifiedVoucher:
        signature = self._channels.sign(channel_id, amount, by=signed_by)
        return VerifiedVoucher(self.key(channel_id), amount, signature)


async def request_close(chain: Devnet, account: PayerAccount, channel_id: ChannelId) -> None:
    await account.request_close(escrow=chain.values.escrow, channel_id=channel_id)
