"""A gate that cannot serve now sells nothing and takes no deposit (O-27)."""

from pathlib import Path

from channel.errors import OpeningsPausedError
from channel.http import PaymentGate
from tests.channel.http.test_middleware import ROUTES, App
from tests.channel.selling import PRICE, ask, open_provider


async def test_a_gate_that_is_not_ready_takes_vouchers_and_closes_alone(tmp_path: Path) -> None:
    """O-27: an opening, a deposit and a request wait; what is owed already is taken."""
    is_ready = False
    asked = 0

    async def later() -> None:
        if not is_ready:
            raise OpeningsPausedError("Not now.")

    def ready() -> object:
        nonlocal asked
        asked += 1
        return None if is_ready else later()

    async with open_provider(tmp_path) as provider:
        provider.payer.open_on_chain()
        app = App()
        gate = PaymentGate(app, engine=provider.engine, routes=ROUTES, ready=ready)  # type: ignore[arg-type]
        assert (await ask(gate, "GET", "/paid")).status == 503
        head = await ask(gate, "HEAD", "/paid")
        assert head.status == 402, "it may be about to close a channel"
        opening = provider.payer.credential(head.challenge, provider.payer.opening())
        assert (await ask(gate, "HEAD", "/paid", opening)).status == 503
        assert (await ask(gate, "GET", "/paid", opening)).status == 503
        assert await provider.ledger.list_channels() == []
        is_ready = True
        assert (await ask(gate, "HEAD", "/paid", opening)).status == 200
        is_ready = False
        voucher = provider.payer.credential(head.challenge, provider.payer.voucher(PRICE))
        assert (await ask(gate, "HEAD", "/paid", voucher)).status == 200
        assert (await ask(gate, "GET", "/paid", voucher)).status == 503
        assert app.calls == 0
        assert asked == 5
