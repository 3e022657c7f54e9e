"""A wallet process whose many agents ask for more than their budget together, until it is killed.

    python -m tests.mpp_session.wallet.books.spender FILE SIGNED SEED STOP_AFTER

It writes one line to the file SIGNED for each amount, after the store has acknowledged it, in the
place of a signature. With STOP_AFTER it kills itself between a commit and the next signature.
"""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

from channel.client.store.sqlite import PaymentStore
from channel.errors import PolicyRefusedError
from mpp_session.wallet.audit.trail import Trail
from tests.mpp_session.wallet.books.small_policy import (
    FREE,
    NOW,
    Agent,
    Envelope,
    Policy,
    context_of,
    deposit,
    key_of,
    open_books,
)

AGENTS = 200
BUDGET = 800
WANTED = 2 * BUDGET // AGENTS
"""By each agent: twice the budget in all."""
POLICY = Policy(
    envelopes={
        "lab": Envelope(amount=BUDGET, window_s=None, parent="company"),
        "company": Envelope(amount=10 * BUDGET),
    },
    agents={f"a{number}": Agent(envelopes=("lab",)) for number in range(1, AGENTS + 1)},
)


class Signatures:
    """What has left the process, one line each."""

    def __init__(self, path: Path, stop_after: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._left = stop_after

    def sign(self, number: int, amount: int, work: str) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(self._file, f"{number} {amount} {work}\n".encode())


async def spend(view: PaymentStore, number: int, draw: random.Random, out: Signatures) -> None:
    """Ask for WANTED in steps, smaller ones where the budget has no room for a greater one."""
    record = await view.load(key_of(number))
    if record is None:
        record = await deposit(view, number, WANTED)
    step, tries = WANTED, 0
    while record.signed < WANTED:
        more = draw.randint(1, min(step, WANTED - record.signed))
        work = f"{os.getpid()}-{number}-{tries}"
        tries += 1
        try:
            record = await view.sign_for(
                record.key,
                lambda current, _left, more=more: current.signed + more,  # type: ignore[misc]
                budget=FREE,
                now=NOW,
                context=context_of(work),
            )
        except PolicyRefusedError:
            if more == 1:
                return
            step = more - 1
        else:
            out.sign(number, record.signed, work)


async def main(path: Path, signed: Path, seed: int, stop_after: int) -> None:
    draw = random.Random(seed)  # noqa: S311 -- a test
    out = Signatures(signed, stop_after)
    books = await open_books(path, POLICY, trail=Trail(), now=lambda: NOW)
    numbers = list(range(1, AGENTS + 1))
    draw.shuffle(numbers)
    await asyncio.gather(
        *(spend(books.view(f"a{number}"), number, draw, out) for number in numbers)
    )
    await books.close()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
