"""What the chain shows: balances, transactions, the channel's last state."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from channel.types import Address, ChannelFact, ChannelId, tx_hash
from mpp_session.demo.report import Balances, Transaction
from settlement import abi
from settlement.dev.devnet import GASLESS, Devnet
from settlement.escrow.reader import EscrowReader

__all__ = ["Movement", "read_balances", "read_channel", "read_movements", "read_transactions"]

_NAMES: Final = {
    abi.approve.selector: "approve",
    abi.open_.selector: "open",
    abi.open_with_authorization.selector: "open",
    abi.open_with_permit2.selector: "open",
    abi.top_up.selector: "top-up",
    abi.top_up_with_authorization.selector: "top-up",
    abi.top_up_with_permit2.selector: "top-up",
    abi.settle.selector: "settle",
    abi.close.selector: "close",
    abi.transfer_with_authorization.selector: "transfer",
}


class Movement(msgspec.Struct, frozen=True):
    """One transaction, and the tokens that it moved: sender, recipient, base units."""

    transaction: Transaction
    transfers: tuple[tuple[bytes, bytes, int], ...]

    def involves(self, account: Address) -> bool:
        """Whether it moved tokens from or to an account."""
        return any(account in (sender, recipient) for sender, recipient, _ in self.transfers)

    def moved(self, sender: Address, recipient: Address) -> int:
        """Return the base units that it moved from one account to another."""
        return sum(one[2] for one in self.transfers if one[:2] == (sender, recipient))


async def read_balances(devnet: Devnet) -> Balances:
    """Return the tokens of payer, payee and escrow at the head, and the payer's ether."""
    accounts = devnet.values.accounts
    payer = accounts[GASLESS].address
    return Balances(
        payer=await devnet.token_balance(payer),
        payer_wei=await devnet.rpc.balance_wei(payer),
        payee=await devnet.token_balance(accounts["payee"].address),
        escrow=await devnet.token_balance(devnet.values.escrow),
    )


async def read_channel(devnet: Devnet, channel_id: ChannelId) -> ChannelFact | None:
    """Return the channel from the escrow's storage."""
    return await EscrowReader(devnet.rpc, devnet.values.escrow).read_channel(channel_id)


async def read_transactions(devnet: Devnet, *, after_block: int) -> list[Transaction]:
    """Return every transaction after a block, by any sender, in order."""
    return [one.transaction for one in await read_movements(devnet, after_block=after_block)]


async def read_movements(devnet: Devnet, *, after_block: int) -> list[Movement]:
    """Return every transaction after a block, by any sender, in order, with what it moved."""
    head = await devnet.rpc.block()
    names = {account.address: name for name, account in devnet.values.accounts.items()}
    found = []
    for number in range(after_block + 1, head.number + 1):
        block = await devnet.rpc.command("eth_getBlockByNumber", hex(number), True)  # noqa: FBT003
        found += [await _read(devnet, names, sent) for sent in block["transactions"]]
    return found


async def _read(devnet: Devnet, names: Mapping[Address, str], sent: Mapping[str, Any]) -> Movement:
    sender = Address(bytes.fromhex(sent["from"][2:]))
    receipt = await devnet.rpc.receipt(tx_hash(bytes.fromhex(sent["hash"][2:])))
    if receipt is None:
        msg = "a mined transaction has a receipt"
        raise RuntimeError(msg)
    name = _NAMES.get(bytes.fromhex(sent["input"][2:10]), "unknown")
    transaction = Transaction(
        name=name if receipt.is_success else f"{name} (reverted)",
        sender=names.get(sender, "unknown"),
        tx_hash=receipt.tx_hash,
        gas_used=receipt.gas_used,
        fee_wei=receipt.cost_wei,
    )
    transfers = tuple(
        (log.topics[1][12:], log.topics[2][12:], int.from_bytes(log.payload))
        for log in receipt.logs
        if log.address == devnet.values.token and log.topics[0] == abi.TRANSFER_TOPIC
    )
    return Movement(transaction, transfers)
