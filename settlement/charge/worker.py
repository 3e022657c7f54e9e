"""Charges as a web worker sees them: claimed, ordered, waited for, served.

Workers hold no key (decision 14). A transfer that a worker orders was simulated before its request
ran; from then on the settler (`settlement.charge.sender`) must send it.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
from msgspec.structs import replace

from channel.errors import (
    AuthorizationExpiredError,
    ConfigError,
    RequestInFlightError,
    SettlementPendingError,
    SponsoringPausedError,
    VerificationFailedError,
)
from channel.state.requests import StoredResponse
from channel.tasks import Tasks
from channel.types import Address, TxHash
from settlement.charge.orders.interface import ChargeOrder, ChargeOrders, GasLimit
from settlement.charge.transfer import (
    SignedTransfer,
    build_transfer_call,
    find_transfer,
    transfer_id,
)
from settlement.errors import ContractRevertedError
from settlement.node.rpc import Rpc
from settlement.tx.gas_quote import GasQuote, ask_gas_quote, parse_gas_quote
from settlement.tx.orders import (
    FEE_TOO_HIGH,
    GWEI,
    NONCE_TAKEN,
    NOT_SENT,
    OrderStatus,
    to_gwei,
)

__all__ = ["ChargeLimits", "ChargeWorker"]

_LOOK_S: Final = 0.05
_UNPAID: Final = frozenset((None, OrderStatus.REFUSED, OrderStatus.REVERTED))
_NOT_SENT_YET: Final = frozenset((FEE_TOO_HIGH, NONCE_TAKEN, NOT_SENT))


class ChargeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator pays for, and how long things may take."""

    gas: GasLimit
    gas_price_max_wei: int
    """Most wei per unit of gas."""
    margin_s: int
    """Seconds an authorization must still be valid by the chain's clock when its request begins."""
    wait_s: float
    """Seconds a client waits for its transfer before the answer says to retry."""
    lease_s: int
    """Seconds for which a request whose process died still owns its authorization."""


