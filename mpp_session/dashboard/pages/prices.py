"""The prices that the gateway asks now (pure)."""

from collections.abc import Sequence

import msgspec

from mpp_session.dashboard.html import Child, Markup, el, join
from mpp_session.dashboard.show import empty, table

__all__ = ["PriceShown", "prices"]


class PriceShown(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the price table, for people."""

    model: str
    endpoint: str
    price: str
    note: str = ""


def prices(rows: Sequence[PriceShown], *, can_reload: bool = True) -> Markup:
    """Return the page's content; the first row that fits a request counts."""
    if not rows:
        return empty("No price is set.", "Set `price` or `prices` in the gateway's settings.")
    cells: list[list[Child]] = [
        [el("code", row.model), el("code", row.endpoint), row.price, row.note] for row in rows
    ]
    has_notes = any(row.note for row in rows)
    columns = ["Model", "Endpoint", "Price", "Note"]
    if not has_notes:
        columns, cells = columns[:-1], [row[:-1] for row in cells]
    return join(
        el("p", "The first row that fits a request counts."),
        table(columns, cells, caption="Prices, in the order in which they are tried"),
        el(
            "p",
            el("a", "Reload prices", href="/actions/reload", class_="button"),
            class_="actions after",
        )
        if can_reload
        else None,
    )
