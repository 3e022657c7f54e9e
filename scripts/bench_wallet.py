"""A voucher that a wallet's policy decides about, from the ask to its amount on disk."""

import time
from collections.abc import AsyncIterator
from statistics import median
from typing import Final

from bench_ledger import bare_commit_us
from bench_samples import Row, Run
from bench_world import CHAIN_ID, ESCROW, PAYER
from channel.client.policy.budget import Budget, LockedBudget
from channel.client.policy.context import PaymentContext
from channel.client.policy.policy import Offer
from channel.client.store.record import ChannelRecord
from channel.client.store.sqlite import PaymentStore
from channel.limits import AMOUNT_MAX
from channel.types import ZERO_ADDRESS, Address, ChannelId, ChannelKey, ChannelTerms
from channel.wire.challenge import Challenge, SessionRequest
from mpp_session.wallet.approvals.rules import rules_of
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.audit.trail import Trail
from mpp_session.wallet.books.books import WalletBooks
from mpp_session.wallet.policy import parse_policy
from mpp_session.wallet.types import WalletRequest
from mpp_session.wallet.watch.store import Watch

__all__ = ["wallet_rows"]

VOUCHERS: Final = 60
PRICE: Final = 10
TOKEN: Final = Address(b"\x70" * 20)
PAYEE: Final = Address(b"\xbe" * 20)
POLICY: Final = f"""
version = 1
revision = 1
default = "deny"

[token.usdc]
chain = {CHAIN_ID}
address = "0x{TOKEN.hex()}"
decimals = 6

[envelope.company]
amount = "1000000.00 usdc"
window = "30d"

[envelope.research]
amount = "100000.00 usdc"
window = "7d"
locked_max = "50000.00 usdc"
parent = "company"

[agent.research-1]
token = "sha256:{"ab" * 32}"
envelopes = ["research"]
expires = 2099-01-31T00:00:00Z

[[rule]]
name = "search"
action = "allow"
[rule.match]
agent = ["research-*"]
origin = ["https://api.example"]
method = ["POST"]
path = ["/search", "/extract/*"]
[rule.cap]
unit_price = {{request = "0.01 usdc"}}
request = "0.05 usdc"
deposit = "50000.00 usdc"
per = [{{by = "origin", amount = "10000.00 usdc", window = "1h"}}]
rate = [{{count = 100000, window = "1m"}}]

[[rule]]
name = "no-admin"
action = "deny"
[rule.match]
path = ["/admin/*"]
"""
FREE: Final = Budget(origin_max=AMOUNT_MAX, total_max=AMOUNT_MAX, window_s=3_600)
UNBOUND: Final = LockedBudget(AMOUNT_MAX, AMOUNT_MAX)
OFFER: Final = Offer(
    Challenge(id="one", realm="api.example", method="evm", intent="session", request="e30"),
    SessionRequest(
        unit_price=PRICE,
        currency=TOKEN,
        recipient=PAYEE,
        chain_id=CHAIN_ID,
        escrow=ESCROW,
        unit_type="request",
        credential_types=("hash",),
    ),
)


async def wallet_rows(run: Run) -> AsyncIterator[Row]:
    """Measure a decision with its durable spend, and the same voucher without a guard."""
    policy = parse_policy(POLICY)
    trail = Trail()
    books = await WalletBooks.open(
        run.folder / "wallet.db",
        policy,
        trail=trail,
        approvals=Approvals(rules_of(policy), trail),
        watch=Watch(policy),
    )
    views = {"guarded": books.view("research-1"), "alone": books.store.for_agent("alone")}
    for number, (name, view) in enumerate(views.items()):
        await _open(view, number, context_of(f"{name}-open"))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in views}
    for sample in range(run.repeats):
        for number, (name, view) in enumerate(views.items()):
            before = bare_commit_us(run.folder)
            us = await _sign_us(view, number, f"{name}-{sample}")
            after = bare_commit_us(run.folder)
            taken[name].append((us, (before + after) / 2))
    await books.close()
    without = median(us / bare for us, bare in taken["alone"])
    yield Row.paired(
        "a decision with its durable spend / one bare commit",
        taken["guarded"],
        goal=2.0,
        besides=f"{without:.2f} without a policy",
    )


def context_of(request_id: str) -> PaymentContext:
    """Return a request of its own."""
    return PaymentContext(
        request_id=request_id,
        origin="https://api.example:443",
        method="POST",
        url="https://api.example/search",
        offer=OFFER,
        cost_max=PRICE,
        is_stream=False,
        purpose=WalletRequest(request_id=request_id),
    )


def _key(number: int) -> ChannelKey:
    return ChannelKey(CHAIN_ID, ESCROW, ChannelId(number.to_bytes(32)))


async def _open(view: PaymentStore, number: int, context: PaymentContext) -> None:
    record = ChannelRecord(
        key=_key(number),
        origin=context.origin,
        url=context.url,
        terms=ChannelTerms(PAYER, PAYEE, TOKEN, ZERO_ADDRESS),
        salt=bytes(32),
        state="open",
        deposit=10**9,
        opened_at=int(time.time()),
    )
    await view.add(record, channels_max=1, locked=UNBOUND, context=context)


async def _sign_us(view: PaymentStore, number: int, name: str) -> float:
    """Return the median of vouchers, one for each request."""
    times = []
    for turn in range(VOUCHERS):
        context = context_of(f"{name}-{turn}")
        began = time.perf_counter()
        await view.sign_for(
            _key(number),
            lambda record, _left: record.signed + PRICE,
            budget=FREE,
            now=time.time(),
            context=context,
        )
        times.append((time.perf_counter() - began) * 1e6)
    return median(times)
