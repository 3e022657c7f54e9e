"""Tiny contracts, assembled by hand: wallets with every behaviour, and a liar."""

from collections.abc import Sequence

from channel.types import Address
from settlement.tx.manager import TxManager

_MAGIC = "1626ba7e"

_BEHAVIOURS = {
    # PUSH4 word, PUSH1 224, SHL, PUSH0, MSTORE; RETURN(0, 32)
    "agrees": f"63{_MAGIC}60e01b5f5260205ff3",
    # JUMPDEST, PUSH3 50,000, GAS, GT, PUSH0, JUMPI: with so little left, as above
    "agrees late": f"5b6200c3505a115f5763{_MAGIC}60e01b5f5260205ff3",
    # GASPRICE, ISZERO, times the word: a node that simulates pays nothing for gas
    "agrees in simulations": f"3a1563{_MAGIC}60e01b025f5260205ff3",
    "says another word": "63deadbeef60e01b5f5260205ff3",
    "returns nothing": "5f5ff3",
    "reverts": "5f5ffd",
    "burns all gas": "5b5f56",  # JUMPDEST, PUSH0, JUMP
    "executes garbage": "fe",
}


async def deploy_wallet(sender: TxManager, behaviour: str) -> Address:
    """Deploy a contract that answers every call so."""
    return await deploy_code(sender, bytes.fromhex(_BEHAVIOURS[behaviour]))


async def deploy_owned_wallet(sender: TxManager, owner: Address) -> Address:
    """Deploy a wallet that takes only its owner's plain signature."""
    # memory: hash, v, r, s as ecrecover wants them; the call's own words are at 4, 0xa4, 0x64, 0x84
    recover = "6004355f5260a4355f1a602052606435604052608435606052" + "60205f60805f60015afa50"
    answer = f"5f5173{owner.hex()}14" + f"63{_MAGIC}60e01b02" + "5f5260205ff3"
    return await deploy_code(sender, bytes.fromhex(recover + answer))


async def deploy_look_alike(sender: TxManager, topics: Sequence[bytes], payload: bytes) -> Address:
    """Deploy a contract that emits this log at every call, in its own name."""
    code = b""
    for offset in range(0, len(payload), 32):
        word = payload[offset : offset + 32]
        code += b"\x7f" + word + b"\x61" + offset.to_bytes(2, "big") + b"\x52"  # MSTORE
    for topic in reversed(topics):
        code += b"\x7f" + topic
    code += b"\x61" + len(payload).to_bytes(2, "big") + b"\x5f"  # length, offset 0
    return await deploy_code(sender, code + bytes([0xA0 + len(topics), 0x00]))  # LOGn, STOP


async def deploy_code(sender: TxManager, code: bytes) -> Address:
    """Deploy exactly this code."""
    # PUSH2 length, DUP1, PUSH1 10, PUSH0, CODECOPY, PUSH0, RETURN: ten bytes, then the code.
    init = b"\x61" + len(code).to_bytes(2, "big") + bytes.fromhex("80600a5f395ff3") + code
    receipt = await sender.send(None, init)
    assert receipt.contract is not None
    assert await sender.rpc.code(receipt.contract) == code
    return receipt.contract
