"""A server of method `tempo` is paid by mppx, the client of others, down to the base unit."""

import json
from pathlib import Path
from typing import Any

from channel.verify.signature import address_of
from tests.foreign.running import pay_tempo
from tests.foreign.tempo_world import PAYEE, PAYER_KEY, TempoProvider, open_tempo


async def pay(provider: TempoProvider, *steps: str) -> list[dict[str, Any]]:
    """Let mppx take these steps, with at most a thousandth of a token in the deposit."""
    settings = (provider.chain_url, "0x" + provider.reader.escrow.hex(), "0x" + PAYER_KEY.hex())
    lines = await pay_tempo(*settings, "0.001", *steps)
    return [json.loads(line) for line in lines]


async def test_mppx_opens_pays_tops_up_streams_and_closes(tmp_path: Path) -> None:
    """RAILS: what is charged is settled, and the rest of the deposit goes back."""
    async with open_tempo(tmp_path) as provider:
        url, payer = provider.url, address_of(PAYER_KEY)
        earned = await provider.balance(PAYEE.address)
        first, second, topped_up, stream, closed = await pay(
            provider,
            f"fetch {url}/joke",
            f"fetch {url}/joke",
            f"topUp {url}/joke 700",
            f"sse {url}/words",
            "close",
        )
        assert (first["status"], first["text"], second["text"]) == (200, "a joke", "a joke")
        assert first["receipt"]["method"] == "tempo"
        assert (first["receipt"]["spent"], second["receipt"]["spent"]) == ("100", "200")
        assert topped_up == {"step": "topUp", "status": 200, "text": ""}
        assert len(stream["data"]) == 40
        assert stream["receipt"]["spent"] == closed["receipt"]["spent"] == "600"
        assert closed["receipt"]["txHash"]
        (state,) = await provider.ledger.list_channels()
        fact = await provider.reader.read_channel(state.key.channel_id)
        assert fact is not None
        assert (fact.deposit, fact.settled, fact.is_finalized) == (1_700, 600, True)
        assert (fact.terms.payer, state.spent, state.settled) == (payer, 600, 600)
        assert await provider.balance(PAYEE.address) - earned == 600
        assert await provider.balance(provider.reader.escrow) == 0
