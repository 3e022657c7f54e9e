"""The life of one transaction: (transaction, event) -> transaction. Pure, and the only rules.

    INTENT -> SIGNED -> SENT -> MINED ----> FINAL
                                REVERTED -> FINAL
    INTENT, SIGNED -> ABANDONED      refused before anybody can have it: its nonce is free again
    SIGNED, SENT   -> REPLACED       another transaction of the key used the nonce
    MINED, REVERTED, FINAL -> SENT   a reorg took its block back: the same bytes go out again

A nonce is given once, with the bytes. A higher fee adds a version on the same nonce; all versions
are kept, because whichever is mined wins. A revert is known at once and for good (F-76); FINAL
only adds that its block is deep. What does not follow from a state leaves it as it is, so that
an event that is told twice does no harm.
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
    """Where a transaction is. What is below FINAL is still looked after."""

    INTENT = 1
    """Wanted. Nothing is signed."""
    SIGNED = 2
    """Its bytes and nonce are on disk. They may be under way already."""
    SENT = 3
    """A node has taken it."""
    MINED = 4
    """In a block, with success."""
    REVERTED = 5
    """In a block, refused by the contract."""
    FINAL = 6
    """In a block as deep as configured, with success or without."""
    REPLACED = 7
    """Its nonce was used by a transaction that is not ours."""
    ABANDONED = 8
    """Given up before anybody can have had it."""


class Purpose(enum.IntEnum):
    """What a transaction is for; what exactly, its calldata says."""

    OTHER = 0
    SETTLE = 1
    CLOSE = 2


class Intent(msgspec.Struct, frozen=True, gc=False):
    """A transaction that is wanted, and what it may cost."""

    to: Address | None
    """None creates a contract."""
    calldata: bytes
    value_wei: int = 0
    purpose: Purpose = Purpose.OTHER
    budget_wei: int | None = None
    """The most it may cost in all; None for no bound (F-78)."""
    deadline: int = 0
    """Unix seconds of the chain by which it must be mined; 0 for none."""


class TxVersion(msgspec.Struct, frozen=True, gc=False):
    """One signing of a transaction. `raw` never reaches a log (F-103)."""

    tx_hash: TxHash
    fee: Fee
    raw: bytes
    signed_at: int
    """Unix seconds."""

    def __repr__(self) -> str:
        return f"TxVersion(tx_hash=0x{self.tx_hash.hex()}, fee={self.fee})"


class Inclusion(msgspec.Struct, frozen=True, gc=False):
    """Which version was mined, where, and at what cost."""

    tx_hash: TxHash
    is_success: bool
    block_number: int
    block_hash: bytes
    gas_used: int
    gas_price_wei: int


class JournalTx(msgspec.Struct, frozen=True):
    """One transaction of one key, as the journal holds it."""

    tx_id: int
    intent: Intent
    status: TxStatus = TxStatus.INTENT
    nonce: int | None = None
    gas: int = 0
    versions: tuple[TxVersion, ...] = ()
    inclusion: Inclusion | None = None
    reason: str = ""
    """Why it reverted or was given up: a `RevertReason`'s name, or words."""

    @property
    def is_open(self) -> bool:
        """Whether it is still looked after."""
        return self.status < TxStatus.FINAL

    @property
    def is_unmined(self) -> bool:
        """Whether bytes of it are out, or may be, and no block has them."""
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
    """Its nonce is below others that were given, and was given to none itself."""


class Bumped(msgspec.Struct, frozen=True, gc=False):
    """The same nonce was signed again with a higher bid."""

    version: TxVersion


class Sent(msgspec.Struct, frozen=True, gc=False):
    """A node has taken it, now or before."""


class Included(msgspec.Struct, frozen=True, gc=False):
    """A block has it."""

    inclusion: Inclusion
    reason: str = ""


class Unmined(msgspec.Struct, frozen=True, gc=False):
    """The block that had it is no part of the chain any more."""


class Confirmed(msgspec.Struct, frozen=True, gc=False):
    """Its block is as deep as configured."""


class Overtaken(msgspec.Struct, frozen=True, gc=False):
    """The chain has used its nonce, for none of its versions."""


class Abandoned(msgspec.Struct, frozen=True, gc=False):
    """Refused before anybody can have it."""

    reason: str


Event = Signed | Bumped | Sent | Included | Unmined | Confirmed | Overtaken | Abandoned


def advance(tx: JournalTx, event: Event) -> JournalTx:
    """Return the transaction after `event`; the same one if the event says nothing new.

    Raises:
        InvariantError: A bug: a second nonce, or a version of something that has none.
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
        return tx  # no node would take it
    # nobody has the new bytes yet: they are sent like the first
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
    """Only what was refused on its first way out: later a copy may lie with some node."""
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
    """Return what one look at the chain says has become of a transaction.

    `nonces_used` was asked before the receipts, so that a block which came in between cannot
    make a mined transaction look overtaken. A node that lags behind the block we know says
    nothing (F-72). A missing receipt is never a failure (F-75).
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
    """What a node means when it does not take a transaction."""

    KNOWN = enum.auto()
    """It has these bytes: as good as taken (F-82)."""
    NONCE_USED = enum.auto()
    """The chain is past this nonce: a receipt of ours, or somebody else's transaction."""
    UNDERPRICED = enum.auto()
    """It holds another transaction of this nonce, or asks for a higher bid."""
    REFUSED = enum.auto()
    """Any other no: too little ether, too much gas, a full pool."""


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
    """Read a node's words; geth, Erigon, Nethermind, Besu, reth and Anvil differ only in form."""
    said = "".join(char for char in message.lower() if char.isalpha())
    return next((answer for words, answer in _ANSWERS if words in said), NodeAnswer.REFUSED)
