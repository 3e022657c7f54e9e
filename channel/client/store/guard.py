"""What must agree before a payment store commits money: the seam for a wallet's policy.

A guard is called in the store's own thread, inside the transaction that it decides about. What it
reads and writes on the connection is committed together with the change, or not at all. To refuse,
it raises an `AgentError`: then nothing is stored, nothing is signed afterwards, and `refuse` is
called in a transaction of its own before the caller sees the error.
"""

import sqlite3
from typing import Protocol

from channel.client.policy.context import PaymentContext
from channel.client.store.charge import ChargeRecord
from channel.client.store.record import ChannelRecord
from channel.errors import AgentError

__all__ = ["Guard"]


class Guard(Protocol):
    """Decides about the payments of one agent."""

    def deposit(
        self,
        db: sqlite3.Connection,
        before: ChannelRecord | None,
        after: ChannelRecord,
        context: PaymentContext | None,
    ) -> None:
        """Agree that a channel is opened (`before` is None) or that `locked` grows.

        Called with equal records before a deposit that was agreed to is signed or sent anew, such
        as after a restart.
        """

    def sign(
        self,
        db: sqlite3.Connection,
        before: ChannelRecord,
        after: ChannelRecord,
        context: PaymentContext | None,
    ) -> None:
        """Agree that a request is paid from a channel, and that `signed` grows.

        Called for every voucher, also for one whose amount was signed before: then the records are
        equal. If it refuses an amount that looks ahead, what it wrote is undone, and it is called
        again for the least amount, in the same transaction.
        """

    def charge(
        self, db: sqlite3.Connection, record: ChargeRecord, context: PaymentContext | None
    ) -> None:
        """Agree to a payment for one request."""

    def change(self, db: sqlite3.Connection, before: ChannelRecord, after: ChannelRecord) -> None:
        """Note any other change of a channel, such as its end. Must not refuse."""

    def refuse(
        self, db: sqlite3.Connection, context: PaymentContext | None, error: AgentError
    ) -> AgentError:
        """Record that a payment was refused, by this guard or by the store.

        Returns the error that the caller gets: the same, or one that says more. Must not raise.
        """
