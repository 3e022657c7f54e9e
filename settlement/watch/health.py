"""Checks what settling depends on: gas, wallets, nodes, the tower, the amount at risk.

The watcher runs the checks with each sweep. They settle and close nothing: they ring alarms and
tell the gate what to refuse. A node that does not answer costs one round of checks, never the
sweep.
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
"""A gas alarm ends once the balance is a quarter above the required amount."""

_EXIT_STAGE_MAX: Final = 50
"""Per cent of a grace period, after which an exit is answered even if one node shows it."""

REFUSALS_ALARMED: Final = 3
"""After so many refusals in a row an alarm rings: the cause is not transient."""


class HealthLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What must be available."""

    closes_reserved_min: int = 20
    """Least number of closes for which the account must hold gas."""
    gas_per_close: int = 80_000
    gas_reserve_wei: int | None = None
    """Required wei, if it is not to be computed."""
    wallets_max: int = 200
    """Contract wallets asked in one round; the next round continues."""


class Payout(msgspec.Struct, frozen=True):
    """The payee and the token in which it is paid."""

    token: Address
    payee: Address


class HealthChecks:
    """Checks what settling and closing depend on."""

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
        """Check what the channels of one payee depend on.

        Args:
            reader: Reads the escrow.
            alarms: The alarms to ring.
            gate: Refuses what the checks rule out.
            gas_account: The account whose ether is checked; not checked if None.
            limits: What must be available.
            nodes: Compares the nodes; an own guard if None.
            export: Receives each channel, to sign settles ahead.
            refusals: The journal's refusals; not read if None.
            payout: The payee and token of a simulated payout; not simulated if None.
            ledger: Where to find channels that another process settled or closed; if None, only
                those passed to `show`.
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
        """Channels whose payer's exit a second node has confirmed."""
        self._refusing: dict[ChannelKey, Address] = {}
        """Channels whose signer's contract refuses its own voucher now, with that signer."""
        self._by_tower: set[ChannelKey] = set()
        """Channels that a tower settled above what was delivered, with a settle it was handed."""
        self._asked = 0
        self.balance_wei: int | None = None
        """Ether of the account that pays the gas; None before it is read."""
        self.reserve_wei: int | None = None
        """Ether that it needs, by the last check."""
        self._nodes = nodes or NodeGuard(reader, alarms)

    def show(self, state: ChannelState, *, now: int) -> None:
        """Pass on a channel as just read: to the tower's export and the check for other keys."""
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
        """Leave out closes for exits that only one node shows, if there are very many.

        A node with true blocks can falsely report that every payer requested a close, and so have
        every customer's channel closed (O-88). A few are acted on immediately. If there are many, a
        second node must confirm them; until then they wait, but no longer than half of their grace
        period.
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
            _log.warning("no second node confirms %d close requests: %s", len(unsure), error)
            denied = 0
        if denied:
            text = f"one node shows {denied} close requests that no other does: they wait"
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
        """Before a sweep: compare the nodes, and start counting amounts."""
        self.gate.begin_sweep()
        try:
            await self._check_nodes()
        except ChainUnavailableError as error:
            _log.warning("comparing the nodes failed, will retry: %s", error)

    async def find_fork(self, head: BlockRef) -> int | None:
        """Return the newest reliable block, if most nodes show that `head` is not on the chain.

        None if they do not. The node that gave it is left out by then; facts read from it must be
        read again.
        """
        try:
            await self._check_nodes()
        except ChainUnavailableError:
            return None
        return self.fork_below(head.number)

    def fork_below(self, number: int) -> int | None:
        """Return the newest reliable block by the last comparison; None if `number` is reliable."""
        return self._nodes.fork_below(number)

    async def _check_nodes(self) -> None:
        await self._nodes.check()
        self.gate.is_disputed = self._nodes.is_disputed

    async def check(self, head: BlockRef, totals: SweepTotals) -> None:
        """Run every check. A check that no node answers keeps its last result."""
        self.gate.end_sweep(totals.at_risk, totals.promises)
        if self.gate.is_full:
            text = f"the unsettled total is {totals.at_risk}: the limit is reached"
            self.alarms.ring(AlarmKind.EXPOSURE_FULL, text)
        else:
            self.alarms.end(AlarmKind.EXPOSURE_FULL)
        try:
            await self._check_payout(totals.payable)
        except ChainUnavailableError as error:
            _log.warning("simulating a payout failed, will retry: %s", error)
        try:
            await self._check_quarantine()
            await self._check_foreign()
            await self._check_gas(head, totals.defended)
            await self._check_wallets(totals.wallets)
            await self._check_trust()
        except (ChainUnavailableError, LedgerUnavailableError) as error:
            _log.warning("not all checks ran, will retry: %s", error)

    async def _check_payout(self, payable: int) -> None:
        """Sell nothing while the token would not pay the payee (F-87, O-13)."""
        if self._payout is None:
            return
        token, payee = self._payout.token, self._payout.payee
        why = await find_payout_obstacle(self._reader, token, payee, owed=payable)
        self.gate.is_unpayable = why is not None
        if why is None:
            self.alarms.end(AlarmKind.PAYOUT_REFUSED)
        else:
            text = f"the token would not pay {payable} to 0x{payee.hex()}: {why}: sales are stopped"
            self.alarms.ring(AlarmKind.PAYOUT_REFUSED, text)

    async def _check_quarantine(self) -> None:
        """Serve no channel that the chain refuses to settle (F-87).

        A wallet can accept every simulation and refuse in the block (F-20). Then only the
        quarantine shows it.
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
        """Accept no new channel while another process uses the payee's key (O-05, O-89)."""
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
        """Ring with the channels; each further one rings again."""
        if states:
            self.gate.is_key_shared = True
            shown = ", ".join(f"0x{state.key.channel_id.hex()}" for state in states[:_SHOWN_MAX])
            text = (
                f"{len(states)} channels were settled or closed with the payee's key, but not by "
                f"this ledger: {shown}: new channels are refused"
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
        if self.gate.is_gas_low:  # gas prices vary with each block: require a margin to end it
            reserve += reserve // _SPARE_DIVISOR
        balance = await self._reader.rpc.balance_wei(self._gas_account)
        self.balance_wei, self.reserve_wei = balance, reserve
        self.gate.is_gas_low = balance < reserve
        name = f"0x{self._gas_account.hex()}"
        if balance < reserve:
            text = f"{balance} wei in the account, {reserve} needed: new channels are refused"
            self.alarms.ring(AlarmKind.GAS_LOW, text, subject=name)
        else:
            self.alarms.end(AlarmKind.GAS_LOW, subject=name)

    async def _check_wallets(self, wallets: Sequence[ChannelState]) -> None:
        """Ask contract wallets whether they still accept their vouchers (F-19, F-20)."""
        for key in self.gate.blocked - {state.key for state in wallets}:  # settled or closed
            self.gate.unblock(key)
            self._refusing.pop(key, None)
            self.alarms.end(AlarmKind.SIGNER_CHANGED, subject=f"0x{key.channel_id.hex()}")
        if self._asked >= len(wallets):
            self._asked = 0
        for state in wallets[self._asked : self._asked + self._limits.wallets_max]:
            self._asked += 1  # a wallet for which no node answers does not hold up the others
            voucher = state.at_or_above_spent or state.highest
            takes = await self._reader.is_valid_wallet_signature(
                state.terms.signer,
                voucher_digest(state.key, voucher.cumulative_amount, self._reader.interface.domain),
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
        """Accept nothing more from a contract that revoked a voucher, on any channel (O-01)."""
        broken = (
            frozenset[Address]() if self._refusals is None else await self._refusals.distrusted()
        )
        self.gate.trust_contracts(broken.union(self._refusing.values()))
