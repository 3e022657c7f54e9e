"""What is looked after beside the channels: gas, wallets, nodes, a tower, what is at risk.

Done with each sweep. Nothing here settles or closes; it rings alarms and tells the gate what to
refuse. A node that does not answer costs this round of it, never the sweep.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from channel.errors import ChainUnavailableError, LedgerUnavailableError
from channel.ledger.interface import Ledger
from channel.limits import EXITS_BELIEVED_MAX
from channel.state.channel_state import ChannelState
from channel.state.commands import Repair
from channel.types import Address, ChannelKey
from channel.verify.typed_data import voucher_digest
from settlement.alarms import AlarmKind, Alarms
from settlement.escrow.payout_check import find_payout_obstacle
from settlement.escrow.reader import EscrowReader
from settlement.presigned.export import TowerExport
from settlement.settle.due import SweepTotals
from settlement.settle.exposure import ExposureGate, gas_reserve_wei
from settlement.settle.schedule import Due, Reason
from settlement.tx.journal.interface import Refusals
from settlement.types import BlockRef
from settlement.watch.node_guard import NodeGuard
from settlement.watch.observer import as_known

__all__ = [
    "REFUSALS_ALARMED",
    "HealthChecks",
    "HealthLimits",
    "Payout",
]

_log: Final = logging.getLogger(__name__)

_SHOWN_MAX: Final = 5

_SPARE_DIVISOR: Final = 4
"""A quarter more than what is needed ends an alarm about gas."""

_EXIT_STAGE_MAX: Final = 50
"""Per cent of a grace period, after which an exit is answered whoever shows it."""

REFUSALS_ALARMED: Final = 3
"""After so many refusals in a row somebody should know: it is no hiccup."""


class HealthLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What must be at hand."""

    closes_reserved_min: int = 20
    """For how many closes there must be gas, at least."""
    gas_per_close: int = 80_000
    gas_reserve_wei: int | None = None
    """What must be at hand, if it is not to be computed."""
    wallets_max: int = 200
    """Contract wallets asked in one round; the next round goes on."""


class Payout(msgspec.Struct, frozen=True):
    """Who is to be paid, and in what."""

    token: Address
    payee: Address


