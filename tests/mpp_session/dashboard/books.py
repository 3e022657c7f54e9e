"""A ledger's accounts of one channel, at times that a test sets."""

from msgspec.structs import replace

from channel.ledger.interface import Ledger
from channel.state.charges import ChargeEnd, ChargeOutcome, encode_note
from channel.state.commands import Release, Spend
from mpp_session.dashboard.revenue import HOUR_S, Revenue
from mpp_session.settings import Config
from tests.channel.books import reserving
from tests.mpp_session.dashboard.served import channel_state

STARTED = 1_800_000_000.0


class Books:
    """Sells from one channel, by a clock that a test moves."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.at = STARTED
        self.key = channel_state(1).key
        self._sold = 0

    @property
    def hour(self) -> int:
        return int(self.at // HOUR_S)

    def now(self) -> float:
        return self.at

    def revenue(self, ledger: Ledger) -> Revenue:
        return Revenue(self.config, ledger, now=self.now)

    async def sell(self, ledger: Ledger, amount: int, *, to: int = 1) -> None:
        """Charge one request to a channel of `channel_state`."""
        self._sold += 1
        name, key = self._sold.to_bytes(2), channel_state(to).key
        held = replace(reserving(name, amount), note=encode_note("POST /paid", "tiny"))
        (await ledger.apply(key, [held])).require()
        end = ChargeEnd(ChargeOutcome.DONE, {"output_token": amount}, "")
        (await ledger.apply(key, [Spend(name, amount), Release(name, end)])).require()
