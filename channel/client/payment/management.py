"""Management requests: a HEAD with a credential, answered by a receipt (RESP-01).

A HEAD is always management (RESP-02), so a server can never bill it as content. Its answer has no
body: the status and `Retry-After` alone decide what to do next.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from channel.client.policy.decisions import (
    DEPOSIT_WAIT_S_MAX,
    DEPOSIT_WAITS_MAX,
    RETRY_AFTER_S_MAX,
    deposit_pause_s,
)
from channel.client.policy.policy import Offer
from channel.client.store.record import read_receipt
from channel.errors import (
    DepositPendingError,
    PaymentRefusedError,
)
from channel.methods.evm.payload import (
    OpenAuthorization,
    OpenPermit2,
    TopUpAuthorization,
    TopUpPermit2,
)
from channel.types import Address
from channel.wire.credential import Credential, format_credential
from channel.wire.payload import (
    Payload,
    VoucherPayload,
)
from channel.wire.receipt import Receipt

__all__ = [
    "Header",
    "ManagementClient",
    "Presented",
    "Reply",
    "build_header",
    "deposit_type",
    "present",
]

WAITS_MAX = 10
WAIT_S_MAX = 10.0
WAIT_S_DEFAULT = 1.0

Header = tuple[str, str]


class Reply(msgspec.Struct, frozen=True):
    """The parts of an HTTP answer that the payer needs."""

    status: int
    challenges: tuple[str, ...] = ()
    """The `WWW-Authenticate` lines."""
    x402: str | None = None
    """`PAYMENT-REQUIRED` as received: what x402 payments a 402 takes."""
    receipt: str | None = None
    """`Payment-Receipt` as received."""
    settlement: str | None = None
    """`PAYMENT-RESPONSE` as received: the receipt of x402."""
    retry_after_s: float | None = None
    body: bytes = b""

    @property
    def is_success(self) -> bool:
        """Whether the status is 2xx: servers differ in which one they send (AMB-04)."""
        return 200 <= self.status < 300  # noqa: PLR2004

    @property
    def wait_s(self) -> float:
        """How long to wait before asking again, bounded."""
        wanted = WAIT_S_DEFAULT if self.retry_after_s is None else self.retry_after_s
        return min(max(wanted, 0.0), WAIT_S_MAX)


class ManagementClient(Protocol):
    """Sends HEAD requests to one address, each on its own connection (CLIENT-07)."""

    async def head(self, credential: Header | None) -> Reply:
        """Send one, with or without a credential, and return the answer."""


class Presented(msgspec.Struct, frozen=True):
    """A credential that the server accepted."""

    offer: Offer
    """The offer that it answered: a fresh one if the server demanded that."""
    receipt: Receipt | None
    receipt_text: str


def build_header(offer: Offer, payload: Payload, source: tuple[int, Address]) -> Header:
    """Return the header field that answers an offer."""
    return offer.header, format_credential(Credential(offer.challenge, payload, source))


async def present(
    management: ManagementClient,
    offer: Offer,
    payload: Payload,
    source: tuple[int, Address],
    *,
    renew: Callable[[Reply], Offer],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Presented:
    """Send a credential until the server accepts it; waits and renewals are bounded (CLIENT-08).

    For a signed deposit it waits longer, because the server must get a transaction mined.

    Args:
        management: Sends the HEAD requests.
        offer: The offer that is answered.
        payload: The payload, which stays the same however often it is sent.
        source: Chain id and address of the payer.
        renew: Returns the offer of a 402's fresh challenge, or raises if that is not allowed.
        sleep: Waits.

    Raises:
        PaymentRefusedError: The server does not accept it.
        DepositPendingError: The server has not accepted the deposit yet, and still may.
        AgentError: Its fresh challenge is not allowed, or its receipt cannot be parsed.
    """
    patience = _Patience(has_deposit=deposit_type(payload) is not None)
    is_renewed = False
    while True:
        reply = await management.head(build_header(offer, payload, source))
        if reply.is_success:
            text = reply.receipt or ""
            return Presented(offer, read_receipt(text) if text else None, text)
        if reply.retry_after_s is not None and (pause_s := patience.take(reply)) is not None:
            await sleep(pause_s)
        elif reply.status == 402 and not is_renewed and reply.challenges:  # noqa: PLR2004
            is_renewed = True
            offer = renew(reply)
        elif reply.retry_after_s is not None and patience.is_mining(reply):
            raise DepositPendingError(origin=offer.challenge.realm, waited_s=patience.waited_s)
        else:
            raise PaymentRefusedError(
                status=reply.status,
                problem_type=f"a HEAD with action {payload.action}",
                detail="the answer to a HEAD has no body that explains it",
            )


class _Patience:
    """Bounds the waits for one credential, in number and in time."""

    def __init__(self, *, has_deposit: bool) -> None:
        self.has_deposit = has_deposit
        self.waited_s = 0.0
        self._waits = 0

    def is_mining(self, reply: Reply) -> bool:
        """Return whether a deposit may be under way, rather than refused (F-75)."""
        return self.has_deposit and reply.status == 503  # noqa: PLR2004

    def take(self, reply: Reply) -> float | None:
        """Return how long to wait now, or None when the bound is reached."""
        pause_s, waits_max = reply.wait_s, WAITS_MAX
        if self.has_deposit:
            pause_s, waits_max = deposit_pause_s(self._waits, pause_s), DEPOSIT_WAITS_MAX
            if (reply.retry_after_s or 0.0) > RETRY_AFTER_S_MAX:
                return None
        if self._waits == waits_max or self.waited_s + pause_s > DEPOSIT_WAIT_S_MAX:
            return None
        self._waits += 1
        self.waited_s += pause_s
        return pause_s


def deposit_type(payload: Payload) -> str | None:
    """Return the type of the signed deposit in a credential, or None."""
    if isinstance(payload, VoucherPayload):
        return None if payload.deposit is None else payload.deposit.type
    by_signature = OpenAuthorization | OpenPermit2 | TopUpAuthorization | TopUpPermit2
    return payload.type if isinstance(payload, by_signature) else None