class ChargeWorker:
    """Takes signed transfers to one payee for the settler, without a key."""

    def __init__(
        self,
        orders: ChargeOrders,
        rpc: Rpc,
        *,
        token: Address,
        payee: Address,
        sender: Address,
        limits: ChargeLimits,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Take transfers of `token` for the settler that sends from `sender`."""
        self._orders = orders
        self._rpc = rpc
        self._token = token
        self.payee = payee
        self._sender = sender
        self._limits = limits
        self._now = now
        self._waiting = Tasks()  # each caller gets its error

    async def claim(
        self, transfer: SignedTransfer, *, request_digest: bytes, owner: bytes, is_private: bool
    ) -> ChargeOrder:
        """Claim an authorization for one request, before the request runs; durable.

        Returns an order without a status: `settle` it when the request has succeeded, or `release`
        it. Or one that is paid: serve its answer or run the request, then `serve` it.

        Args:
            transfer: Signed by the payer, and verified.
            request_digest: SHA-256 over the request that it pays.
            owner: 16 bytes that name this request.
            is_private: Whether the request shows more than the chain does.

        Raises:
            VerificationFailedError: The token refuses it, it was used, or it is public.
            AuthorizationExpiredError: It expires too soon.
            RequestInFlightError: Another request owns it.
            SettlementPendingError: It is ordered, and not mined yet.
            SponsoringPausedError: Gas costs more than the operator pays.
        """
        now = int(self._now())
        wanted = ChargeOrder(
            order_id=transfer_id(self._rpc.chain_id, self._token, transfer),
            funder=transfer.payer,
            amount=transfer.amount,
            nonce=transfer.nonce,
            calldata=build_transfer_call(transfer),
            deadline=transfer.valid_before - 1,
            from_block=0,
            request_digest=request_digest,
            owner=owner,
            owned_until=now + self._limits.lease_s,
            wanted_at=now,
        )
        known = await self._orders.find(wanted.order_id)
        if known is None or known.status in _UNPAID:
            wanted = await self._prepare(transfer, wanted, known)
        claim = await self._orders.claim(wanted, now=now, is_private=is_private)
        if claim.is_owner:
            return await self._wait_if_open(claim.order)
        order = claim.order
        if order.owned_until > now:
            raise RequestInFlightError("A request with this authorization is being served.")
        if order.is_served or order.status in _UNPAID:
            raise VerificationFailedError("The authorization was used. Sign a new one.")
        if order.is_open:
            raise SettlementPendingError("The payment is being mined: retry later.")
        raise VerificationFailedError(
            "The authorization is on the chain, where anyone can read it, so it buys nothing here. "
            "Its amount is a credit: the next authorization that you sign for it is not charged."
        )

    async def _prepare(
        self, transfer: SignedTransfer, wanted: ChargeOrder, known: ChargeOrder | None
    ) -> ChargeOrder:
        """Return the order with what it may cost, unless another sender has made the transfer.

        Raises:
            VerificationFailedError: The token refuses it.
            AuthorizationExpiredError: It expires too soon.
            SponsoringPausedError: Gas costs more than the operator pays.
        """
        try:
            quote = await self._simulate(transfer, wanted.calldata)
        except VerificationFailedError:
            made = None if known is None else await self._find_made(known)
            if known is None or made is None:
                raise
            await self._orders.adopt(known.order_id, made)
            return wanted
        gas_gwei = to_gwei(self._budget(quote))
        return replace(wanted, from_block=quote.head.number, gas_gwei=gas_gwei)

    async def _find_made(self, order: ChargeOrder) -> TxHash | None:
        return await find_transfer(
            self._rpc,
            self._token,
            payer=order.funder,
            payee=self.payee,
            amount=order.amount,
            nonce=order.nonce,
            from_block=order.from_block,
        )

    async def settle(self, order: ChargeOrder, response: StoredResponse | None) -> ChargeOrder:
        """Order a claimed transfer, with the answer to send, and wait until it is mined.

        Raises:
            RequestInFlightError: Another request has become its owner; nothing was ordered.
            SponsoringPausedError: The gas budget is used up; nothing was ordered.
            SettlementPendingError: It is not mined yet. Its payer may ask again.
            VerificationFailedError: The token refused it: nothing was paid.
        """
        now = int(self._now())
        wanted = replace(
            order,
            status=OrderStatus.WANTED,
            response=response,
            wanted_at=now,
            owned_until=now + int(self._limits.wait_s) + self._limits.lease_s,
        )
        if not await self._orders.place(wanted, self._limits.gas):
            raise RequestInFlightError("Another request with this authorization is being served.")
        return await self._wait_if_open(wanted)

    async def release(self, order: ChargeOrder) -> None:
        """Let another request have the authorization: this one did not serve it."""
        await self._orders.release(order.order_id, order.owner)

    async def serve(self, order: ChargeOrder) -> None:
        """Record that the payer was answered. The authorization buys nothing more."""
        await self._orders.serve(order.order_id, order.owner)

    async def _wait_if_open(self, order: ChargeOrder) -> ChargeOrder:
        if not order.is_open:
            return order
        waiting = self._waiting.share(order.order_id, partial(self._wait, order.order_id))
        ended = await asyncio.shield(waiting)
        if ended is None or ended.is_open:
            await self.release(order)
            raise SettlementPendingError("The payment is being mined: retry later.")
        if ended.status is OrderStatus.MADE:
            return replace(ended, owner=order.owner, owned_until=order.owned_until)
        if ended.reason in _NOT_SENT_YET:
            raise SettlementPendingError("The payment was not sent, and nothing was paid: retry.")
        raise VerificationFailedError(
            f"The token refused the transfer, and nothing was paid: {ended.reason}."
        )

    async def _wait(self, order_id: bytes) -> ChargeOrder | None:
        """Poll until the order ends or the time is up. Concurrent callers share the answer."""
        deadline = time.monotonic() + self._limits.wait_s
        while True:
            order = await self._orders.find(order_id)
            if order is None or not order.is_open or time.monotonic() >= deadline:
                return order
            await asyncio.sleep(_LOOK_S)

    async def _simulate(self, transfer: SignedTransfer, calldata: bytes) -> GasQuote:
        """Run the call as the settler will, and price it, in one round trip.

        Raises:
            VerificationFailedError: The token refuses it.
            AuthorizationExpiredError: It expires too soon.
        """
        try:
            quote = await self._rpc.parse_batch(
                ask_gas_quote(self._sender, self._token, calldata), parse_gas_quote
            )
        except ContractRevertedError as error:
            raise VerificationFailedError(
                f"The token refuses the transfer: {error.text or error.reason.value}."
            ) from None
        if quote.head.base_fee_wei is None:
            raise ConfigError("The chain has no base fee (EIP-1559).")
        if transfer.valid_before < quote.head.timestamp + self._limits.margin_s:
            raise AuthorizationExpiredError(
                f"The authorization must be valid for {self._limits.margin_s} s from the chain's "
                f"time, which is {quote.head.timestamp}."
            )
        return quote

    def _budget(self, quote: GasQuote) -> int:
        """Return the most that the transaction may cost, in wei.

        Raises:
            SponsoringPausedError: Gas costs more than the operator pays.
        """
        if quote.price_wei > self._limits.gas_price_max_wei:
            raise SponsoringPausedError("Gas costs more now than the server pays for charges.")
        return min(
            quote.budget_wei(self._limits.gas_price_max_wei), self._limits.gas.gas_gwei * GWEI
        )
