"""What scripts/gas measures, and how."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from eth_hash.auto import keccak
from rich.console import Console
from rich.table import Table

from local_chain import NOBODY, UNLIMITED, Account, Chain, Contract, anvil
from settlement.artifacts import load_artifact
from solidity import CONTRACTS, compile_contracts
from third_party import deploy_usdc

SNAPSHOT: Final = CONTRACTS / "gas-snapshot.json"
GOALS: Final = {
    "open": 93_000,
    "settle": 55_500,
    "close": 63_000,
    "settleBatch100": 17_500,
    "closeBatch100": 26_000,
}
BATCH: Final = 100
DEPOSIT: Final = 10_000_000
PRICE: Final = 1_234_567
PLENTY: Final = 10**15


class Bench:
    """One token, its escrow, and channels on it."""

    def __init__(self, chain: Chain, token: Contract, signer: Account | None) -> None:
        self.chain, self.token, self.signer = chain, token, signer
        artifact = load_artifact("SessionEscrow")
        address = chain.deploy(artifact.bytecode, ["address"], token.address)
        self.escrow = Contract(chain, address, artifact.abi)
        self.payee = Account("payee").address
        chain.impersonate(self.payee)
        for holder in (self.payee, address):
            token.send("mint", holder, PLENTY)
        self._channels = 0

    def payer(self, name: str) -> Account:
        """A payer who holds tokens and has approved the escrow."""
        account = Account(name)
        self.chain.impersonate(account.address)
        self.token.send("mint", account.address, PLENTY)
        self.token.send("approve", self.escrow.address, UNLIMITED, sender=account.address)
        return account

    def open(self, payer: Account) -> tuple[bytes, int]:
        """Open a channel; return its id and the gas used."""
        self._channels += 1
        salt = keccak(b"salt" + bytes([self._channels]))
        signer = self.signer.address if self.signer else NOBODY
        terms = (self.payee, self.token.address, DEPOSIT, salt, signer)
        receipt = self.escrow.send("open", *terms, sender=payer.address)
        ((_, opened),) = self.escrow.events(receipt)
        return opened["channelId"], gas_used(receipt)

    def voucher(self, payer: Account, channel_id: bytes, amount: int) -> tuple[bytes, int, bytes]:
        """Arguments of settle and close, and an entry of a batch."""
        digest = self.escrow.call("getVoucherDigest", channel_id, amount)
        return channel_id, amount, (self.signer or payer).sign(digest)

    def singles(self) -> Iterator[tuple[str, int]]:
        """Each function once, on channels of one payer."""
        payer, payee = self.payer("payer"), self.payee
        settled, gas = self.open(payer)
        yield "open", gas
        for function, amount in (("settle", PRICE), ("settleAgain", 2 * PRICE)):
            voucher = self.voucher(payer, settled, amount)
            receipt = self.escrow.send("settle", *voucher, sender=payee)
            yield function, gas_used(receipt)
        closed, _ = self.open(payer)
        receipt = self.escrow.send("close", *self.voucher(payer, closed, PRICE), sender=payee)
        yield "close", gas_used(receipt)
        forfeited, _ = self.open(payer)
        yield "forfeit", gas_used(self.escrow.send("close", forfeited, 0, b"", sender=payee))
        left, _ = self.open(payer)
        for function, *arguments in (("topUp", left, DEPOSIT), ("requestClose", left)):
            receipt = self.escrow.send(function, *arguments, sender=payer.address)
            yield function, gas_used(receipt)
        self.chain.travel(15 * 60)
        yield "withdraw", gas_used(self.escrow.send("withdraw", left, sender=payer.address))

    def batches(self) -> Iterator[tuple[str, int]]:
        """Gas per channel of both batches, each payer with one channel."""
        payers = [self.payer(f"payer {i}") for i in range(BATCH)]
        channels = [self.open(payer)[0] for payer in payers]
        for function, amount in (("settleBatch", PRICE), ("closeBatch", 2 * PRICE)):
            entries = [self.voucher(*pair, amount) for pair in zip(payers, channels, strict=True)]
            receipt = self.escrow.send(function, entries, sender=self.payee)
            found = [name for name, _ in self.escrow.events(receipt)]
            if (
                found
                != [{"settleBatch": "Settled", "closeBatch": "ChannelClosed"}[function]] * BATCH
            ):
                raise RuntimeError(f"{function} left entries out")
            yield f"{function}{BATCH}", -(-gas_used(receipt) // BATCH)


def gas_used(receipt: dict[str, Any]) -> int:
    """Gas the transaction paid for."""
    return int(receipt["gasUsed"], 16)


def deploy_plain(chain: Chain) -> Contract:
    """OpenZeppelin's ERC-20."""
    output = compile_contracts(["test/mocks/PlainToken.sol"])["PlainToken"]
    code = bytes.fromhex(output["evm"]["bytecode"]["object"])
    return Contract(chain, chain.deploy(code), output["abi"])


def measure() -> dict[str, Any]:
    """The five figures of the goals at the top, everything else in groups below."""
    with anvil("--block-base-fee-per-gas", "0", "--gas-price", "0") as chain:
        plain, usdc = deploy_plain(chain), deploy_usdc(chain)
        groups = {
            "plain token": dict(_both(Bench(chain, plain, None))),
            "plain token, separate signer": dict(Bench(chain, plain, Account("s")).singles()),
            "USDC": dict(_both(Bench(chain, usdc, None))),
            "USDC, separate signer": dict(Bench(chain, usdc, Account("s")).singles()),
        }
    return {name: groups["plain token"][name] for name in GOALS} | {"all": groups}


def _both(bench: Bench) -> Iterator[tuple[str, int]]:
    yield from bench.singles()
    yield from bench.batches()


def print_table(figures: dict[str, Any]) -> None:
    """One row a function, one column a group."""
    groups: dict[str, dict[str, int]] = figures["all"]
    table = Table("gas", "goal", *groups, title="Escrow gas; batches per channel")
    for name in dict.fromkeys(name for group in groups.values() for name in group):
        goal = f"{GOALS[name]:,}" if name in GOALS else ""
        row = [f"{group[name]:,}" if name in group else "" for group in groups.values()]
        table.add_row(name, goal, *row)
    Console().print(table)


def main() -> None:
    """Measure, and print or write."""
    figures = measure()
    text = json.dumps(figures, indent=2) + "\n"
    if "--write" in sys.argv:
        Path(SNAPSHOT).write_text(text, encoding="utf-8")
    if "--json" in sys.argv:
        sys.stdout.write(text)
    else:
        print_table(figures)