class HealthChecks:
    """Looks after what a defence needs."""

    def __init__(  # noqa: PLR0913 -- what it looks after, by name
        self,
        reader: EscrowReader,
        alarms: Alarms,
        gate: ExposureGate,
        *,
        gas_account: Address | None,
        limits: HealthLimits | None = None,
        nodes: NodeGuard | None = None,
        export: TowerExport | None = None,
        refusals: Refusals | None = None,
        payout: Payout | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        """Look after what defends one payee's channels.

        Args:
            reader: The escrow, and its nodes.
            alarms: What rings.
            gate: What is told to refuse.
            gas_account: Whose ether is looked after; nobody's if None.
            limits: What must be at hand.
            nodes: What holds the nodes against each other; one of its own if None.
            export: What is shown each channel, to sign settles ahead of it.
            refusals: What the chain refuses, as the journal has it; not asked if None.
            payout: Who is to be paid in which token; whether it can be is not tried if None.
            ledger: The books, where channels are found that somebody else settled or closed; only
                those that `show` is given if None.
        """
        self._reader = reader
        self.alarms = alarms
        self.gate = gate
        self._gas_account = gas_account
        self._limits = limits or HealthLimits()
        self._export = export
        self._refusals = refusals
        self._payout = payout
        self._ledger = ledger
        self._confirmed: set[ChannelKey] = set()
        """Channels of which a second node has shown that their payers leave."""
        self._refusing: dict[ChannelKey, Address] = {}
        """Channels whose signer's contract refuses its own voucher now, and that signer."""
        self._by_tower: set[ChannelKey] = set()
        """Channels that a tower has settled with what it was given above what was delivered."""
        self._asked = 0
        self._nodes = nodes or NodeGuard(reader, alarms)

    def show(self, state: ChannelState, *, now: int) -> None:
        """Take one channel as it was just read: for what is signed ahead, or who was faster."""
        if state.foreign_block:
            if self._export is not None and self._export.handed_out(state):
                self._by_tower.add(state.key)
            else:
                self._tell_foreign([state])
        if self._export is not None:
            self._export.show(state, now=now)

    async def believe_exits(
        self, dues: Sequence[Due], states: Mapping[ChannelKey, ChannelState], head: BlockRef
    ) -> list[Due]:
        """Leave out closes for payers who leave by one node's word alone, where very many do.

        A node that shows true blocks can say so of everybody, and have every customer's channel
        closed (O-88). A few are believed at once. Of many a second node must show the same; until
        one does they wait, but not beyond half of their grace period.
        """
        asked = [due for due in dues if due.reason is Reason.FORCED_CLOSE]
        if len(asked) <= EXITS_BELIEVED_MAX:
            self.alarms.end(AlarmKind.NODES_DISAGREE, subject="exits")
            return list(dues)
        self._confirmed &= {due.key for due in asked}
        unsure = [due.key for due in asked if due.key not in self._confirmed]
        try:
            facts = [as_known(states[key], head) for key in unsure if key in states]
            said = await self._reader.confirm_exits(facts)
            self._confirmed |= {fact.key for fact, is_so in zip(facts, said, strict=True) if is_so}
            denied = len(said) - sum(said)
        except ChainUnavailableError as error:
            _log.warning("%d payers leave, and no second node says so yet: %s", len(unsure), error)
            denied = 0
        if denied:
            text = (
                f"one says that {denied} payers leave, and no other does: they are not closed yet"
            )
            self.alarms.ring(AlarmKind.NODES_DISAGREE, text, level=2, subject="exits")
            self._reader.rpc.mark_unhealthy()
        else:
            self.alarms.end(AlarmKind.NODES_DISAGREE, subject="exits")
        return [
            due
            for due in dues
            if due.reason is not Reason.FORCED_CLOSE
            or due.key in self._confirmed
            or due.stage >= _EXIT_STAGE_MAX
        ]

    async def begin(self) -> None:
        """Before every channel is read: which nodes are believed, and what is counted from now."""
        self.gate.begin_sweep()
        try:
            await self._check_nodes()
        except ChainUnavailableError as error:
            _log.warning("the nodes were not compared; tried again: %s", error)

    async def find_fork(self, head: BlockRef) -> int | None:
        """Return the newest block to rely on, if most nodes show that `head` is not the chain's.

        None when they do not. Who gave it is left out by then; what was taken over from it has to
        be read again.
        """
        try:
            await self._check_nodes()
        except ChainUnavailableError:
            return None
        return self.fork_below(head.number)

    def fork_below(self, number: int) -> int | None:
        """Return the same for a block's number, by what the nodes showed last."""
        return self._nodes.fork_below(number)

    async def _check_nodes(self) -> None:
        await self._nodes.check()
        self.gate.is_disputed = self._nodes.is_disputed

    async def check(self, head: BlockRef, totals: SweepTotals) -> None:
        """Take everything up to date; what no node answers stays as it was."""
        self.gate.end_sweep(totals.at_risk, totals.promises)
        if self.gate.is_full:
            text = f"{totals.at_risk} was delivered and is unsettled in all"
            self.alarms.ring(AlarmKind.EXPOSURE_FULL, text)
        else:
            self.alarms.end(AlarmKind.EXPOSURE_FULL)
        try:
            await self._check_payout(totals.payable)
        except ChainUnavailableError as error:
            _log.warning("the token was not asked whether it pays out; tried again: %s", error)
        try:
            await self._check_quarantine()
            await self._check_foreign()
            await self._check_gas(head, totals.defended)
            await self._check_wallets(totals.wallets)
            await self._check_trust()
        except (ChainUnavailableError, LedgerUnavailableError) as error:
            _log.warning("precautions were not all taken; tried again: %s", error)

    async def _check_payout(self, payable: int) -> None:
        """Sell nothing while the token would not pay it out (F-87, O-13)."""
        if self._payout is None:
            return
        token, payee = self._payout.token, self._payout.payee
        why = await find_payout_obstacle(self._reader, token, payee, owed=payable)
        self.gate.is_unpayable = why is not None
        if why is None:
            self.alarms.end(AlarmKind.PAYOUT_REFUSED)
        else:
            text = f"the token would not pay {payable} to 0x{payee.hex()}: {why}: nothing is sold"
            self.alarms.ring(AlarmKind.PAYOUT_REFUSED, text)

    async def _check_quarantine(self) -> None:
        """Extend no credit where it is not paid for, as far as anybody can tell (F-87).

        A wallet can say yes to everybody who asks, and no in the block (F-20): that it is in
        quarantine is then all that shows it.
        """
        if self._refusals is None:
            return
        mine = (self._reader.chain_id, self._reader.escrow)
        entries = [
            each
            for each in await self._refusals.quarantined()
            if (each.key.chain_id, each.key.escrow) == mine
        ]
        self.gate.refused = frozenset(each.key for each in entries)
        lasting = [each for each in entries if each.tries >= REFUSALS_ALARMED]
        if lasting:
            why = Counter(each.reason.lower().replace("_", " ") for each in lasting)
            text = ", ".join(f"{count} channels: {reason}" for reason, count in why.most_common())
            self.alarms.ring(AlarmKind.REFUSED, text)
        else:
            self.alarms.end(AlarmKind.REFUSED)

    async def _check_foreign(self) -> None:
        """Open nothing while the payee's key is used by somebody else (O-05, O-89)."""
        if self._ledger is None:
            return
        mine = (self._reader.chain_id, self._reader.escrow)
        for key in list(self._by_tower):
            (await self._ledger.apply(key, [Repair(0, 0)])).require()  # raises no amount
            self._by_tower.discard(key)
        found = [
            state
            for state in await self._ledger.list_foreign()
            if (state.key.chain_id, state.key.escrow) == mine
        ]
        self._tell_foreign(found)
        if not found:
            self.gate.is_key_shared = False
            self.alarms.end(AlarmKind.FOREIGN_PAYOUT)

    def _tell_foreign(self, states: Sequence[ChannelState]) -> None:
        """Say which channels; each further one is said again."""
        if states:
            self.gate.is_key_shared = True
            shown = ", ".join(f"0x{state.key.channel_id.hex()}" for state in states[:_SHOWN_MAX])
            text = (
                f"{len(states)} channels were settled or closed with the payee's key, and not by "
                f"these books: {shown}: no new channels are taken"
            )
            self.alarms.ring(AlarmKind.FOREIGN_PAYOUT, text, level=len(states))

    async def _check_gas(self, head: BlockRef, defended: int) -> None:
        if self._gas_account is None:
            return
        reserve = self._limits.gas_reserve_wei
        if reserve is None:
            reserve = gas_reserve_wei(
                max(defended + 1, self._limits.closes_reserved_min),
                gas_per_close=self._limits.gas_per_close,
                base_fee_wei=head.base_fee_wei or 0,
            )
        if self.gate.is_gas_low:  # the price moves with each block: be over it for good
            reserve += reserve // _SPARE_DIVISOR
        balance = await self._reader.rpc.balance_wei(self._gas_account)
        self.gate.is_gas_low = balance < reserve
        name = f"0x{self._gas_account.hex()}"
        if balance < reserve:
            text = f"{balance} wei at hand, {reserve} needed: no new channels are taken"
            self.alarms.ring(AlarmKind.GAS_LOW, text, subject=name)
        else:
            self.alarms.end(AlarmKind.GAS_LOW, subject=name)

    async def _check_wallets(self, wallets: Sequence[ChannelState]) -> None:
        """Ask contract wallets whether they still take what they signed (F-19, F-20)."""
        for key in self.gate.blocked - {state.key for state in wallets}:  # paid, or at an end
            self.gate.unblock(key)
            self._refusing.pop(key, None)
            self.alarms.end(AlarmKind.SIGNER_CHANGED, subject=f"0x{key.channel_id.hex()}")
        if self._asked >= len(wallets):
            self._asked = 0
        for state in wallets[self._asked : self._asked + self._limits.wallets_max]:
            self._asked += 1  # one for which no node has an answer does not hide those behind it
            voucher = state.at_or_above_spent or state.highest
            takes = await self._reader.is_valid_wallet_signature(
                state.terms.signer,
                voucher_digest(state.key, voucher.cumulative_amount),
                voucher.signature,
            )
            name = f"0x{state.key.channel_id.hex()}"
            if takes:
                self.gate.unblock(state.key)
                self._refusing.pop(state.key, None)
                self.alarms.end(AlarmKind.SIGNER_CHANGED, subject=name)
            else:
                self.gate.block(state.key)
                self._refusing[state.key] = state.terms.signer
                text = f"its wallet refuses its own voucher: {state.spent - state.settled} at risk"
                self.alarms.ring(AlarmKind.SIGNER_CHANGED, text, subject=name)

    async def _check_trust(self) -> None:
        """Take nothing more on the word of a contract that broke it, on no channel (O-01)."""
        broken = (
            frozenset[Address]() if self._refusals is None else await self._refusals.distrusted()
        )
        self.gate.trust_contracts(broken.union(self._refusing.values()))
