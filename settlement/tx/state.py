"""The states of one transaction: (transaction, event) -> transaction (pure, the only rules).

    INTENT -> SIGNED -> SENT -> MINED ----> FINAL
                                REVERTED -> FINAL
    INTENT, SIGNED -> ABANDONED      refused before any node has it: its nonce is free again
    SIGNED, SENT   -> REPLACED       another transaction of the key used the nonce
    MINED, REVERTED, FINAL -> SENT   a reorg removed its block: the same bytes are sent again

A nonce is assigned once, with the bytes. A higher fee adds a version on the same nonce; all
versions are kept, because any of them may be mined. A revert is permanent immediately (F-76); FINAL
only adds that its block is deep. An event that does not apply to a state leaves it unchanged, so
repeating an event is harmless.
"""

import enum
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from channel.errors import InvariantError
from channel.types import Address, TxHash
from settlement.tx.fees import Fee
from settlement.types import Receipt

__all__ = [
    "Abandoned",
    "Bumped",
    "Confirmed",
    "Event",
    "Included",
    "Inclusion",
    "Intent",
    "JournalTx",
    "NodeAnswer",
    "Overtaken",
    "Purpose",
    "Sent",
    "Signed",
    "TxStatus",
    "TxVersion",
    "Unmined",
    "advance",
    "classify_refusal",
    "look_for",
]


class TxStatus(enum.IntEnum):
    """State of a transaction. States below FINAL are still followed."""

    INTENT = 1
    """Intended; nothing is signed."""
    SIGNED = 2
    """Its bytes and nonce are on disk. They may have been sent already."""
    SENT = 3
    """A node has accepted it."""
    MINED = 4
    """In a block, succeeded."""
    REVERTED = 5
    """In a block, reverted by the contract."""
    FINAL = 6
    """In a block of the configured depth, succeeded or reverted."""
    REPLACED = 7
    """Another transaction, not from this journal, used its nonce."""
    ABANDONED = 8
    """Given up before any node can have had it."""


class Purpose(enum.IntEnum):
    """What a transaction is for; its calldata gives the details."""

    OTHER = 0
    SETTLE = 1
    CLOSE = 2


class Intent(msgspec.Struct, frozen=True, gc=False):
    """A transaction to send, and what it may cost."""

    to: Address | None
    """None creates a contract."""
    calldata: bytes
    value_wei: int = 0
    purpose: Purpose = Purpose.OTHER
    budget_wei: int | None = None
    """The most it may cost in all; None for no bound (F-78)."""
    deadline: int = 0
    """Chain time in Unix seconds by which it must be mined; 0 for none."""


class TxVersion(msgspec.Struct, frozen=True, gc=False):
    """One signed version of a transaction. `raw` never reaches a log (F-103)."""

    tx_hash: TxHash
    fee: Fee
    raw: bytes
    signed_at: int
    """Unix seconds."""

    def __repr__(self) -> str:
        return f"TxVersion(tx_hash=0x{self.tx_hash.hex()}, fee={self.fee})"


class Inclusion(msgspec.Struct, frozen=True, gc=False):
    """Which version was mined, in which block, and at what cost."""

    tx_hash: TxHash
    is_success: bool
    block_number: int
    block_hash: bytes
    gas_used: int
    gas_price_wei: int


class JournalTx(msgspec.Struct, frozen=True):
    """One transaction of one key, as stored in the journal."""

    tx_id: int
    intent: Intent
    status: TxStatus = TxStatus.INTENT
    nonce: int | None = None
    gas: int = 0
    versions: tuple[TxVersion, ...] = ()
    inclusion: Inclusion | None = None
    reason: str = ""
    """Why it reverted or was given up: a `RevertReason`'s name, or text."""

    @property
    def is_open(self) -> bool:
        """Whether it is still followed."""
        return self.status < TxStatus.FINAL

    @property
    def is_unmined(self) -> bool:
        """Whether its bytes were or may have been sent, and no block has them."""
        return self.status in (TxStatus.SIGNED, TxStatus.SENT)

    @property
    def newest(self) -> TxVersion:
        """The version with the highest bid."""
        return self.versions[-1]


class Signed(msgspec.Struct, frozen=True, gc=False):
    """It has a nonce, a gas limit and its first bytes."""

    nonce: int
    gas: int
    version: TxVersion
    fills_gap: bool = False
    """Its nonce is below assigned ones, and was never assigned itself."""


class Bumped(msgspec.Struct, frozen=True, gc=False):
    """The same nonce was signed again with a higher bid."""

    version: TxVersion


class Sent(msgspec.Struct, frozen=True, gc=False):
    """A node has accepted it, now or before."""


class Included(msgspec.Struct, frozen=True, gc=False):
    """A block contains it."""

    inclusion: Inclusion
    reason: str = ""


class Unmined(msgspec.Struct, frozen=True, gc=False):
    """Its block is no longer part of the chain."""


class Confirmed(msgspec.Struct, frozen=True, gc=False):
    """Its block has the configured depth."""


class Overtaken(msgspec.Struct, frozen=True, gc=False):
    """The chain has used its nonce for a transaction that is none of its versions."""


class Abandoned(msgspec.Struct, frozen=True, gc=False):
    """Refused before any node can have had it."""

    reason: str


Event = Signed | Bumped | Sent | Included | Unmined | Confirmed | Overtaken | Abandoned


def advance(tx: JournalTx, event: Event) -> JournalTx:
    """Return the transaction after `event`; the same object if the event adds nothing.

    Raises:
        InvariantError: A bug: a second nonce, or a new version of an unsigned transaction.
    """
    return _RULES[type(event)](tx, event)


