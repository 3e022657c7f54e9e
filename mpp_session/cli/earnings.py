"""`mpp-session earnings`: what a provider has earned."""

from typing import TYPE_CHECKING, Annotated, Final

import typer

from mpp_session.cli.books import Books, name_tokens, read_channels
from mpp_session.cli.options import ConfigPath, Devnet, LedgerUrl
from mpp_session.cli.output import count, format_id, print_json, print_pairs, say

if TYPE_CHECKING:
    from mpp_session.operator.earnings import GasSpent, Payments

__all__ = ["NAME", "command"]

NAME: Final = "earnings"

_AMOUNTS: Final = ("delivered", "accepted", "settled", "at_risk", "lost", "refunded")


def command(
    *,
    config: ConfigPath = None,
    devnet: Devnet = None,
    ledger: LedgerUrl = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: amounts in base units, gas in wei.")
    ] = False,
) -> None:
    """Add up what was delivered, paid out and refunded, by token.

    Of all channels in the books, the ended ones too, and of single payments. Where the settings
    name the payee it is of that payee alone, with the gas that settles, closes and payers' deposits
    cost in the last 90 days. No key is needed, and the gateway may be running.

    \b
    mpp-session earnings --config gateway.toml
    mpp-session earnings --devnet devnet.json --json
    """  # noqa: D301 -- \b keeps the examples' lines apart
    from mpp_session.agent.amounts import format_ether
    from mpp_session.operator.earnings import add_up
    from mpp_session.settings import parse_address

    books = Books.find(config, ledger, devnet)
    states = read_channels(books, open_only=False)
    payee = books.values.get("payee.address")
    earned = add_up(states, None if payee is None else parse_address(str(payee)))
    gas, payments = _read_gas(books), _read_payments(books)
    if as_json:
        rows = [
            {
                "chain_id": each.chain_id,
                "token": each.token,
                "channels": each.channels,
                "open": each.open,
                **{name: str(getattr(each, name)) for name in _AMOUNTS},
            }
            for each in earned
        ]
        spent = None
        if gas is not None:
            spent = {"payouts_wei": str(gas.payouts_wei), "deposits_wei": str(gas.deposits_wei)}
        single = None
        if payments is not None:
            amounts = {"paid": str(payments.paid), "credit": str(payments.credit)}
            single = {"count": payments.count, **amounts}
        print_json({"earned": rows, "payments": single, "gas": spent})
        return
    if not earned:
        say("no channels")
    units = name_tokens(books, states, *(() if payments is None else (payments.token,)))
    for each in earned:
        say(f"token {format_id(each.token)} on chain {each.chain_id}", style="bold")
        print_pairs(
            [
                ("channels", f"{count(each.channels, 'channel')}, {each.open:,} open"),
                *[
                    (name.replace("_", " "), units[each.token].format(getattr(each, name)))
                    for name in _AMOUNTS
                ],
            ]
        )
    if payments is not None and payments.count:
        unit = units[payments.token]
        say("single payments", style="bold")
        print_pairs(
            [
                ("payments", f"{payments.count:,}"),
                ("paid", unit.format(payments.paid)),
                ("credit of payers", unit.format(payments.credit)),
            ]
        )
    if gas is not None:
        print_pairs(
            [
                ("gas of settles and closes", format_ether(gas.payouts_wei)),
                ("gas of payers' deposits", format_ether(gas.deposits_wei)),
            ]
        )


def _read_payments(books: Books) -> "Payments | None":
    import asyncio

    from mpp_session.operator.earnings import read_payments
    from mpp_session.settings import parse_address

    chain_id, token = books.values.get("chain.id"), books.values.get("chain.token")
    if token is None or not str(chain_id).isdecimal():
        return None
    work = read_payments(books.url, chain_id=int(str(chain_id)), token=parse_address(str(token)))
    return asyncio.run(work)


def _read_gas(books: Books) -> "GasSpent | None":
    import asyncio

    from mpp_session.operator.earnings import read_gas
    from mpp_session.settings import parse_address

    values = books.values
    account = values.get("relayer.address") or values.get("payee.address")
    chain_id, escrow = values.get("chain.id"), values.get("chain.escrow")
    if account is None or escrow is None or not str(chain_id).isdecimal():
        return None
    work = read_gas(
        books.url,
        chain_id=int(str(chain_id)),
        account=parse_address(str(account)),
        escrow=parse_address(str(escrow)),
    )
    return asyncio.run(work)
