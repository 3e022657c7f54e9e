"""`scripts/soak`: a soak on a chain of its own, with its balance sheet."""

import asyncio
import logging
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from settlement.dev.devnet import Devnet
from tests.faults.soak import BLOCK_TIME_S, Balance, SoakLimits, soak


async def run(limits: SoakLimits) -> Balance:
    began = time.monotonic()

    def tell(text: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {text}", flush=True)  # noqa: T201

    with tempfile.TemporaryDirectory(prefix="mpp-session-soak-") as directory:
        async with Devnet.start(block_time_s=BLOCK_TIME_S) as chain:
            return await soak(chain, Path(directory), limits, tell=tell)


def main() -> int:
    seconds, agents, seed = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rest_s = float(sys.argv[4]) if len(sys.argv) > 4 else SoakLimits().rest_s
    logging.basicConfig(level=logging.CRITICAL)
    balance = asyncio.run(run(SoakLimits(seconds=seconds, agents=agents, seed=seed, rest_s=rest_s)))
    print(msgspec.json.format(msgspec.json.encode(balance), indent=2).decode())  # noqa: T201
    print("the books balance" if balance.is_even else "THE BOOKS DO NOT BALANCE")  # noqa: T201
    return 0 if balance.is_even else 1


if __name__ == "__main__":
    sys.exit(main())
