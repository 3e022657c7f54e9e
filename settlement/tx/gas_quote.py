"""What a call that a worker has not ordered yet would cost: asked with its simulation."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from channel.types import Address
from settlement.node import questions
from settlement.node.transport import Call
from settlement.node.values import parse_block, parse_bytes, parse_count, parse_price
from settlement.types import BlockRef

__all__ = ["GasQuote", "ask_gas_quote", "parse_gas_quote"]

_GAS_MARGIN_PERCENT: Final = 25
_FEE_HEADROOM: Final = 2


class GasQuote(msgspec.Struct, frozen=True):
    """The cost of a call whose simulation succeeded."""

    gas: int
    head: BlockRef
    price_wei: int
    """Wei per unit of gas now, with the tip."""

    def budget_wei(self, price_max_wei: int) -> int:
        """Return the most that the transaction may cost, at a price of at most `price_max_wei`."""
        gas = self.gas * (100 + _GAS_MARGIN_PERCENT) // 100
        bid_wei = max(_FEE_HEADROOM * _FEE_HEADROOM * self.price_wei, 1)
        return gas * min(price_max_wei, bid_wei)


def ask_gas_quote(sender: Address, to: Address, calldata: bytes) -> list[Call]:
    """Return the questions of a quote, for one round trip; a refused simulation is raised first."""
    request = {
        "from": "0x" + sender.hex(),
        "to": "0x" + to.hex(),
        "data": "0x" + calldata.hex(),
    }
    return [
        questions.call(request),
        questions.estimate_gas(request),
        questions.block(),
        questions.TIP,
    ]


def parse_gas_quote(said: Sequence[Any]) -> GasQuote:
    """Return the quote in the answers to `ask_gas_quote`."""
    answer, gas, block, tip = said
    parse_bytes(answer)
    head = parse_block(block)
    price_wei = (head.base_fee_wei or 0) + parse_price(tip)
    return GasQuote(gas=parse_count(gas), head=head, price_wei=price_wei)
