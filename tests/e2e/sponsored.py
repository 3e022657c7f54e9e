"""A provider that pays its payers' gas: worker and settler in one process, on the test's chain."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from channel.client.funding.signer import LocalSigner
from channel.client.funding.signing import (
    Domain,
    Window,
    sign_open_authorization,
    sign_open_permit,
    sign_top_up_authorization,
    sign_top_up_permit,
)
from channel.engine import SponsorTerms
from channel.methods.evm.method import EVM
from channel.methods.evm.payload import (
    OpenAuthorization,
    OpenPermit2,
    TopUpAuthorization,
    TopUpPermit2,
    build_open,
    build_top_up,
)
from channel.types import ZERO_ADDRESS, ChannelKey, ChannelTerms, SignedVoucher
from channel.verify.signature import sign
from channel.verify.typed_data import (
    derive_channel_id,
    permit2_domain_separator,
)
from channel.wire.funding import Deposit
from channel.wire.payload import (
    ClosePayload,
    VoucherPayload,
)
from settlement import abi
from settlement.addresses import PERMIT2
from settlement.dev.devnet import Devnet
from settlement.escrow.reader import EscrowReader
from settlement.node.values import parse_quantity
from settlement.sponsor.capabilities import probe
from settlement.sponsor.orders.interface import DepositOrders
from settlement.sponsor.orders.url import open_orders
from settlement.sponsor.sender import DepositSender
from settlement.sponsor.worker import SponsorLimits, WaitingSponsor
from settlement.tx.journal.interface import SettlerJournal
from settlement.tx.journal.url import open_journal
from settlement.tx.manager import TxLimits, TxManager
from settlement.tx.orders import OrderLimits
from tests.e2e.selling import DEPOSIT, Provider, provide

LIMITS = SponsorLimits(
    orders=OrderLimits(period_s=3600, gas_gwei=10**9, per_funder=1000),
    gas_price_max_wei=100 * 10**9,
    margin_s=60,
    wait_s=10,
)
_HOUR_S = 3600


class GaslessPayer:
    """An account with tokens and no ether."""

    def __init__(self, chain: Devnet, token_domain: bytes, name: str = "gasless") -> None:
        self.chain = chain
        account = chain.account(name)
        self.address, self.private_key = account.address, account.private_key
        self.signer = LocalSigner(account.private_key)
        values = chain.values
        self.terms = ChannelTerms(
            self.address, chain.account("payee").address, values.token, ZERO_ADDRESS
        )
        self.salt = bytes(32)
        self.key = self.key_of(self.salt)
        self.token_domain = Domain(token_domain, values.escrow)
        self.permit2_domain = Domain(permit2_domain_separator(values.chain_id), values.escrow)
        self.permit_nonce = 0

    def key_of(self, salt: bytes) -> ChannelKey:
        values = self.chain.values
        channel_id = derive_channel_id(
            self.terms, salt=salt, escrow=values.escrow, chain_id=values.chain_id
        )
        return ChannelKey(values.chain_id, values.escrow, channel_id)

    async def window(self) -> Window:
        head = await self.chain.rpc.block()
        return Window(0, head.timestamp + _HOUR_S)

    def sign(self, amount: int) -> SignedVoucher:
        signature = sign(self.private_key, EVM.voucher_digest(self.key, amount))
        return SignedVoucher(self.key.channel_id, amount, signature)

    def next_channel(self) -> None:
        self.salt = (int.from_bytes(self.salt) + 1).to_bytes(32)
        self.key = self.key_of(self.salt)

    async def opening_deposit(
        self, kind: str = "authorization", amount: int = DEPOSIT, window: Window | None = None
    ) -> Deposit:
        window = window or await self.window()
        if kind == "authorization":
            return await sign_open_authorization(
                self.signer,
                self.token_domain,
                window,
                terms=self.terms,
                salt=self.salt,
                amount=amount,
            )
        self.permit_nonce += 1
        return await sign_open_permit(
            self.signer,
            self.permit2_domain,
            terms=self.terms,
            salt=self.salt,
            amount=amount,
            nonce=self.permit_nonce,
            deadline=window.valid_before,
        )

    async def top_up_deposit(
        self, kind: str = "authorization", amount: int = 500, salt: bytes = bytes(32)
    ) -> Deposit:
        window = await self.window()
        if kind == "authorization":
            return await sign_top_up_authorization(
                self.signer,
                self.token_domain,
                window,
                channel_id=self.key.channel_id,
                salt=salt,
                amount=amount,
            )
        self.permit_nonce += 1
        return await sign_top_up_permit(
            self.signer,
            self.permit2_domain,
            token=self.terms.token,
            channel_id=self.key.channel_id,
            amount=amount,
            nonce=self.permit_nonce,
            deadline=window.valid_before,
        )

    async def opening(
        self, voucher: int = 0, kind: str = "authorization", **of_deposit: Any
    ) -> OpenAuthorization | OpenPermit2:
        return build_open(await self.opening_deposit(kind, **of_deposit), self.sign(voucher))

    async def top_up(
        self, kind: str = "authorization", **of_deposit: Any
    ) -> TopUpAuthorization | TopUpPermit2:
        return build_top_up(await self.top_up_deposit(kind, **of_deposit), self.key.channel_id)

    def voucher(self, amount: int, deposit: Deposit | None = None) -> VoucherPayload:
        return VoucherPayload(self.sign(amount), deposit)

    def closing(self, amount: int) -> ClosePayload:
        return ClosePayload(self.sign(amount))

    async def approve_permit2(self) -> None:
        """Approve Permit2 once, with borrowed ether: every payer must do that."""
        await self.chain.fund(self.address, ether=1)
        sender = TxManager(self.chain.rpc, self.chain.signer("gasless"))
        await sender.send(self.terms.token, abi.approve.encode(PERMIT2, 2**256 - 1))
        await self.chain.rpc.command("anvil_setBalance", "0x" + self.address.hex(), "0x0")


class Sponsored:
    """The parts that a test of sponsored deposits uses."""

    def __init__(
        self,
        provider: Provider,
        payer: GaslessPayer,
        orders: DepositOrders,
        sender: TxManager,
        journal: SettlerJournal,
    ) -> None:
        self.provider = provider
        self.payer = payer
        self.orders = orders
        self.sender = sender
        self.journal = journal
        self.chain = provider.chain

    async def sent(self) -> int:
        """Return how many transactions of the payee were mined; each one cost gas."""
        account = "0x" + self.chain.account("payee").address.hex()
        count = await self.chain.rpc.read("eth_getTransactionCount", account, "latest")
        return parse_quantity(count)

    async def ether(self, account: str = "payee") -> int:
        return await self.chain.rpc.balance_wei(self.chain.account(account).address)


async def fund_payer(chain: Devnet, name: str = "gasless", amount: int = 10**9) -> None:
    await chain.fund(chain.account(name).address, amount=amount)


@asynccontextmanager
async def sponsor_deposits(
    chain: Devnet,
    path: Path,
    *,
    limits: SponsorLimits = LIMITS,
    deposit_min: int = 100,
    per_source_max: int = 10_000,
    sends: bool = True,
    database: str | None = None,
    **changes: Any,
) -> AsyncIterator[Sponsored]:
    """Serve, and submit what payers sign; without `sends` no process broadcasts.

    Orders and journal are in the books' own file, or in another `database`.
    """
    reader = EscrowReader(chain.rpc, chain.values.escrow)
    capabilities = await probe(reader, chain.values.token)
    payee = chain.account("payee").address
    url = database or f"sqlite:///{path / 'ledger.sqlite'}"
    chain_id = chain.values.chain_id
    async with AsyncExitStack() as open_:
        journal = await open_journal(url, account=payee, chain_id=chain_id)
        open_.push_async_callback(journal.close)
        await journal.take_lease("this test", ttl_s=600)
        orders = await open_orders(url, escrow=reader.escrow, chain_id=chain_id)
        open_.push_async_callback(orders.close)
        confirmations = changes.get("confirmations", 1)
        sender = TxManager(
            chain.rpc,
            chain.signer("payee"),
            journal=journal,
            limits=TxLimits(
                confirmations=confirmations,
                poll_max_s=0.1,
                resend_after_s=0.2,
                overtaken_after_s=0.5,
            ),
        )
        terms = SponsorTerms(
            credential_types=(*capabilities.able, "hash"),
            token_domain=capabilities.token_domain,
            deposit_min=deposit_min,
            per_source_max=per_source_max,
        )
        sponsor = WaitingSponsor(orders, reader, sender=payee, limits=limits)
        provider = await open_.enter_async_context(
            provide(chain, path, sponsor=sponsor, **{"sponsor_terms": terms, **changes})
        )
        if sends:
            for work in (sender.run(), DepositSender(orders, reader, sender, journal).run()):
                open_.push_async_callback(_stop, asyncio.create_task(work))
        await fund_payer(chain)
        payer = GaslessPayer(chain, capabilities.token_domain)
        # Its address is the source of the credentials.
        provider.payer = payer  # type: ignore[assignment]
        yield Sponsored(provider, payer, orders, sender, journal)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def with_voucher(payload: Any, voucher: SignedVoucher) -> Any:
    return replace(payload, voucher=voucher)
