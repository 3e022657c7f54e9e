"""A demo's figures that add up, to take apart in tests."""

from channel.tariff import Rate, Tariff
from channel.types import tx_hash
from mpp_session.agent.amounts import TokenUnit
from mpp_session.demo.events import Answered, Refused
from mpp_session.demo.report import Balances, DemoReport, Trail, TrailStep, Transaction

__all__ = ["report"]


def report() -> DemoReport:
    """Two answers of 0.1 base units for a token read and 0.4 for one made, rounded up: 2500."""
    tariff = Tariff(
        (Rate("output_token", 400_000, 10**6), Rate("input_token", 100_000, 10**6)),
    )
    answers = tuple(
        Answered("Why?", "Because.", read, made, made, cost, 0.5)
        for read, made, cost in ((43, 3989, 1600), (1000, 2000, 900))
    )
    transactions = tuple(
        Transaction(name, sender, tx_hash(bytes([number]) * 32), 50_000, 10**14)
        for number, (name, sender) in enumerate([("open", "payee"), ("close", "payee")])
    )
    return DemoReport(
        token=TokenUnit("dUSD", 6),
        tariff=tariff,
        answers=answers,
        refused=(Refused("request_exceeded", "too much"),),
        approved=1,
        trail=Trail(
            tuple(
                TrailStep(seq, kind, "")
                for seq, kind in enumerate(("approval", "open", "voucher", "close"))
            ),
            "unchanged",
            is_good=True,
        ),
        vouchers_signed=7,
        signature_checks=7,
        transactions=transactions,
        deposit=4000,
        paid=2500,
        receipt_spent=2500,
        before=Balances(payer=10_000, payer_wei=0, payee=0, escrow=0),
        after=Balances(payer=7500, payer_wei=0, payee=2500, escrow=0),
    )
