"""How forge is started: offline, with our solc, and with Permit2's init code in the environment."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from solidity import CONTRACTS, NODE_MODULES, find_solc
from third_party import permit2_init_code


def run(arguments: Sequence[str], *, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run forge in contracts/ and return what became of it."""
    program = next(NODE_MODULES.glob("@foundry-rs/forge-*/bin/forge"), Path("forge"))
    permit2 = permit2_init_code()  # by another solc; find_solc then names ours
    solc = find_solc()
    environment = {
        **os.environ,
        "FOUNDRY_SOLC": str(solc),
        "PERMIT2_INIT_CODE": "0x" + permit2.hex(),
    }
    return subprocess.run(
        [program, *arguments],
        cwd=CONTRACTS,
        env=environment,
        check=False,
        text=True,
        capture_output=capture,
    )
