"""One paid stream from the payer's side: its count, its vouchers, its end."""

from channel.client.account import Account, count_lost, count_received
from channel.client.lanes import Lanes
from channel.client.meter import UnitMeter
from channel.client.policy import Policy, step_value
from channel.client.purchase import Purchase, Ticket
from channel.client.receipts import ReceiptBook
from channel.client.store import Purse
from channel.client.vouchers import VoucherDesk
from channel.errors import PaymentRefusedError, ReceiptViolationError, WireError
from channel.wire.payload import VoucherPayload
from channel.wire.sse import NEED_VOUCHER_EVENT, parse_need_voucher

__all__ = ["PaidStream"]

IDLE_NEEDS_MAX = 3


class PaidStream:
    """Counts in memory what arrives; stored before the next voucher and at the end."""

    def __init__(
        self,
        *,
        policy: Policy,
        purse: Purse,
        lanes: Lanes,
        desk: VoucherDesk,
        receipts: ReceiptBook,
        purchase: Purchase,
        ticket: Ticket,
    ) -> None:
        self._policy = policy
        self._purse = purse
        self._lanes = lanes
        self._desk = desk
        self._receipts = receipts
        self._purchase = purchase
        self._ticket = ticket
        self._meter = UnitMeter()
        self._pending_units = 0
        self._idle_needs = 0
        self.has_receipt = False
        """The receipt at the end was there, and could be right."""

    def count(self, data: str) -> None:
        """Count one event."""
        units = self._meter.count(data)
        if units:
            self._pending_units += units
            self._idle_needs = 0

    async def need_voucher(self, data: str) -> None:
        """Answer a server that waits for a voucher (SSE-01, CLIENT-07).

        Raises:
            OverclaimError: It asks for more than it has delivered and one step.
            PaymentRefusedError: It asks again and again and delivers nothing, or refuses.
            ReceiptViolationError: What it says cannot be read.
        """
        ticket = self._ticket
        try:
            need = parse_need_voucher(data)
        except WireError as error:
            raise ReceiptViolationError(
                field=NEED_VOUCHER_EVENT, said=f"unreadable ({error})", expected="what is needed"
            ) from error
        if need.channel_id != ticket.key.channel_id:
            return  # another channel's: none of this stream's business
        await self._store_count()
        self._idle_needs += 1
        if self._idle_needs > IDLE_NEEDS_MAX:
            raise PaymentRefusedError(
                status=200,
                problem_type=NEED_VOUCHER_EVENT,
                detail=f"asked {IDLE_NEEDS_MAX} times and delivered nothing",
            )
        async with ticket.lane.lock:
            account = await self._purse.get(ticket.key)
            voucher = await self._desk.make(
                self._purchase,
                ticket,
                needed=need.required_cumulative,
                ahead=account.counted + ticket.allowance(self._policy),
            )
        await self._desk.present(self._purchase, ticket, VoucherPayload(voucher))

    async def take_receipt(self, data: str) -> None:
        """Take the receipt at the end (SSE-04).

        Raises:
            ReceiptViolationError: It cannot be right; the channel is stopped.
        """
        await self._store_count()
        await self._receipts.end_stream(self._purchase, self._ticket, data)
        self.has_receipt = True

    async def end(self, *, is_broken: bool) -> None:
        """Count the rest and let go of the channel.

        What the caller did not care to read was delivered all the same, up to one step; what a
        broken connection swallowed is granted within the policy's bound, because a server could
        break it at will. Both only until the next receipt says what was really spent.
        """
        ticket, hold = self._ticket, self._ticket.hold
        try:
            await self._store_count()
            if self.has_receipt:
                return
            step = step_value(self._policy, ticket.offer.request)
            lost_max = self._policy.lost_units_max * ticket.price
            others = ticket.lane.in_flight - hold.cost

            def change(current: Account) -> Account:
                unread = max(0, min(step, current.signed - current.counted - others))
                if is_broken:
                    return count_lost(current, value=unread, lost_max=lost_max)
                return count_received(current, value=unread, units=0)

            await self._purse.update(ticket.key, change)
        finally:
            self._lanes.leave(hold)

    async def _store_count(self) -> None:
        """Store what arrived; the stream's first cost is then no longer in flight."""
        units, self._pending_units = self._pending_units, 0
        if not units:
            return
        self._ticket.hold.cost = self._ticket.hold.cost_max = 0
        value = units * self._ticket.price
        await self._purse.update(
            self._ticket.key, lambda current: count_received(current, value=value, units=units)
        )
