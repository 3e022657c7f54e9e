"""solana-pay-kit's session: one voucher from its header to its receipt's header, in memory.

Runs in an environment of its own, made by scripts/bench; prints microseconds a voucher, run by
run, as JSON. Its vouchers are signed by ed25519, which its library verifies in native code.
"""

import asyncio
import json
import sys
import time
from typing import Any, cast

from solana_pay_kit.protocols.mpp.client.session import ActiveSession, serialize_session_credential
from solana_pay_kit.protocols.mpp.core.headers import parse_www_authenticate
from solana_pay_kit.protocols.mpp.server.session_method import (
    SessionChallengeOptions,
    SessionOptions,
    new_session,
)
from solana_pay_kit.protocols.mpp.server.session_store import ChannelState, MemoryChannelStore
from solders.keypair import Keypair

PRICE = 25
RUN = 50


class NoChain:
    """Stands for the chain, which no voucher needs."""

    async def get_slot(self, commitment: str = "confirmed") -> int:
        """Return a slot."""
        del commitment
        return 1


async def measure(vouchers: int) -> list[float]:
    """Return microseconds a voucher, run by run."""
    payer, channel = Keypair(), Keypair().pubkey()
    store = MemoryChannelStore()
    session = new_session(
        SessionOptions(
            recipient=str(Keypair().pubkey()),
            operator=str(Keypair().pubkey()),
            amount=PRICE,
            secret_key="a benchmark's secret of thirty-two bytes",  # noqa: S106
            realm="api.example.com",
            store=store,
            rpc=cast("Any", NoChain()),
            idle_timeout_seconds=0,  # else each voucher starts a thread to watch for idleness
        )
    )
    session.core().with_blockhash_cache(lambda: (str(Keypair().pubkey()), 1))
    opened = ChannelState(
        channel_id=str(channel),
        authorized_signer=str(payer.pubkey()),
        deposit=2**60,
        idle_timeout_seconds=300,
    )
    await store.update_channel(str(channel), lambda _: opened)
    options = SessionChallengeOptions()
    unpaid = await session.handle(None, options)
    fields = {name.lower(): value for name, value in unpaid.headers.items()}
    challenge = parse_www_authenticate(fields["www-authenticate"])
    client = ActiveSession(channel, payer)
    headers = [
        serialize_session_credential(challenge, client.voucher_action(PRICE))
        for _ in range(vouchers)
    ]
    times = []
    for start in range(0, vouchers, RUN):
        run = headers[start : start + RUN]
        began = time.perf_counter()
        for header in run:
            answer = await session.handle(header, options)
            if not answer.ok:
                raise SystemExit(f"not taken: {answer}")
        times.append((time.perf_counter() - began) / len(run) * 1e6)
    session.shutdown()
    return times


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(int(sys.argv[1])))))
