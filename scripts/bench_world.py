"""What the benchmarks run on: an engine, its channels, and credentials signed in advance.

The chain is constant, because the cost of asking a node is not measured. Ledgers are the real ones;
`MemoryLedger` applies the same rules to a dict, to show what durability costs.
"""

import secrets
import time
from collections.abc import Sequence
from typing import Any, Final, cast

from channel.chain import TransactionEvidence
from channel.engine import Engine, EngineSettings, Offer
from channel.ledger.interface import Applied, Ledger, RequestUpdate
from channel.methods.evm.method import EVM
from channel.state.channel_state import ChannelState
from channel.state.commands import Command, OpenChannel
from channel.state.transitions import transition
from channel.types import (
    ZERO_ADDRESS,
    Address,
    ChannelFact,
    ChannelId,
    ChannelKey,
    ChannelTerms,
    SignedVoucher,
    TxHash,
)
from channel.verify.challenge_id import ChallengeBinder
from channel.verify.signature import address_of, sign
from channel.verify.typed_data import keccak
from channel.wire.challenge import Challenge
from channel.wire.credential import (
    Credential,
    format_credential,
    select_credential,
)
from channel.wire.payload import (
    VoucherPayload,
)
from channel.wire.receipt import format_receipt

CHAIN_ID: Final = 31337
ESCROW: Final = Address(b"\xe5" * 20)
PAYEE: Final = Address(b"\xb2" * 20)
TOKEN: Final = Address(b"\xc3" * 20)
PAYER_KEY: Final = b"\x11" * 32
PAYER: Final = address_of(PAYER_KEY)
TERMS: Final = ChannelTerms(PAYER, PAYEE, TOKEN, ZERO_ADDRESS)
SECRET: Final = b"a benchmark's secret of thirty-two bytes"
PRICE: Final = 25
DEPOSIT: Final = 2**80
SETTINGS: Final = EngineSettings(
    realm="api.example.com",
    payee=PAYEE,
    token=TOKEN,
    vouchers_per_second=10**9,
    fact_ttl_s=60,
    fact_age_s_max=60,
    challenge_lifetime_s=24 * 3600,
)


def key_of(number: int) -> ChannelKey:
    """Return the key of a channel by its number."""
    return ChannelKey(CHAIN_ID, ESCROW, ChannelId(keccak(number.to_bytes(8, "big"))))


def fact_of(key: ChannelKey) -> ChannelFact:
    """Return the fact that the chain shows for every channel."""
    return ChannelFact(key, TERMS, DEPOSIT, 0, 0, is_finalized=False, block_number=1)


class ConstantChain:
    """Every channel exists, and never changes."""

    chain_id = CHAIN_ID
    escrow = ESCROW

    async def read_channel(
        self,
        channel_id: ChannelId,
        *,
        block_number: int | None = None,  # noqa: ARG002
    ) -> ChannelFact | None:
        """Return the channel's constant fact."""
        return fact_of(ChannelKey(CHAIN_ID, ESCROW, channel_id))

    async def read_transaction(self, tx_hash: TxHash) -> TransactionEvidence | None:
        """Return no transaction."""
        del tx_hash
        return None

    async def confirm_deposits(self, facts: Sequence[ChannelFact]) -> list[int]:
        """Confirm every deposit."""
        return [fact.deposit for fact in facts]

    async def has_code(self, address: Address) -> bool:
        """Return false: all signers are keys."""
        del address
        return False

    async def is_valid_wallet_signature(
        self, signer: Address, digest: bytes, signature: bytes
    ) -> bool:
        """Return false: all signers are keys."""
        del signer, digest, signature
        return False


class MemoryLedger:
    """The rules without a disk, for the one row that measures it."""

    def __init__(self) -> None:
        self.states: dict[ChannelKey, ChannelState] = {}

    async def load(self, key: ChannelKey) -> ChannelState | None:
        """Return the channel."""
        return self.states.get(key)

    async def apply(
        self,
        key: ChannelKey,
        commands: Sequence[Command],
        *,
        request: RequestUpdate | None = None,
        proof: Any = None,
    ) -> Applied:
        """Apply the commands and keep the result; no command of the benchmarks is refused."""
        del request, proof
        state = self.states.get(key)
        for command in commands:
            state = transition(state, command)
        if state is None:
            raise LookupError(key)
        self.states[key] = state
        return Applied(state)


class World:
    """An engine on a ledger, one route, and channels to pay with."""

    def __init__(self, ledger: "Ledger | MemoryLedger") -> None:
        self.ledger = cast("Ledger", ledger)  # a memory one is only loaded and applied to
        self.engine = Engine(
            ledger=self.ledger,
            chain=ConstantChain(),
            binder=ChallengeBinder([SECRET]),
            settings=SETTINGS,
        )
        self.offer = Offer(
            request=self.engine.ask(unit_price=PRICE, unit_type="request"),
            http_method="GET",
            route="/paid",
        )
        self.challenge = self.engine.challenger.issue(self.offer)

    async def open(self, keys: Sequence[ChannelKey]) -> None:
        """Add channels to the ledger, as if they had been opened on chain."""
        for key in keys:
            voucher = EVM.verify_voucher(signed(key, 0), key, PAYER)
            opening = OpenChannel(fact_of(key), voucher, int(time.time()))
            (await self.ledger.apply(key, [opening])).require()

    async def voucher(self, header: str) -> str:
        """Handle one voucher, from its header to the receipt's header."""
        credential = EVM.parse_credential(select_credential([header]) or "")
        paid = self.engine.challenger.authenticate(credential, [self.offer])
        outcome = await self.engine.perform(paid)
        return format_receipt(self.engine.receipt(paid, outcome))


def signed(key: ChannelKey, amount: int) -> SignedVoucher:
    """Return the payer's voucher."""
    return SignedVoucher(key.channel_id, amount, sign(PAYER_KEY, EVM.voucher_digest(key, amount)))


def header_of(challenge: Challenge, key: ChannelKey, amount: int) -> str:
    """Return the `Authorization` of one voucher."""
    return format_credential(Credential(challenge, VoucherPayload(signed(key, amount))))


def headers_of(
    challenge: Challenge, keys: Sequence[ChannelKey], rises: int, *, start: int = 0
) -> list[list[str]]:
    """Return, for each channel, its rising vouchers in order."""
    return [
        [header_of(challenge, key, PRICE * (start + rise + 1)) for rise in range(rises)]
        for key in keys
    ]


def random_keys(count: int, channels: int) -> list[ChannelKey]:
    """Return `count` different channels among `channels`."""
    picker = secrets.SystemRandom()
    return [key_of(number) for number in picker.sample(range(channels), count)]
