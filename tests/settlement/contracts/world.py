"""A token, its escrow and the parties, as the tests of the contracts need them.

Ids and digests are computed here, from the draft's formulas, and never asked of the contract.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import pytest
from eth_abi.abi import encode
from eth_account import Account as EthAccount

from channel.verify.typed_data import keccak
from local_chain import UNLIMITED, ZERO_ADDRESS, Account, Chain, Contract, RevertedError
from settlement.artifacts import ContractName, load_artifact

GRACE_S = 15 * 60
DEPOSIT = 10_000_000
PLENTY = 10**15
ONE_HOUR_S = 3600


class ChannelView(NamedTuple):
    """What getChannel returns, by name."""

    finalized: bool
    close_requested_at: int
    payer: str
    payee: str
    token: str
    authorized_signer: str
    deposit: int
    settled: int


class World:
    """A token, its escrow, a payer and a payee who hold tokens, and a stranger."""

    def __init__(self, chain: Chain, token: Contract, escrow: Contract) -> None:
        self.chain, self.token, self.escrow = chain, token, escrow
        self.payer, self.payee = Account("payer"), Account("payee")
        self.stranger, self.signer = Account("stranger"), Account("signer")
        for account in (self.payer, self.payee, self.stranger, self.signer):
            chain.impersonate(account.address)
        for account in (self.payer, self.payee, self.stranger):
            self.fund(account.address)

    def fund(self, holder: str) -> None:
        """Give tokens and approve the escrow; the holder must be one Anvil sends for."""
        self.token.send("mint", holder, PLENTY)
        self.token.send("approve", self.escrow.address, UNLIMITED, sender=holder)

    def terms(
        self, salt: int = 0, signer: str = ZERO_ADDRESS, deposit: int = DEPOSIT
    ) -> tuple[Any, ...]:
        """Arguments of open."""
        return (self.payee.address, self.token.address, deposit, salt.to_bytes(32), signer)

    def id_of(self, payer: str, terms: tuple[Any, ...]) -> bytes:
        """The channel's id, computed here and not by the contract (CONTRACT-14)."""
        payee, token, _, salt, signer = terms
        return keccak(
            encode(
                ["address", "address", "address", "bytes32", "address", "address", "uint256"],
                [payer, payee, token, salt, signer, self.escrow.address, self.chain.chain_id],
            )
        )

    def open(self, *args: Any, payer: str | None = None, **kwargs: Any) -> bytes:
        """Open a channel and return its id."""
        terms, payer = self.terms(*args, **kwargs), payer or self.payer.address
        self.escrow.send("open", *terms, sender=payer)
        return self.id_of(payer, terms)

    def channel(self, channel_id: bytes) -> ChannelView:
        return ChannelView(*self.escrow.call("getChannel", channel_id))

    def balance(self, holder: str) -> int:
        balance: int = self.token.call("balanceOf", holder)
        return balance

    def digest(self, channel_id: bytes, amount: int, chain_id: int | None = None) -> bytes:
        """A voucher's digest, computed here and not by the contract."""
        return self.typed(
            "Voucher(bytes32 channelId,uint128 cumulativeAmount)",
            ["bytes32", "uint128"],
            [channel_id, amount],
            chain_id,
        )

    def typed(
        self, type_string: str, types: list[str], values: list[Any], chain_id: int | None = None
    ) -> bytes:
        """EIP-712 digest under the escrow's domain."""
        domain = keccak(
            encode(
                ["bytes32", "bytes32", "bytes32", "uint256", "address"],
                [
                    keccak(
                        b"EIP712Domain(string name,string version,"
                        b"uint256 chainId,address verifyingContract)"
                    ),
                    keccak(b"EVM Payment Channel"),
                    keccak(b"1"),
                    chain_id or self.chain.chain_id,
                    self.escrow.address,
                ],
            )
        )
        struct = keccak(encode(["bytes32", *types], [keccak(type_string.encode()), *values]))
        return keccak(b"\x19\x01" + domain + struct)

    def voucher(
        self, channel_id: bytes, amount: int, by: Account | None = None
    ) -> tuple[bytes, int, bytes]:
        """Arguments of settle and close, and an entry of a batch."""
        return channel_id, amount, (by or self.payer).sign(self.digest(channel_id, amount))

    def authorize(
        self, kind: str, channel_id: bytes, amount: int, nonce: int, deadline: int | None = None
    ) -> tuple[Any, ...]:
        """First five arguments of settleWithAuthorization and closeWithAuthorization."""
        deadline = self.chain.now() + ONE_HOUR_S if deadline is None else deadline
        digest = self.typed(
            f"{kind}Authorization(bytes32 channelId,uint128 cumulativeAmount,"
            "uint256 nonce,uint256 deadline)",
            ["bytes32", "uint128", "uint256", "uint256"],
            [channel_id, amount, nonce, deadline],
        )
        return channel_id, amount, nonce, deadline, self.payee.sign(digest)

    def only_event(self, receipt: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The one event of the escrow in a receipt."""
        (event,) = self.escrow.events(receipt)
        return event

    def sign_typed(self, by: Account, domain: dict[str, Any], types: Any, message: Any) -> bytes:
        """Sign as a wallet does, with eth_account's encoder."""
        primary = {"domain": domain, "types": types, "message": message}
        (name,) = set(types) - {t for fields in types.values() for t in _mentioned(fields)}
        primary["primaryType"] = name
        signed = EthAccount.sign_typed_data(
            by.key.secret,
            full_message={**primary, "types": {**types, "EIP712Domain": _domain_fields(domain)}},
        )
        return bytes(signed.signature)


def _mentioned(fields: list[dict[str, str]]) -> Iterator[str]:
    for field in fields:
        yield field["type"].removesuffix("[]")


def _domain_fields(domain: dict[str, Any]) -> list[dict[str, str]]:
    kinds = {
        "name": "string",
        "version": "string",
        "chainId": "uint256",
        "verifyingContract": "address",
    }
    return [{"name": name, "type": kind} for name, kind in kinds.items() if name in domain]


@contextmanager
def reverts(error: str, *values: object, within: str = "SessionEscrow") -> Iterator[None]:
    """Expect a typed error of the escrow: its selector, and its arguments if any are given."""
    artifact = load_artifact(cast("ContractName", within))
    (entry,) = [e for e in artifact.abi if e["type"] == "error" and e["name"] == error]
    types = [part["type"] for part in entry["inputs"]]
    expected = keccak(f"{error}({','.join(types)})".encode())[:4] + encode(types, values)
    with pytest.raises(RevertedError) as caught:
        yield
    assert caught.value.data == expected


def world_with(chain: Chain, token: Contract) -> World:
    """Another token, with an escrow of its own."""
    artifact = load_artifact("SessionEscrow")
    place = chain.deploy(artifact.bytecode, ["address"], token.address)
    return World(chain, token, Contract(chain, place, artifact.abi))


def deploy_mock(
    chain: Chain, mocks: dict[str, dict[str, Any]], name: str, types: Any = (), *values: Any
) -> Contract:
    """One of the compiled mocks."""
    code = bytes.fromhex(mocks[name]["evm"]["bytecode"]["object"])
    return Contract(chain, chain.deploy(code, types, *values), mocks[name]["abi"])
