"""One token, its escrow, and the gas of each function there: gasUsed of real transactions."""

from collections.abc import Iterator
from typing import Any, Final

from eth_abi.abi import encode

from channel.types import Address, ChannelId, ChannelKey, ChannelTerms
from channel.verify.typed_data import (
    close_authorization_digest,
    domain_separator,
    keccak,
    open_nonce,
    open_permit_digest,
    open_witness,
    permit2_domain_separator,
    receive_authorization_digest,
    settle_authorization_digest,
    token_domain_separator,
    top_up_nonce,
    top_up_permit_digest,
    top_up_witness,
)
from local_chain import UNLIMITED, ZERO_ADDRESS, Account, Chain, Contract
from settlement.addresses import PERMIT2
from settlement.artifacts import load_artifact

BATCH: Final = 100
DEPOSIT: Final = 10_000_000
PRICE: Final = 1_234_567
PLENTY: Final = 10**15
FAR_AWAY: Final = 2**40


class Bench:
    """One token, its escrow, and channels on it."""

    def __init__(self, chain: Chain, token: Contract, signer: Account | None) -> None:
        self.chain, self.token, self.signer = chain, token, signer
        artifact = load_artifact("SessionEscrow")
        address = chain.deploy(artifact.bytecode, ["address"], token.address)
        self.escrow = Contract(chain, address, artifact.abi)
        self.payee = Account("payee").address
        chain.impersonate(self.payee)
        for holder in (self.payee, address):
            token.send("mint", holder, PLENTY)
        self._channels = 0

    def payer(self, name: str) -> Account:
        """A payer who holds tokens and has approved the escrow."""
        account = Account(name)
        self.chain.impersonate(account.address)
        self.token.send("mint", account.address, PLENTY)
        self.token.send("approve", self.escrow.address, UNLIMITED, sender=account.address)
        return account

    def open(self, payer: Account) -> tuple[bytes, int]:
        """Open a channel; return its id and the gas used."""
        self._channels += 1
        salt = keccak(b"salt" + bytes([self._channels]))
        signer = self.signer.address if self.signer else ZERO_ADDRESS
        terms = (self.payee, self.token.address, DEPOSIT, salt, signer)
        receipt = self.escrow.send("open", *terms, sender=payer.address)
        ((_, opened),) = self.escrow.events(receipt)
        return opened["channelId"], gas_used(receipt)

    def voucher(self, payer: Account, channel_id: bytes, amount: int) -> tuple[bytes, int, bytes]:
        """Arguments of settle and close, and an entry of a batch."""
        digest = self.escrow.call("getVoucherDigest", channel_id, amount)
        return channel_id, amount, (self.signer or payer).sign(digest)

    def singles(self) -> Iterator[tuple[str, int]]:
        """Each function once, on channels of one payer."""
        payer, payee = self.payer("payer"), self.payee
        settled, gas = self.open(payer)
        yield "open", gas
        for function, amount in (("settle", PRICE), ("settleAgain", 2 * PRICE)):
            voucher = self.voucher(payer, settled, amount)
            receipt = self.escrow.send("settle", *voucher, sender=payee)
            yield function, gas_used(receipt)
        closed, _ = self.open(payer)
        receipt = self.escrow.send("close", *self.voucher(payer, closed, PRICE), sender=payee)
        yield "close", gas_used(receipt)
        forfeited, _ = self.open(payer)
        yield "forfeit", gas_used(self.escrow.send("close", forfeited, 0, b"", sender=payee))
        left, _ = self.open(payer)
        for function, *arguments in (("topUp", left, DEPOSIT), ("requestClose", left)):
            receipt = self.escrow.send(function, *arguments, sender=payer.address)
            yield function, gas_used(receipt)
        self.chain.travel(15 * 60)
        yield "withdraw", gas_used(self.escrow.send("withdraw", left, sender=payer.address))

    def batches(self) -> Iterator[tuple[str, int]]:
        """Gas per channel of both batches, each payer with one channel."""
        payers = [self.payer(f"payer {i}") for i in range(BATCH)]
        channels = [self.open(payer)[0] for payer in payers]
        for function, amount in (("settleBatch", PRICE), ("closeBatch", 2 * PRICE)):
            entries = [self.voucher(*pair, amount) for pair in zip(payers, channels, strict=True)]
            receipt = self.escrow.send(function, entries, sender=self.payee)
            found = [name for name, _ in self.escrow.events(receipt)]
            if (
                found
                != [{"settleBatch": "Settled", "closeBatch": "ChannelClosed"}[function]] * BATCH
            ):
                raise RuntimeError(f"{function} left entries out")
            yield f"{function}{BATCH}", -(-gas_used(receipt) // BATCH)


def gas_used(receipt: dict[str, Any]) -> int:
    """Gas the transaction paid for."""
    return int(receipt["gasUsed"], 16)


class RelayedBench(Bench):
    """The functions that any account may submit, with signatures that never expire."""

    def __init__(self, chain: Chain, token: Contract, name: str, version: str) -> None:
        super().__init__(chain, token, None)
        self.domain = token_domain_separator(name, version, chain.chain_id, raw(token.address))
        self.payee_key = Account("payee")
        self.relayer = Account("relayer").address
        chain.impersonate(self.relayer)

    def relayed(self) -> Iterator[tuple[str, int]]:
        """Each relayed function once; batches per channel."""
        payer = self.payer("payer")
        self.token.send("approve", "0x" + PERMIT2.hex(), UNLIMITED, sender=payer.address)
        channel_id, _ = self.open(payer)
        yield from self.by_authorization(payer, channel_id)
        yield from self.by_permit(payer, channel_id)
        for kind, digest in (
            ("settle", settle_authorization_digest),
            ("close", close_authorization_digest),
        ):
            amount = {"settle": PRICE, "close": 2 * PRICE}[kind]
            key = self.key(channel_id)
            signed = self.payee_key.sign(digest(key, amount, nonce=amount, deadline=FAR_AWAY))
            voucher = self.voucher(payer, channel_id, amount)
            arguments = (channel_id, amount, amount, FAR_AWAY, signed, voucher[2])
            yield self.submit(f"{kind}WithAuthorization", *arguments)
        payers = [self.payer(f"payer {i}") for i in range(BATCH)]
        channels = [self.open(each)[0] for each in payers]
        for nonce, kind in enumerate(("Settle", "Close"), start=1):
            pairs = zip(payers, channels, strict=True)
            entries = [self.voucher(*pair, nonce * PRICE) for pair in pairs]
            signed = self.payee_key.sign(self.batch_digest(kind, entries, nonce))
            name = f"{kind.lower()}BatchWithAuthorization"
            _, gas = self.submit(name, self.payee, entries, nonce, FAR_AWAY, signed)
            yield f"{name}{BATCH}", -(-gas // BATCH)

    def by_authorization(self, payer: Account, channel_id: bytes) -> Iterator[tuple[str, int]]:
        """An open and a top-up by EIP-3009."""
        salt = keccak(b"by authorization")
        open_ = (self.payee, self.token.address, DEPOSIT, salt, ZERO_ADDRESS, payer.address)
        given = self.authorized(payer, DEPOSIT, open_nonce(self.terms(payer), salt))
        yield self.submit("openWithAuthorization", *open_, *given)
        id_, funder = ChannelId(channel_id), raw(payer.address)
        nonce = top_up_nonce(id_, additional_deposit=PRICE, funder=funder, salt=salt)
        top_up = (channel_id, PRICE, payer.address, salt)
        yield self.submit("topUpWithAuthorization", *top_up, *self.authorized(payer, PRICE, nonce))

    def by_permit(self, payer: Account, channel_id: bytes) -> Iterator[tuple[str, int]]:
        """An open and a top-up by Permit2."""
        salt, domain = keccak(b"by permit"), permit2_domain_separator(self.chain.chain_id)
        terms = {"token": raw(self.token.address), "spender": raw(self.escrow.address)}
        digest = open_permit_digest(
            domain,
            amount=DEPOSIT,
            nonce=1,
            deadline=FAR_AWAY,
            witness=open_witness(raw(self.payee), salt, raw(ZERO_ADDRESS)),
            **terms,
        )
        open_ = (self.payee, self.token.address, DEPOSIT, salt, ZERO_ADDRESS, payer.address)
        yield self.submit("openWithPermit2", *open_, 1, FAR_AWAY, payer.sign(digest))
        digest = top_up_permit_digest(
            domain,
            amount=PRICE,
            nonce=2,
            deadline=FAR_AWAY,
            witness=top_up_witness(ChannelId(channel_id)),
            **terms,
        )
        top_up = (channel_id, PRICE, payer.address)
        yield self.submit("topUpWithPermit2", *top_up, 2, FAR_AWAY, payer.sign(digest))

    def terms(self, payer: Account) -> ChannelTerms:
        """A channel's terms, as the engine names them."""
        token, payee = raw(self.token.address), raw(self.payee)
        return ChannelTerms(raw(payer.address), payee, token, raw(ZERO_ADDRESS))

    def authorized(
        self, payer: Account, amount: int, nonce: bytes
    ) -> tuple[int, int, bytes, bytes]:
        """validAfter, validBefore, nonce and signature of an EIP-3009 authorization."""
        digest = receive_authorization_digest(
            self.domain,
            funder=raw(payer.address),
            to=raw(self.escrow.address),
            value=amount,
            valid_after=0,
            valid_before=FAR_AWAY,
            nonce=nonce,
        )
        return 0, FAR_AWAY, nonce, payer.sign(digest)

    def batch_digest(self, kind: str, entries: list[tuple[bytes, int, bytes]], nonce: int) -> bytes:
        """What the payee signs for a batch."""
        entry_type = "BatchEntry(bytes32 channelId,uint128 cumulativeAmount,bytes signature)"
        type_hash = keccak(
            f"{kind}BatchAuthorization(address payee,BatchEntry[] entries,uint256 nonce,"
            f"uint256 deadline){entry_type}".encode()
        )
        words = ["bytes32", "bytes32", "uint128", "bytes32"]
        hashes = [
            keccak(encode(words, [keccak(entry_type.encode()), channel_id, amount, keccak(sig)]))
            for channel_id, amount, sig in entries
        ]
        struct = encode(
            ["bytes32", "address", "bytes32", "uint256", "uint256"],
            [type_hash, self.payee, keccak(b"".join(hashes)), nonce, FAR_AWAY],
        )
        domain = domain_separator(self.chain.chain_id, raw(self.escrow.address))
        return keccak(b"\x19\x01" + domain + keccak(struct))

    def key(self, channel_id: bytes) -> ChannelKey:
        """The channel, as the engine names it."""
        return ChannelKey(self.chain.chain_id, raw(self.escrow.address), ChannelId(channel_id))

    def submit(self, function: str, *arguments: object) -> tuple[str, int]:
        """Let the relayer send it."""
        return function, gas_used(self.escrow.send(function, *arguments, sender=self.relayer))


def raw(text: str) -> Address:
    """An address as the engine has it."""
    return Address(bytes.fromhex(text[2:]))
