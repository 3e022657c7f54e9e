"""A demo's figures that add up, to take apart in tests."""

from channel.types import tx_hash
from mpp_session.agent.amounts import TokenUnit
from mpp_session.demo.report import Answer, Balances, DemoReport, Transaction

__all__ = ["report"]


def report() -> DemoReport:
    """100 tokens at 25 base units from a deposit of 4000."""
    answers = tuple(Answer("Why?", "Because.", tokens, tokens, 0.5) for tokens in (60, 40))
    transactions = tuple(
        Transaction(name, sender, tx_hash(bytes([number]) * 32), 50_000, 10**14)
        for number, (name, sender) in enumerate([("open", "payee"), ("close", "payee")])
    )
    return DemoReport(
        token=TokenUnit("dUSD", 6),
        unit_price=25,
        answers=answers,
        vouchers_signed=7,
        signature_checks=7,
        transactions=transactions,
        deposit=4000,
        paid=2500,
        receipt_spent=2500,
        before=Balances(payer=10_000, payer_wei=0, payee=0, escrow=0),
        after=Balances(payer=7500, payer_wei=0, payee=2500, escrow=0),
    )
