"""A temporary Anvil and contracts on it, for scripts/gas and the tests of the contracts.

Synchronous and small by design: one process, one connection, accounts that Anvil unlocks.
"""

import http.client
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, Self

from coincurve import PrivateKey
from eth_abi.abi import decode, encode

from channel.verify.typed_data import keccak
from solidity import NODE_MODULES

START_S_MAX: Final = 20.0
RECEIPT_S_MAX: Final = 20.0
GAS_LIMIT: Final = 29_000_000
UNLIMITED: Final = 2**256 - 1
ZERO_ADDRESS: Final = "0x" + "00" * 20


class RevertedError(Exception):
    """A call that the contract reverted; `data` is the revert's data."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data.hex() or "no data")
        self.data = data


class Account:
    """A key made from a name, and its address."""

    def __init__(self, name: str) -> None:
        self.key = PrivateKey(keccak(name.encode()))
        public = self.key.public_key.format(compressed=False)
        self.address = "0x" + keccak(public[1:])[12:].hex()

    def sign(self, digest: bytes) -> bytes:
        """65 bytes, low s, v 27 or 28."""
        signature = self.key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([signature[64] + 27])


class Chain:
    """JSON-RPC to one Anvil."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.chain_id = int(self.rpc("eth_chainId"), 16)
        self.accounts: list[str] = self.rpc("eth_accounts")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def rpc(self, method: str, *params: object) -> Any:
        """Call a method and return the result; a revert raises `RevertedError`."""
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        self._connection.request("POST", "/", body, {"Content-Type": "application/json"})
        answer = json.loads(self._connection.getresponse().read())
        if "error" not in answer:
            return answer["result"]
        if answer["error"].get("code") == 3 or "revert" in answer["error"]["message"]:  # noqa: PLR2004
            raise RevertedError(bytes.fromhex((answer["error"].get("data") or "0x")[2:]))
        raise RuntimeError(answer["error"])

    def call(
        self, to: str, data: bytes, *, sender: str | None = None, gas: int = GAS_LIMIT
    ) -> bytes:
        """Run a call without effect."""
        request = {"to": to, "data": "0x" + data.hex(), "gas": hex(gas)}
        request["from"] = sender or self.accounts[0]
        return bytes.fromhex(self.rpc("eth_call", request, "latest")[2:])

    def send(
        self, to: str | None, data: bytes, *, sender: str | None = None, gas: int = GAS_LIMIT
    ) -> dict[str, Any]:
        """Send a transaction and return its receipt; a revert is raised with its data."""
        request = {"data": "0x" + data.hex(), "gas": hex(gas), "from": sender or self.accounts[0]}
        if to is not None:
            request["to"] = to
        self.rpc("eth_call", request, "latest")
        tx_hash = self.rpc("eth_sendTransaction", request)
        # Automine is not synchronous: the hash may be there before the block.
        deadline = time.monotonic() + RECEIPT_S_MAX
        while (receipt := self.rpc("eth_getTransactionReceipt", tx_hash)) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(tx_hash)
            time.sleep(0.001)
        if receipt["status"] != "0x1":
            raise RevertedError(b"")
        return dict(receipt)

    def deploy(
        self,
        bytecode: bytes,
        types: Sequence[str] = (),
        *values: object,
        sender: str | None = None,
    ) -> str:
        """Create a contract and return its address."""
        receipt = self.send(None, bytecode + encode(types, values), sender=sender)
        address: str = receipt["contractAddress"]
        return address

    def code(self, address: str) -> bytes:
        """A contract's code."""
        return bytes.fromhex(self.rpc("eth_getCode", address, "latest")[2:])

    def impersonate(self, address: str, ether: int = 10) -> str:
        """Let Anvil send from an address without its key."""
        self.rpc("anvil_impersonateAccount", address)
        self.rpc("anvil_setBalance", address, hex(ether * 10**18))
        return address

    def now(self) -> int:
        """Timestamp of the head."""
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)  # noqa: FBT003

    def travel(self, seconds: int) -> None:
        """Go `seconds` on from the head."""
        self.travel_to(self.now() + seconds)

    def travel_to(self, timestamp: int) -> None:
        """Let calls and the next transaction see exactly this time."""
        self.rpc("evm_setNextBlockTimestamp", timestamp)
        self.rpc("evm_mine")
        self.rpc("evm_setNextBlockTimestamp", timestamp)


