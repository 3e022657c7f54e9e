"""The demo's figures, compared with the chain to the base unit.

Three sources report the payment: the agent's own count, the provider's receipts, and the chain. The
demo succeeds only if all three agree.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
from rich.table import Table

from channel.tariff import Tariff, Usage, format_rate
from channel.types import TxHash
from mpp_session.agent.amounts import TokenUnit
from mpp_session.demo.events import Answered, Refused

__all__ = ["Balances", "DemoReport", "Trail", "TrailStep", "Transaction"]

_OVERSPEND: Final = "request_exceeded"


class Transaction(msgspec.Struct, frozen=True):
    """One transaction in the chain's blocks."""

    name: str
    sender: str
    tx_hash: TxHash
    gas_used: int
    fee_wei: int


class Balances(msgspec.Struct, frozen=True):
    """Balances at one block: the parties' tokens in base units, the payer's ether in wei."""

    payer: int
    payer_wei: int
    payee: int
    escrow: int


class TrailStep(msgspec.Struct, frozen=True):
    """One line of the payment's story in the wallet's audit trail."""

    seq: int
    kind: str
    text: str


class Trail(msgspec.Struct, frozen=True):
    """What the wallet's audit trail says of the channel, and whether the trail is whole."""

    steps: tuple[TrailStep, ...]
    verdict: str
    is_good: bool


def _usage(answer: Answered) -> Usage:
    return {"input_token": answer.input_tokens, "output_token": answer.output_tokens}


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of one demo."""

    token: TokenUnit
    tariff: Tariff
    answers: tuple[Answered, ...]
    refused: tuple[Refused, ...]
    """What the wallet refused to pay."""
    approved: int
    """What the wallet's owner approved."""
    trail: Trail
    vouchers_signed: int
    signature_checks: int
    transactions: tuple[Transaction, ...]
    deposit: int
    """From the escrow's storage."""
    paid: int
    """`settled` in the escrow's storage, after the close."""
    receipt_spent: int
    """`spent` of the last receipt."""
    before: Balances
    after: Balances

    @property
    def refunded(self) -> int:
        """The refund of the close."""
        return self.deposit - self.paid

    def used(self, kind: str) -> int:
        """Return the tokens of a kind that the model server reported for all answers."""
        return sum(_usage(answer)[kind] for answer in self.answers)

    def mismatches(self) -> list[str]:
        """Return every claim about the amounts that does not hold; empty if all agree."""
        return [sentence for sentence, holds in self._claims() if not holds]

    def _claims(self) -> Iterator[tuple[str, bool]]:
        before, after, paid = self.before, self.after, self.paid
        yield "the payer is short of exactly what was paid", before.payer - after.payer == paid
        yield "the payee has exactly what was paid", after.payee - before.payee == paid
        yield "the escrow holds nothing of it", after.escrow == before.escrow
        yield "the deposit covers what was paid", 0 < paid <= self.deposit
        yield "the chain paid out what the last receipt says", paid == self.receipt_spent
        yield "the answers came to what was paid", paid == sum(one.cost for one in self.answers)
        for answer in self.answers:
            yield "each token of the answer is one unit", answer.units == answer.output_tokens
            exact = self.tariff.cost(_usage(answer))
            yield "each token was paid at its price, input and output", answer.cost == exact
        codes = [refusal.code for refusal in self.refused]
        yield "the wallet refused one request, which would overspend", codes == [_OVERSPEND]
        yield "the owner approved one deposit", self.approved == 1
        kinds = {step.kind for step in self.trail.steps}
        yield "the trail tells the payment", kinds >= {"approval", "open", "voucher", "close"}
        yield f"the audit trail is whole ({self.trail.verdict})", self.trail.is_good
        sent = [(transaction.name, transaction.sender) for transaction in self.transactions]
        yield "the payer never had ether", before.payer_wei == after.payer_wei == 0
        yield (
            "only the payee sent transactions: open and close",
            sent
            == [
                ("open", "payee"),
                ("close", "payee"),
            ],
        )

    def table(self) -> Table:
        """Return the figures for people."""
        table = Table(title="What it came to", title_justify="left", show_header=False)
        table.add_column()
        table.add_column(justify="right")
        for name, value in self.rows():
            table.add_row(name, value)
            if name in {
                "signature checks by the provider",
                "gas in all",
                "refunded",
            }:
                table.add_section()
        return table

    def rows(self) -> Iterator[tuple[str, str]]:
        """Return name and value of each figure, formatted for people."""
        show = self.token.format
        for kind, name in (("input_token", "input tokens"), ("output_token", "output tokens")):
            rate = self.tariff.rate_of(kind)
            if rate is not None:
                yield name, f"{self.used(kind):,} at {format_rate(rate, self.token)}"
        yield "requests refused by the wallet", f"{len(self.refused):,}"
        yield "deposits approved by its owner", f"{self.approved:,}"
        yield "vouchers signed", f"{self.vouchers_signed:,}"
        yield "signature checks by the provider", f"{self.signature_checks:,}"
        wei = f"{self.before.payer_wei:,} wei before, {self.after.payer_wei:,} wei after"
        yield "ether of the payer", wei
        for one in self.transactions:
            yield f"{one.name}, gas paid by the {one.sender}", f"{one.gas_used:,}"
        gas = sum(transaction.gas_used for transaction in self.transactions)
        fee_wei = sum(transaction.fee_wei for transaction in self.transactions)
        yield "gas in all", f"{gas:,} ({TokenUnit('ETH', 18).format(fee_wei)})"
        yield "deposit", show(self.deposit)
        yield "paid", show(self.paid)
        yield "refunded", show(self.refunded)
        for party in ("payer", "payee"):
            before, after = getattr(self.before, party), getattr(self.after, party)
            yield f"{party} before", show(before)
            yield f"{party} after", f"{show(after - before, signed=True)} = {show(after)}"
