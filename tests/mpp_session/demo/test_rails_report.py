"""The demo of the rails succeeds only when payers, chain and books agree."""

import io
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from rich.console import Console

from channel.types import TokenUnit, tx_hash
from mpp_session.demo.rails_report import BookEntry, RailsReport, Sale, Wealth
from mpp_session.demo.report import Transaction

PRICE = 10_000


def sent(number: int, name: str) -> Transaction:
    return Transaction(name, "payee", tx_hash(bytes([number]) * 32), 78_000, 78_000 * number)


def name_of(transaction: Transaction) -> str:
    return f"0x{transaction.tx_hash.hex()}"


def sale(client: str, *transactions: Transaction) -> Sale:
    is_session = len(transactions) > 1
    return Sale(
        client=client,
        rail="session" if is_session else "charge",
        account=f"0x{client}",
        status=200,
        error="",
        reference="0xchannel" if is_session else name_of(transactions[0]),
        wealth=Wealth(5 * PRICE, 4 * PRICE),
        transactions=transactions,
        arrived=PRICE,
    )


def report() -> RailsReport:
    """A charge and a session, each of the price."""
    sales = sale("mppx", sent(1, "transfer")), sale("ours", sent(2, "open"), sent(3, "close"))
    books = [
        BookEntry("payment", str(PRICE), "0xmppx", name_of(sent(1, "")), "served"),
        BookEntry("close", str(PRICE), "0xours", name_of(sent(3, ""))),
        *[
            BookEntry("gas", str(one.fee_wei), "0xpayee", name_of(one), "mined", one.gas_used)
            for each in sales
            for one in each.transactions
        ],
    ]
    return RailsReport(
        token=TokenUnit("USDC", 6),
        price=PRICE,
        sales=sales,
        payee=Wealth(0, 2 * PRICE),
        escrow=Wealth(0, 0),
        strays=(),
        books=tuple(books),
    )


def test_figures_that_balance_have_no_mismatch() -> None:
    assert report().mismatches() == []


def spoil(number: int, **changes: object) -> Callable[[RailsReport], RailsReport]:
    """Change one sale."""

    def spoiled(r: RailsReport) -> RailsReport:
        sales = list(r.sales)
        sales[number] = replace(sales[number], **changes)
        return replace(r, sales=tuple(sales))

    return spoiled


WRONG: list[tuple[str, Callable[[RailsReport], RailsReport]]] = [
    ("mppx .* was served: TypeError", spoil(0, status=0, error="TypeError")),
    ("paid the price and no more", spoil(0, wealth=Wealth(2, 1))),
    ("payee got from mppx", spoil(0, arrived=PRICE - 1)),
    ("never had ether", spoil(0, wealth=Wealth(5 * PRICE, 4 * PRICE, 1, 0))),
    ("names its one transfer", spoil(0, reference=name_of(sent(3, "close")))),
    ("names its one transfer", spoil(0, transactions=())),
    ("was opened and closed", spoil(1, transactions=(sent(2, "open"), sent(3, "top-up")))),
    ("after - before [+] the escrow's rest", lambda r: replace(r, payee=Wealth(0, PRICE))),
    ("after - before [+] the escrow's rest", lambda r: replace(r, escrow=Wealth(0, 1))),
    ("what the payee gained", lambda r: replace(r, payee=Wealth(0, 3 * PRICE))),
    ("one entry for each sale", lambda r: replace(r, books=r.books[1:])),
    ("have the payment of mppx", lambda r: replace(r, books=(r.books[1], *r.books[1:]))),
    ("the gas of each transaction", lambda r: replace(r, books=r.books[:-1])),
    ("belongs to a sale", lambda r: replace(r, strays=(sent(4, "approve"),))),
    (
        "only the payee sent",
        spoil(0, transactions=(replace(sent(1, "transfer"), sender="stranger"),)),
    ),
]


@pytest.mark.parametrize(("said", "spoil_it"), WRONG)
def test_each_figure_that_does_not_balance_is_said(
    said: str, spoil_it: Callable[[RailsReport], RailsReport]
) -> None:
    mismatches = "\n".join(spoil_it(report()).mismatches())
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(mismatches)


def test_the_table_has_a_line_for_each_transaction_and_the_sums() -> None:
    console = Console(file=io.StringIO(), width=120)
    failed = spoil(0, transactions=(), error="TypeError: [/x] failed")(report())
    for shown in (report(), failed):
        console.print(shown.table())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for figure in ("paid, USDC", "0.020000", "open 0x02020202..", "234,000", "[/x] failed"):
        assert figure in text
