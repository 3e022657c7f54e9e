"""Reads a provider's status from the ledger, the journal and the chain (`mpp-session status`).

It can be read from any machine that reaches them, whether or not a gateway or a settler runs.
"""

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import msgspec

from channel.errors import ChainUnavailableError
from channel.ledger.interface import Ledger
from channel.ledger.queries import TablesMissingError
from channel.ledger.url import open_ledger
from channel.limits import GRACE_PERIOD_S_MIN, SPONSORED_PERIOD_S
from channel.state.channel_state import ChannelState
from channel.state.commands import Observe
from channel.state.transitions import transition
from channel.types import Address
from mpp_session.chain_watch import build_policy, connect_escrow, node_limits
from mpp_session.operator.status import Books, ChainView, JournalView, Status, count_channel, judge
from mpp_session.settings import WatchConfig, parse_address
from settlement.escrow.payout_check import find_payout_obstacle
from settlement.escrow.reader import EscrowReader
from settlement.escrow.token_name import read_token_unit
from settlement.settle.exposure import gas_reserve_wei
from settlement.settle.schedule import Moment, value_at_risk
from settlement.sponsor.orders.url import open_orders
from settlement.tx.gas_hour import HOUR_S, payout_cost_wei
from settlement.tx.journal.url import open_journal
from settlement.tx.orders import GWEI
from settlement.types import BlockRef
from settlement.watch.health import HealthLimits

__all__ = ["collect_status"]


async def collect_status(
    config: WatchConfig, payee: Address, *, gas_account: Address | None = None
) -> Status:
    """Read everything and judge it. `gas_account` pays the gas; the payee's own if None.

    Raises:
        ConfigError: The ledger cannot be opened, or the node serves another chain.
        LedgerUnavailableError: The database does not answer.
    """
    asked_at = int(time.time())
    async with AsyncExitStack() as open_:
        ledger = await open_ledger(config.ledger.url, exclusive=False, read_only=True)
        open_.push_async_callback(ledger.close)
        seen = await _read_journal(config, gas_account or payee, asked_at)
        sponsored_gwei = await _read_sponsored_gwei(config, asked_at - SPONSORED_PERIOD_S)
        try:
            books, chain = await _with_chain(config, ledger, payee, gas_account or payee)
        except ChainUnavailableError:
            # The grace period runs even if no node answers: use this machine's clock.
            moment = Moment(now=asked_at, grace_period_s=GRACE_PERIOD_S_MIN)
            books, chain = await _add_up(config, ledger, payee, moment), None
    status = Status(
        payee=payee,
        asked_at=asked_at,
        books=books,
        chain=chain,
        journal=seen,
        at_risk_max=config.exposure.total_max,
        hour_max_wei=config.settlement.gas_hour_max_wei,
        sponsored_wei=sponsored_gwei * GWEI,
    )
    return msgspec.structs.replace(status, findings=judge(status))


async def _read_journal(config: WatchConfig, account: Address, asked_at: int) -> JournalView:
    url, mine = config.ledger.url, (config.chain.id, parse_address(config.chain.escrow))
    try:
        journal = await open_journal(url, chain_id=config.chain.id, account=account, read_only=True)
    except TablesMissingError:  # no settler ever ran on this ledger
        return JournalView(holder=None, pending=(), quarantined=())
    try:
        return JournalView(
            holder=await journal.lease_holder(),
            pending=tuple(await journal.open_transactions()),
            quarantined=tuple(
                each
                for each in await journal.quarantined()
                if (each.key.chain_id, each.key.escrow) == mine
            ),
            hour_wei=payout_cost_wei(await journal.sent_since(asked_at - HOUR_S)),
            look=await journal.last_look(),
        )
    finally:
        await journal.close()


async def _read_sponsored_gwei(config: WatchConfig, since: int) -> int:
    url, escrow = config.ledger.url, parse_address(config.chain.escrow)
    try:
        orders = await open_orders(url, chain_id=config.chain.id, escrow=escrow, read_only=True)
    except TablesMissingError:
        return 0
    try:
        return await orders.gas_gwei_since(since)
    finally:
        await orders.close()


async def _with_chain(
    config: WatchConfig, ledger: Ledger, payee: Address, gas_account: Address
) -> tuple[Books, ChainView]:
    async with connect_escrow(config.chain) as reader:
        rpc = reader.rpc
        head = await rpc.block()
        grace_period_s = await reader.read_grace_period_s()
        moment = Moment(now=head.timestamp, grace_period_s=grace_period_s)
        books = await _add_up(config, ledger, payee, moment, seen=(reader, head))
        health = HealthLimits(closes_reserved_min=config.exposure.closes_reserved_min)
        unit = await read_token_unit(rpc, parse_address(config.chain.token))
        nodes = await rpc.compare_nodes(depth=node_limits(config.chain).compare_depth)
        return books, ChainView(
            chain_id=rpc.chain_id,
            head=head,
            grace_period_s=grace_period_s,
            balance_wei=await rpc.balance_wei(gas_account),
            reserve_wei=gas_reserve_wei(
                max(books.defended + 1, health.closes_reserved_min),
                gas_per_close=health.gas_per_close,
                base_fee_wei=head.base_fee_wei or 0,
            ),
            nodes=tuple(nodes),
            unit=unit,
            nonces_used=await rpc.nonces_used(gas_account),
            payout_obstacle=await find_payout_obstacle(
                reader,
                parse_address(config.chain.token),
                payee,
                owed=min(books.at_risk, books.locked),
            ),
        )


async def _add_up(
    config: WatchConfig,
    ledger: Ledger,
    payee: Address,
    moment: Moment,
    *,
    seen: tuple[EscrowReader, BlockRef] | None = None,
) -> Books:
    """Sum up the open channels; `seen` is the escrow, and the block at which to read it."""
    policy = build_policy(config)
    mine = (config.chain.id, parse_address(config.chain.escrow), payee)
    books, after = Books(), None
    while page := await ledger.list_channels(after=after, open_only=True):
        after = page[-1].key
        ours = [
            each for each in page if (each.key.chain_id, each.key.escrow, each.terms.payee) == mine
        ]
        for state in ours if seen is None else await _on_chain(ours, *seen):
            count_channel(books, state, moment, policy)
    for state in await ledger.list_foreign():
        if (state.key.chain_id, state.key.escrow, state.terms.payee) == mine:
            books.foreign.add(state.key.channel_id)
    books.exits.sort(key=lambda each: (each.deadline, -each.at_risk))
    return books


async def _on_chain(
    states: Sequence[ChannelState], reader: EscrowReader, head: BlockRef
) -> list[ChannelState]:
    """Return the channels with an amount at risk, as the chain shows them now.

    If neither gateway nor settler runs, the ledger does not learn of a payer's exit, and then a
    monitor must still report it (F-64).
    """
    asked = [state.key.channel_id for state in states if value_at_risk(state)]
    facts = {fact.key: fact for fact in await reader.read_channels_at(asked, head) if fact}
    return [
        transition(state, Observe(facts[state.key])) if state.key in facts else state
        for state in states
    ]