class Contract:
    """A contract at an address, by its ABI. Values are as eth_abi takes and gives them."""

    def __init__(self, chain: Chain, address: str, abi: Sequence[dict[str, Any]]) -> None:
        self.chain, self.address = chain, address
        self._functions: dict[str, list[dict[str, Any]]] = {}
        self._events: dict[str, dict[str, Any]] = {}
        for entry in abi:
            if entry["type"] == "function":
                self._functions.setdefault(entry["name"], []).append(entry)
            elif entry["type"] == "event":
                self._events["0x" + keccak(signature(entry).encode()).hex()] = entry

    def at(self, address: str) -> Self:
        """The same interface elsewhere."""
        other = type(self)(self.chain, address, ())
        other._functions, other._events = self._functions, self._events  # noqa: SLF001
        return other

    def encode(self, function: str, *values: object) -> bytes:
        """Calldata; an overload is chosen by its full signature."""
        entry = self._find(function, len(values))
        types = [abi_type(part) for part in entry["inputs"]]
        return keccak(signature(entry).encode())[:4] + encode(types, values)

    def call(
        self, function: str, *values: object, sender: str | None = None, **options: int
    ) -> Any:
        """Return what a view returns: one value, or a tuple of several."""
        answer = self.chain.call(
            self.address, self.encode(function, *values), sender=sender, **options
        )
        entry = self._find(function, len(values))
        found = decode([abi_type(part) for part in entry["outputs"]], answer)
        return found[0] if len(found) == 1 else found

    def send(
        self, function: str, *values: object, sender: str | None = None, **options: int
    ) -> dict[str, Any]:
        """Send a transaction and return its receipt."""
        data = self.encode(function, *values)
        return self.chain.send(self.address, data, sender=sender, **options)

    def events(self, receipt: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """This contract's events in a receipt: name and arguments, in order."""
        return [
            self._decode(log)
            for log in receipt["logs"]
            if log["address"].lower() == self.address.lower()
        ]

    def _decode(self, log: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        entry = self._events[log["topics"][0]]
        indexed = [part for part in entry["inputs"] if part["indexed"]]
        plain = [part for part in entry["inputs"] if not part["indexed"]]
        values = decode([part["type"] for part in plain], bytes.fromhex(log["data"][2:]))
        found = dict(zip((part["name"] for part in plain), values, strict=True))
        for part, topic in zip(indexed, log["topics"][1:], strict=True):
            (found[part["name"]],) = decode([part["type"]], bytes.fromhex(topic[2:]))
        return entry["name"], found

    def _find(self, function: str, arity: int) -> dict[str, Any]:
        name = function.partition("(")[0]
        found = [
            entry
            for entry in self._functions[name]
            if function in (name, signature(entry)) and len(entry["inputs"]) == arity
        ]
        if len(found) != 1:
            raise LookupError(f"{len(found)} functions are called {function} with {arity} values")
        return found[0]


def abi_type(part: dict[str, Any]) -> str:
    """Canonical type of one parameter."""
    kind: str = part["type"]
    if not kind.startswith("tuple"):
        return kind
    inner = ",".join(abi_type(inner) for inner in part["components"])
    return f"({inner}){kind.removeprefix('tuple')}"


def signature(entry: dict[str, Any]) -> str:
    """Canonical signature of a function, error or event."""
    return f"{entry['name']}({','.join(abi_type(part) for part in entry['inputs'])})"


@contextmanager
def anvil(*options: str) -> Iterator[Chain]:
    """Run Anvil on a free port for as long as the context lasts."""
    program = shutil.which("anvil") or str(
        next(NODE_MODULES.glob("@foundry-rs/anvil-*/bin/anvil"), Path("anvil"))
    )
    # Its output goes to a file: a pipe that is not read would block it.
    with tempfile.NamedTemporaryFile("w+b") as log:
        command = [program, "--port", "0", *options]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            chain = Chain(_wait_for_port(process, Path(log.name)))
            with closing(chain):
                yield chain
        finally:
            process.terminate()
            process.wait()


def _wait_for_port(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(rb"Listening on 127\.0\.0\.1:(\d+)\s", log.read_bytes()):
            return int(found.group(1))
        time.sleep(0.005)
    raise RuntimeError(f"Anvil does not start: {log.read_bytes().decode()[-500:]}")
