"""Transactions, versions and inclusions for tests of the journal, with what does not matter left
out. No key has signed the bytes here."""

from channel.types import Address, TxHash
from settlement.tx.fees import Fee
from settlement.tx.state import Inclusion, Intent, JournalTx, Purpose, Signed, TxVersion

ESCROW = Address(b"\xe5" * 20)

INTENT = Intent(
    to=ESCROW,
    calldata=b"\x0d\x65\xc5\x1d" + b"c" * 96,
    value_wei=7,
    purpose=Purpose.CLOSE,
    budget_wei=10**16,
    deadline=1_800_000_900,
)


def version(number: int, *, fee: int = 100) -> TxVersion:
    tx_hash = TxHash(number.to_bytes(32, "big"))
    return TxVersion(tx_hash=tx_hash, fee=Fee(fee, fee // 10), raw=b"raw" + tx_hash, signed_at=9)


def signed(nonce: int, number: int = 1, *, fee: int = 100) -> Signed:
    return Signed(nonce, 60_000, version(number, fee=fee))


def inclusion(number: int = 1, *, is_success: bool = True, block: int = 50) -> Inclusion:
    return Inclusion(
        tx_hash=TxHash(number.to_bytes(32, "big")),
        is_success=is_success,
        block_number=block,
        block_hash=block.to_bytes(32, "big"),
        gas_used=55_000,
        gas_price_wei=12,
    )


def wanted(tx_id: int = 1) -> JournalTx:
    return JournalTx(tx_id=tx_id, intent=INTENT)
