"""An operator's commands for a ledger: check, export, import, repair (F-52, F-108, SETTLE-05).

An export has one line of JSON for each channel, with everything needed to collect what the channel
owes: terms, amounts and the signed vouchers. Its holder can settle in the payee's name, so protect
it like a key. A line for each charge follows. It holds no idempotency records and no charges that
were added up by day: use the database's own backup for those.
"""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Annotated

import msgspec

from channel.errors import ConfigError, InvariantError
from channel.ledger.accounts import ChargeRow
from channel.ledger.interface import Ledger
from channel.limits import AMOUNT_DIGITS_MAX, CHANNELS_PER_PAGE_MAX
from channel.state.channel_state import ChannelState, LadderVoucher, require_invariants
from channel.state.charges import ChargeOutcome
from channel.state.commands import (
    BeginClose,
    CommitClose,
    EndReservations,
    Repair,
    Restore,
)
from channel.state.ladder import closing_voucher
from channel.state.transitions import transition
from channel.types import (
    ZERO_ADDRESS,
    Address,
    ChannelKey,
    ChannelTerms,
    address,
    base_units,
    channel_id,
)

__all__ = [
    "ExportedChannel",
    "ExportedCharge",
    "ExportedVoucher",
    "check",
    "close_all",
    "export_channels",
    "import_channels",
    "repair",
]

FORMAT = 1
_CHARGE = b'{"charge":'

Amount = Annotated[str, msgspec.Meta(pattern=f"^(0|[1-9][0-9]{{0,{AMOUNT_DIGITS_MAX - 1}}})$")]
Whole = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Hex = Annotated[str, msgspec.Meta(pattern="^0x([0-9a-f]{2})*$")]