def _signed(tx: JournalTx, event: Signed) -> JournalTx:
    if tx.status is not TxStatus.INTENT:
        raise InvariantError(f"transaction {tx.tx_id} has a nonce already: {tx.nonce}")
    return replace(
        tx,
        status=TxStatus.SIGNED,
        nonce=event.nonce,
        gas=event.gas,
        versions=(event.version,),
    )


def _bumped(tx: JournalTx, event: Bumped) -> JournalTx:
    if not tx.versions:
        raise InvariantError(f"transaction {tx.tx_id} was never signed")
    if not tx.is_unmined or event.version.fee.max_fee_wei <= tx.newest.fee.max_fee_wei:
        return tx  # no node would accept it
    # no node has the new bytes yet: they are sent like the first
    return replace(tx, status=TxStatus.SIGNED, versions=(*tx.versions, event.version))


def _sent(tx: JournalTx, _: Sent) -> JournalTx:
    return replace(tx, status=TxStatus.SENT) if tx.status is TxStatus.SIGNED else tx


def _included(tx: JournalTx, event: Included) -> JournalTx:
    inclusion = event.inclusion
    if not any(version.tx_hash == inclusion.tx_hash for version in tx.versions):
        raise InvariantError(f"transaction {tx.tx_id} has no version 0x{inclusion.tx_hash.hex()}")
    if not tx.is_open or tx.inclusion == inclusion:
        return tx
    status = TxStatus.MINED if inclusion.is_success else TxStatus.REVERTED
    return replace(tx, status=status, inclusion=inclusion, reason=event.reason)


def _unmined(tx: JournalTx, _: Unmined) -> JournalTx:
    if tx.inclusion is None:
        return tx
    return replace(tx, status=TxStatus.SENT, inclusion=None, reason="")


def _confirmed(tx: JournalTx, _: Confirmed) -> JournalTx:
    is_mined = tx.status in (TxStatus.MINED, TxStatus.REVERTED)
    return replace(tx, status=TxStatus.FINAL) if is_mined else tx


def _overtaken(tx: JournalTx, _: Overtaken) -> JournalTx:
    return replace(tx, status=TxStatus.REPLACED) if tx.is_unmined else tx


def _abandoned(tx: JournalTx, event: Abandoned) -> JournalTx:
    """Only a transaction refused at its first broadcast: later some node may hold a copy."""
    if tx.status not in (TxStatus.INTENT, TxStatus.SIGNED) or len(tx.versions) > 1:
        return tx
    return replace(tx, status=TxStatus.ABANDONED, nonce=None, reason=event.reason)


# Keyed by the event's own type: an event without a rule is a KeyError in the first test.
_RULES: Final[dict[type, Callable[[JournalTx, Any], JournalTx]]] = {
    Signed: _signed,
    Bumped: _bumped,
    Sent: _sent,
    Included: _included,
    Unmined: _unmined,
    Confirmed: _confirmed,
    Overtaken: _overtaken,
    Abandoned: _abandoned,
}


def look_for(
    tx: JournalTx,
    receipts: Mapping[TxHash, Receipt],
    *,
    head_number: int,
    nonces_used: int,
    confirmations: int,
) -> tuple[Event, ...]:
    """Return the events that one look at the chain shows for a transaction.

    `nonces_used` must be read before the receipts, so that a block mined in between cannot make a
    mined transaction look replaced. A node that lags behind the known block shows nothing (F-72). A
    missing receipt is never a failure (F-75).
    """
    if tx.nonce is None:
        return ()
    receipt = next((receipts[v.tx_hash] for v in tx.versions if v.tx_hash in receipts), None)
    if receipt is not None:
        inclusion = Inclusion(
            tx_hash=receipt.tx_hash,
            is_success=receipt.is_success,
            block_number=receipt.block_number,
            block_hash=receipt.block_hash,
            gas_used=receipt.gas_used,
            gas_price_wei=receipt.gas_price_wei,
        )
        found: list[Event] = [] if inclusion == tx.inclusion else [Included(inclusion)]
        if head_number - receipt.block_number + 1 >= confirmations:
            found.append(Confirmed())
        return tuple(found)
    if tx.inclusion is not None:
        return () if head_number < tx.inclusion.block_number else (Unmined(),)
    return (Overtaken(),) if tx.nonce < nonces_used else ()


class NodeAnswer(enum.Enum):
    """The meaning of a node's refusal of a transaction."""

    KNOWN = enum.auto()
    """The node has these bytes already: as good as accepted (F-82)."""
    NONCE_USED = enum.auto()
    """The chain is past this nonce, by a version of this transaction or by another one."""
    UNDERPRICED = enum.auto()
    """The node holds another transaction with this nonce, or requires a higher bid."""
    REFUSED = enum.auto()
    """Any other refusal: too little ether, too much gas, a full pool."""


_ANSWERS: Final = (
    ("alreadyknown", NodeAnswer.KNOWN),
    ("alreadyimported", NodeAnswer.KNOWN),
    ("alreadyexists", NodeAnswer.KNOWN),
    ("knowntransaction", NodeAnswer.KNOWN),
    ("noncetoolow", NodeAnswer.NONCE_USED),
    ("oldnonce", NodeAnswer.NONCE_USED),
    ("invalidnonce", NodeAnswer.NONCE_USED),
    ("underpriced", NodeAnswer.UNDERPRICED),
    ("feetoolow", NodeAnswer.UNDERPRICED),
    ("replacementnotallowed", NodeAnswer.UNDERPRICED),
    ("lessthanblockbasefee", NodeAnswer.UNDERPRICED),
)


def classify_refusal(message: str) -> NodeAnswer:
    """Read a node's message: geth, Erigon, Nethermind, Besu, reth and Anvil word it differently."""
    said = "".join(char for char in message.lower() if char.isalpha())
    return next((answer for words, answer in _ANSWERS if words in said), NodeAnswer.REFUSED)
