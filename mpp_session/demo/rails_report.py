"""The figures of the rails' demo: what each client paid, on the chain and in the books.

The payers' balances, the transfers in the chain's blocks and the provider's export report each
payment. The demo succeeds only if all agree, to the base unit and to the wei.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
from rich.table import Table
from rich.text import Text

from channel.types import TokenUnit
from mpp_session.demo.clients import Rail
from mpp_session.demo.report import Transaction

__all__ = ["BookEntry", "RailsReport", "Sale", "Wealth"]

_EARNINGS: Final = ("payment", "settlement", "close")
_HEX_SHOWN: Final = 10


class Wealth(msgspec.Struct, frozen=True):
    """What an account has before and after the demo: base units of the token, and wei."""

    before: int
    after: int
    before_wei: int = 0
    after_wei: int = 0

    @property
    def gained(self) -> int:
        """Base units by which it is richer."""
        return self.after - self.before


class BookEntry(msgspec.Struct, frozen=True):
    """One line of the provider's `export`."""

    kind: str
    base_units: str
    """An amount in base units, for gas in wei."""
    payer: str = ""
    transaction: str = ""
    outcome: str = ""
    gas_used: int = 0


class Sale(msgspec.Struct, frozen=True, kw_only=True):
    """One client, what it got, and what the chain shows of its payment."""

    client: str
    rail: Rail
    account: str
    """Its address, in hexadecimal."""
    status: int
    error: str
    reference: str
    """What its receipt names: the transaction of a single payment, the channel of a session."""
    wealth: Wealth
    transactions: tuple[Transaction, ...]
    """Those that moved its tokens, in order."""
    arrived: int
    """Base units that these moved to the payee."""

    @property
    def paid(self) -> int:
        """Base units by which the client is poorer."""
        return -self.wealth.gained

    @property
    def gas_used(self) -> int:
        """Gas of its transactions."""
        return sum(one.gas_used for one in self.transactions)


class RailsReport(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of one run."""

    token: TokenUnit
    price: int
    sales: tuple[Sale, ...]
    payee: Wealth
    escrow: Wealth
    strays: tuple[Transaction, ...]
    """Transactions since the shop opened that moved no client's tokens."""
    books: tuple[BookEntry, ...]

    def mismatches(self) -> list[str]:
        """Return every claim that does not hold; empty if all agree."""
        return [sentence for sentence, holds in self._claims() if not holds]

    def _claims(self) -> Iterator[tuple[str, bool]]:
        for sale in self.sales:
            yield from self._claims_of(sale)
        paid = sum(sale.paid for sale in self.sales)
        yield (
            "the payers' balances before - after = the payee's after - before + the escrow's rest",
            paid == self.payee.gained + self.escrow.gained,
        )
        yield "the transfers on the chain are what the payee gained", paid == self._arrived()
        entries = self._earnings()
        yield "the books have one entry for each sale", len(entries) == len(self.sales)
        earned = sum(int(entry.base_units) for entry in entries)
        yield "the books earned what the payee gained", earned == self.payee.gained
        yield "the books have the gas of each transaction", self._gas_in_books() == self._fees()
        yield "each transaction belongs to a sale", not self.strays
        senders = {one.sender for sale in self.sales for one in sale.transactions}
        yield "only the payee sent transactions", senders == {"payee"}

    def _claims_of(self, sale: Sale) -> Iterator[tuple[str, bool]]:
        who = f"{sale.client} ({sale.rail})"
        yield f"{who} was served{sale.error and ': ' + sale.error}", sale.status == 200  # noqa: PLR2004
        yield f"{who} paid the price and no more", sale.paid == self.price
        yield f"the payee got from {who} what it paid", sale.arrived == sale.paid
        yield f"{who} never had ether", sale.wealth.before_wei == sale.wealth.after_wei == 0
        hashes = [f"0x{one.tx_hash.hex()}" for one in sale.transactions]
        names = [one.name for one in sale.transactions]
        mine = [
            (entry.base_units, entry.transaction, entry.outcome)
            for entry in self.books
            if entry.payer == sale.account and entry.kind in _EARNINGS
        ]
        if sale.rail == "session":
            yield f"{who} was opened and closed on the chain", names == ["open", "close"]
            outcome = ""
        else:
            yield f"the receipt of {who} names its one transfer", hashes == [sale.reference]
            outcome = "served"
        yield (
            f"the books have the payment of {who}, with its transaction",
            mine == [(str(sale.paid), each, outcome) for each in hashes[-1:]],
        )

    def _earnings(self) -> list[BookEntry]:
        return [entry for entry in self.books if entry.kind in _EARNINGS]

    def _arrived(self) -> int:
        return sum(sale.arrived for sale in self.sales)

    def _fees(self) -> dict[str, int]:
        sent = [one for sale in self.sales for one in sale.transactions]
        return {f"0x{one.tx_hash.hex()}": one.fee_wei for one in (*sent, *self.strays)}

    def _gas_in_books(self) -> dict[str, int]:
        return {one.transaction: int(one.base_units) for one in self.books if one.kind == "gas"}

    def table(self) -> Table:
        """Return the sales and their sums for people."""
        table = Table(title="One endpoint, six clients", title_justify="left")
        for name in ("client", "rail"):
            table.add_column(name)
        table.add_column(f"paid, {self.token.symbol}", justify="right")
        for name in ("receipt", "transaction"):
            table.add_column(name)
        table.add_column("gas", justify="right")
        for row in self.rows():
            table.add_row(*map(Text, row))  # a client's error may look like markup
        table.add_section()
        for row in self.sums():
            table.add_row(*map(Text, row))  # a client's error may look like markup
        return table

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Return the cells of each sale, formatted for people; a line for each transaction."""
        for sale in self.sales:
            first = (sale.client, sale.rail, self._show(sale.paid), _short(sale.reference))
            if not sale.transactions:
                yield (*first, sale.error or "none", "")
            for number, one in enumerate(sale.transactions):
                cells = ("", "", "", "") if number else first
                yield (
                    *cells,
                    f"{one.name} {_short('0x' + one.tx_hash.hex())}",
                    f"{one.gas_used:,}",
                )

    def _show(self, amount: int) -> str:
        return TokenUnit("", self.token.decimals).format(amount).strip()

    def sums(self) -> Iterator[tuple[str, ...]]:
        """Return the cells of the sums."""
        show, gas = self._show, sum(sale.gas_used for sale in self.sales)
        paid = sum(sale.paid for sale in self.sales)
        yield ("all payers", "before - after", show(paid), "", "", f"{gas:,}")
        yield ("payee", "after - before", show(self.payee.gained), "", "", "")
        yield ("escrow", "after - before", show(self.escrow.gained), "", "", "")
        earned = sum(int(entry.base_units) for entry in self._earnings())
        booked = sum(entry.gas_used for entry in self.books)
        yield ("books", "earned", show(earned), "", "", f"{booked:,}")


def _short(text: str) -> str:
    return f"{text[:_HEX_SHOWN]}.." if len(text) > _HEX_SHOWN else text or "none"
