"""The demo's agent, in a process of its own: it has a wallet's address and a token, and no key.

    python -m mpp_session.demo.agent WALLET TOKEN_FILE URL

Prints what happens as one JSON object on each line (`mpp_session.demo.events`).
"""

import asyncio
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from channel.errors import ApprovalPendingError, PolicyRefusedError
from mpp_session.agent.client import PayingClient, open_client
from mpp_session.agent.wallet_socket import WalletPayments
from mpp_session.demo.events import Answered, Asked, Closed, Event, Held, Piece, Refused
from mpp_session.demo.model import MODEL_NAME

__all__ = ["OVERSPEND_TOKENS", "PROMPTS", "main"]

PROMPTS: Final = (
    "What is the capital of France? Answer in one sentence.",
    "Write two sentences about why honest accounts matter.",
)
OVERSPEND_TOKENS: Final = 4000
"""An answer of so many tokens is more than the demo's policy allows for one request."""
_MAX_TOKENS: Final = 120


async def main(wallet: str, token: str, url: str) -> None:
    """Ask for too much, then ask two questions, pay as the answers arrive, and close."""
    async with open_client(
        wallet=wallet, token=token, task="demo", answers_refusals=False
    ) as client:
        await _overspend(client, url)
        for prompt in PROMPTS:
            await _ask(client, url, prompt)
        closed = await client.payments.close(url)
    for channel in closed:
        _tell(Closed(channel.key.channel_id, channel.vouchers, channel.spent))


async def _overspend(client: PayingClient, url: str) -> None:
    body = {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": "Write a novel."}],
        "max_tokens": OVERSPEND_TOKENS,
    }
    try:
        await client.post(f"{url}/v1/chat/completions", json=body)
    except PolicyRefusedError as error:
        _tell(Refused(error.code, error.reason))


async def _ask(client: PayingClient, url: str, prompt: str) -> None:
    """Ask a question; where the wallet holds it for its owner, wait and ask again."""
    while True:
        try:
            return await _ask_now(client, url, prompt)
        except ApprovalPendingError as error:
            _tell(Held(error.approval_id, error.reason))
            if isinstance(client.payments, WalletPayments):  # as of each client of a wallet
                await client.payments.wait_for(error.approval_id)


async def _ask_now(client: PayingClient, url: str, prompt: str) -> None:
    """Ask one question through the plain OpenAI client, and pass on the answer as it arrives."""
    import openai  # noqa: PLC0415 -- only the demo needs it, and it is slow to import

    began = time.monotonic()
    before = await _paid(client)
    # openai's types accept only httpx.AsyncClient of its own version
    http_client: Any = client
    model = openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="unused", http_client=http_client, max_retries=0
    )
    stream = await model.chat.completions.create(
        model=MODEL_NAME,
        messages=[{"role": "user", "content": prompt}],
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=_MAX_TOKENS,
        temperature=0,
    )
    _tell(Asked(prompt))
    text, tokens, read, made = "", 0, 0, 0
    async for chunk in stream:
        piece = chunk.choices[0].delta.content if chunk.choices else None
        if piece:
            text, tokens = text + piece, tokens + 1
            _tell(Piece(piece, tokens))
        if chunk.usage is not None:
            read, made = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
    units, cost = (now - then for now, then in zip(await _paid(client), before, strict=True))
    _tell(Answered(prompt, text, read, made, units, cost, time.monotonic() - began))


async def _paid(client: PayingClient) -> tuple[int, int]:
    """Return output tokens and base units that the receipts charge so far."""
    channels = await client.payments.channels()
    return sum(one.units for one in channels), sum(one.spent for one in channels)


def _tell(event: Event) -> None:
    print(msgspec.json.encode(event).decode(), flush=True)  # noqa: T201 -- its one output


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]).read_text().strip(), sys.argv[3]))