class ExportedVoucher(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A kept voucher."""

    cumulative_amount: Amount
    signature: Hex


class ExportedChannel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of an export, without running reservations: they end with their process."""

    format: int
    chain_id: Whole
    escrow: Hex
    channel_id: Hex
    payer: Hex
    payee: Hex
    token: Hex
    authorized_signer: Hex
    deposit: Amount
    settled: Amount
    accepted: Amount
    spent: Amount
    published: Amount
    close_requested_at: Whole
    is_finalized: bool
    fact_block: Whole
    highest: ExportedVoucher
    at_or_below_spent: ExportedVoucher | None
    above_spent: ExportedVoucher | None
    active_at: Whole
    is_closing: bool
    closing_with: ExportedVoucher | None
    close_tx: Hex
    foreign_block: Whole = 0


class ExportedCharge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A line of an export: one entry of the accounts."""

    charge: int
    """The format, and the first member, which tells this line from a channel's."""
    chain_id: Whole
    escrow: Hex
    channel_id: Hex
    at: Whole
    reservation_id: Hex
    outcome: ChargeOutcome
    is_stream: bool
    route: str
    variant: str
    usage: dict[str, Whole] | None
    response_id: str
    amount: Amount


_encoder = msgspec.json.Encoder()
_charge_decoder = msgspec.json.Decoder(ExportedCharge)
_decoder = msgspec.json.Decoder(ExportedChannel)


async def check(ledger: Ledger) -> list[str]:
    """Return what is wrong with the ledger, one sentence each; empty when nothing is."""
    return await ledger.faults()


async def repair(ledger: Ledger, key: ChannelKey, *, accepted: int, spent: int) -> ChannelState:
    """Raise `accepted` and `spent` of a channel whose ledger is older than the chain.

    Raises:
        ChannelStoppedError: The amounts are impossible; nothing was changed.
        ChannelNotFoundError: The ledger does not have the channel.
    """
    return (await ledger.apply(key, [Repair(accepted, spent)])).require()


async def close_all(ledger: Ledger, payee: Address) -> int:
    """Begin to close every open channel of a payee, and decide each close; return how many.

    For a ledger that lost purchases: afterwards no voucher pays for anything on these channels. The
    settler closes each at the ledger's `spent` with the vouchers it has, or at what is settled
    where the chain has settled more already.
    """
    count, after = 0, None
    while page := await ledger.list_channels(after=after, open_only=True):
        after = page[-1].key
        for state in page:
            if state.terms.payee != payee:
                continue
            count += 1
            begun = (
                await ledger.apply(state.key, [EndReservations(by_close=True), BeginClose()])
            ).require()
            commit = CommitClose(closing_voucher(begun, None))
            (await ledger.apply(state.key, [commit])).require()
    return count


async def export_channels(ledger: Ledger) -> AsyncIterator[bytes]:
    """Yield every channel as a line of JSON, in key order, and then every charge, by time.

    A stream's reservation counts as spent, as if its owner had died (decision 8).
    """
    after: ChannelKey | None = None
    while page := await ledger.list_channels(after=after, limit=CHANNELS_PER_PAGE_MAX):
        for state in page:
            yield _encoder.encode(_exported(state)) + b"\n"
        after = page[-1].key
    last: ChargeRow | None = None
    while rows := await ledger.list_charges(0, 2**63 - 1, after=last):
        for row in rows:
            yield _encoder.encode(_exported_charge(row)) + b"\n"
        last = rows[-1]


async def import_channels(ledger: Ledger, lines: AsyncIterable[bytes]) -> int:
    """Add the channels of an export that this ledger does not have; return how many it holds.

    Charges of these channels are entered with their times.

    Raises:
        ConfigError: A line was not exported by this program; the lines before it were added.
    """
    count = channels = 0
    async for line in lines:
        count += 1
        try:
            if line.startswith(_CHARGE):
                await ledger.restore_charges([_imported_charge(_charge_decoder.decode(line))])
                continue
            state = _imported(_decoder.decode(line))
            require_invariants(state)
        except (msgspec.DecodeError, ValueError, InvariantError) as error:
            raise ConfigError(
                f"line {count} of the export cannot be read: {error}; correct or remove that line"
            ) from error
        channels += 1
        (await ledger.apply(state.key, [Restore(state)])).require()
    return channels


def _exported_charge(row: ChargeRow) -> ExportedCharge:
    return ExportedCharge(
        charge=FORMAT,
        chain_id=row.key.chain_id,
        escrow=_hex(row.key.escrow),
        channel_id=_hex(row.key.channel_id),
        at=row.at,
        reservation_id=_hex(row.reservation_id),
        outcome=row.outcome,
        is_stream=row.is_stream,
        route=row.route,
        variant=row.variant,
        usage=None if row.usage is None else dict(row.usage),
        response_id=row.response_id,
        amount=str(row.amount),
    )


def _imported_charge(line: ExportedCharge) -> ChargeRow:
    if line.charge != FORMAT:
        msg = f"expected format {FORMAT}, found {line.charge}"
        raise ValueError(msg)
    return ChargeRow(
        row_id=0,
        at=line.at,
        key=ChannelKey(
            line.chain_id, address(_bytes(line.escrow)), channel_id(_bytes(line.channel_id))
        ),
        payer=ZERO_ADDRESS,
        payee=ZERO_ADDRESS,
        token=ZERO_ADDRESS,
        reservation_id=_bytes(line.reservation_id),
        outcome=line.outcome,
        is_stream=line.is_stream,
        route=line.route,
        variant=line.variant,
        usage=line.usage,
        response_id=line.response_id,
        amount=base_units(int(line.amount)),
    )


def _exported(state: ChannelState) -> ExportedChannel:
    state = transition(state, EndReservations())
    key, terms = state.key, state.terms
    return ExportedChannel(
        format=FORMAT,
        chain_id=key.chain_id,
        escrow=_hex(key.escrow),
        channel_id=_hex(key.channel_id),
        payer=_hex(terms.payer),
        payee=_hex(terms.payee),
        token=_hex(terms.token),
        authorized_signer=_hex(terms.authorized_signer),
        deposit=str(state.deposit),
        settled=str(state.settled),
        accepted=str(state.accepted),
        spent=str(state.spent),
        published=str(state.published),
        close_requested_at=state.close_requested_at,
        is_finalized=state.is_finalized,
        fact_block=state.fact_block,
        highest=ExportedVoucher(
            str(state.highest.cumulative_amount), _hex(state.highest.signature)
        ),
        at_or_below_spent=_exported_voucher(state.at_or_below_spent),
        above_spent=_exported_voucher(state.above_spent),
        active_at=state.active_at,
        is_closing=state.is_closing,
        closing_with=_exported_voucher(state.closing_with),
        close_tx=_hex(state.close_tx),
        foreign_block=state.foreign_block,
    )


def _imported(line: ExportedChannel) -> ChannelState:
    if line.format != FORMAT:
        msg = f"expected format {FORMAT}, found {line.format}"
        raise ValueError(msg)
    return ChannelState(
        key=ChannelKey(
            line.chain_id, address(_bytes(line.escrow)), channel_id(_bytes(line.channel_id))
        ),
        terms=ChannelTerms(
            address(_bytes(line.payer)),
            address(_bytes(line.payee)),
            address(_bytes(line.token)),
            address(_bytes(line.authorized_signer)),
        ),
        deposit=base_units(int(line.deposit)),
        settled=base_units(int(line.settled)),
        accepted=base_units(int(line.accepted)),
        spent=base_units(int(line.spent)),
        published=base_units(int(line.published)),
        close_requested_at=line.close_requested_at,
        is_finalized=line.is_finalized,
        fact_block=line.fact_block,
        highest=_kept(line.highest),
        at_or_below_spent=_imported_voucher(line.at_or_below_spent),
        above_spent=_imported_voucher(line.above_spent),
        active_at=line.active_at,
        is_closing=line.is_closing,
        closing_with=_imported_voucher(line.closing_with),
        close_tx=_bytes(line.close_tx),
        foreign_block=line.foreign_block,
    )


def _exported_voucher(kept: LadderVoucher | None) -> ExportedVoucher | None:
    if kept is None:
        return None
    return ExportedVoucher(str(kept.cumulative_amount), _hex(kept.signature))


def _imported_voucher(line: ExportedVoucher | None) -> LadderVoucher | None:
    return None if line is None else _kept(line)


def _kept(line: ExportedVoucher) -> LadderVoucher:
    return LadderVoucher(base_units(int(line.cumulative_amount)), _bytes(line.signature))


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text[2:])
