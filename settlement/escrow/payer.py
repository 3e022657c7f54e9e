"""A payer's account on one chain: deposits, top-ups, withdrawals (`channel.chain.PayerChain`).

The account is a key's own, which can send transactions if it has ether, or a contract wallet, whose
owner only signs. A contract wallet cannot send transactions from here; a sponsor sends its
deposits.
"""

import asyncio
import time
from collections.abc import Collection
from typing import Final

from channel.chain import PayerMeans
from channel.types import Address, ChannelFact, ChannelId, TokenUnit, TxHash
from settlement import abi
from settlement.addresses import (
    PERMIT2,
    SALT,
    create2_address,
    escrow_init_code,
    factory_address,
)
from settlement.errors import (
    ContractRevertedError,
    NoGasError,
    UntrustedEscrowError,
    WalletSendsError,
)
from settlement.escrow.reader import EscrowReader
from settlement.escrow.token_domain import read_token_domain
from settlement.escrow.token_name import read_token_unit
from settlement.node import questions
from settlement.node.transport import Call
from settlement.node.values import parse_block, parse_bytes, parse_quantity
from settlement.tx.manager import TxManager
from settlement.tx.signer import MessageSigner
from settlement.types import Receipt

__all__ = ["PayerAccount"]

_GAS_FOR_A_FEW: Final = 500_000
"""Gas of an approval and an opening, with room for a rising price."""
_UNLIMITED: Final = 2**256 - 1
_BITS: Final = 256
_WORD_BYTES: Final = 32


class PayerAccount:
    """Implements `PayerChain` with keys that this process holds.

    Every method may raise `ChainUnavailableError`. Methods that send a transaction may also raise
    `ContractRevertedError` (nothing moved) and `TransactionPendingError` (it may still be mined).
    """

    def __init__(
        self,
        sender: TxManager,
        *,
        signer: MessageSigner | None = None,
        factory: Address | None = None,
        trusted_escrows: Collection[Address] = (),
    ) -> None:
        """Pin the escrows that may hold deposits.

        Args:
            sender: Reads the chain, and sends the payer's transactions if the payer is its key.
            signer: Signs deposits for the account; the sender's key if None.
            factory: The factory whose escrows are trusted; this package's own if None.
            trusted_escrows: Further trusted escrows, each named explicitly by the user (F-91).
        """
        self._sender = sender
        self._signer: MessageSigner = sender.signer if signer is None else signer
        self._factory = factory
        self._trusted = frozenset(trusted_escrows)
        self._spending_allowance = asyncio.Lock()
        self._token_domains: dict[Address, bytes] = {}
        self._token_units: dict[Address, TokenUnit] = {}

    @property
    def chain_id(self) -> int:
        """The chain of the account."""
        return self._sender.rpc.chain_id

    @property
    def account(self) -> Address:
        """The account that deposits."""
        return self._signer.address

    async def require_escrow(self, escrow: Address, token: Address) -> None:
        """Check that `escrow` is deployed, with this package's code for `token` (F-91, CLIENT-01).

        The address of an escrow follows from the pinned factory, the escrow's init code and the
        token (CREATE2): equal addresses mean equal code, so no list is needed.

        Raises:
            UntrustedEscrowError: It is another contract, or there is no contract.
        """
        expected = await asyncio.to_thread(self._expected_escrow, token)
        if escrow != expected and escrow not in self._trusted:
            raise UntrustedEscrowError(escrow, "is not the escrow this package knows for the token")
        if not await self._sender.rpc.code(escrow):
            raise UntrustedEscrowError(escrow, "has no code on this chain")

    def _expected_escrow(self, token: Address) -> Address:
        return create2_address(self._factory or factory_address(), SALT, escrow_init_code(token))

    async def read_channel(
        self, escrow: Address, channel_id: ChannelId, *, block_number: int | None = None
    ) -> ChannelFact | None:
        """Return the channel as of a block (the head if None), or None if it never existed."""
        reader = EscrowReader(self._sender.rpc, escrow)
        return await reader.read_channel(channel_id, block_number=block_number)

    async def read_means(self, token: Address, permit2: Address) -> PayerMeans:
        """Return how the account can fund a channel in `token`, in one round trip."""
        calls = [
            _call(token, abi.balance_of.encode(self.account)),
            _call(token, abi.allowance.encode(self.account, permit2)),
            questions.code_of(permit2),
            questions.balance_of(self.account),
            questions.GAS_PRICE,
            questions.block(),
        ]
        answers, token_domain = await asyncio.gather(
            self._sender.rpc.read_batch(calls), self._token_domain(token)
        )
        balance, allowance, code, wei, gas_price, block = answers
        head_at = parse_block(block).timestamp
        affordable = parse_quantity(wei) >= _GAS_FOR_A_FEW * parse_quantity(gas_price)
        return PayerMeans(
            balance=abi.balance_of.decode_int(parse_bytes(balance)),
            can_pay_gas=self._can_send and affordable and parse_quantity(wei) > 0,
            token_domain=token_domain,
            permit2_allowance=(
                abi.allowance.decode_int(parse_bytes(allowance)) if parse_bytes(code) else None
            ),
            # The next block is not older than this, even on a chain that mines on demand.
            now=max(head_at, int(time.time())),
            head_at=head_at,
        )

    async def _token_domain(self, token: Address) -> bytes | None:
        """Read the token's domain once. A missing domain is not cached: an upgrade may add it."""
        if token not in self._token_domains:
            domain = await read_token_domain(self._sender.rpc, token)
            if domain is None:
                return None
            self._token_domains[token] = domain.separator
        return self._token_domains[token]

    async def read_token_unit(self, token: Address) -> TokenUnit | None:
        """See `PayerChain`. A token keeps its name: it is asked for once."""
        if token not in self._token_units:
            unit = await read_token_unit(self._sender.rpc, token)
            if unit is None:
                return None
            self._token_units[token] = unit
        return self._token_units[token]

    async def sign(self, digest: bytes) -> bytes:
        """Sign for the account; see `MessageSigner`."""
        return await self._signer.sign_message(digest)

    async def find_use(self, *, token: Address, authorization: bytes) -> int | None:
        """Return a block in which this EIP-3009 nonce of the account is used, or None."""
        question = abi.authorization_state.encode(self.account, authorization)
        number, answer = await self._call_at_head(token, question)
        return number if abi.authorization_state.decode_int(answer) else None

    async def find_permit_use(self, *, escrow: Address, nonce: int) -> int | None:
        """Return a block in which this Permit2 nonce of the account is used, or None.

        Reads the Permit2 contract that the escrow uses, or the canonical one if it names none.
        """
        word, bit = divmod(nonce, _BITS)
        question = abi.nonce_bitmap.encode(self.account, word)
        number, answer = await self._call_at_head(await self._permit2_of(escrow), question)
        return number if abi.nonce_bitmap.decode_int(answer) >> bit & 1 else None

    async def _permit2_of(self, escrow: Address) -> Address:
        try:
            answer = await self._sender.rpc.call(escrow, abi.permit2.encode())
        except ContractRevertedError:
            return PERMIT2
        return abi.permit2.decode_address(answer) if len(answer) == _WORD_BYTES else PERMIT2

    async def _call_at_head(self, contract: Address, calldata: bytes) -> tuple[int, bytes]:
        number = await self._sender.rpc.block_number()
        return number, await self._sender.rpc.call(contract, calldata, block_number=number)

    async def approve_permit2(self, *, token: Address, permit2: Address) -> None:
        """Allow Permit2 to move the token, once; each transfer still needs a signature.

        Raises:
            UntrustedEscrowError: `permit2` is not the canonical contract, which requires
                signatures.
        """
        if permit2 != PERMIT2:
            raise UntrustedEscrowError(permit2, "is not the canonical Permit2 contract")
        async with self._spending_allowance:
            await self._raise_allowance(permit2, token, _UNLIMITED, at_least=1 << 128)

    async def open_channel(
        self,
        *,
        escrow: Address,
        payee: Address,
        token: Address,
        deposit: int,
        salt: bytes,
        authorized_signer: Address,
    ) -> TxHash:
        """Approve if needed, open, and return the opening transaction once it is mined."""
        calldata = abi.open_.encode(payee, token, deposit, salt, authorized_signer)
        return await self._deposit(escrow, token, deposit, calldata)

    async def find_opening(self, *, escrow: Address, channel_id: ChannelId) -> TxHash | None:
        """Return the transaction whose `ChannelOpened` log shows this channel, or None."""
        log = await EscrowReader(self._sender.rpc, escrow).find_opening(channel_id)
        return None if log is None else log.tx_hash

    async def top_up(
        self, *, escrow: Address, token: Address, channel_id: ChannelId, amount: int
    ) -> TxHash:
        """Approve if needed, top up, and return the transaction once it is mined."""
        return await self._deposit(escrow, token, amount, abi.top_up.encode(channel_id, amount))

    async def request_close(self, *, escrow: Address, channel_id: ChannelId) -> TxHash:
        """Start the grace period, without the payee's cooperation (CLOSE-08)."""
        return (await self._send(escrow, abi.request_close.encode(channel_id))).tx_hash

    async def withdraw(self, *, escrow: Address, channel_id: ChannelId) -> TxHash:
        """Withdraw the remaining deposit after the grace period."""
        return (await self._send(escrow, abi.withdraw.encode(channel_id))).tx_hash

    @property
    def _can_send(self) -> bool:
        return self._signer.address == self._sender.address

    async def _send(self, to: Address, calldata: bytes) -> Receipt:
        if not self._can_send:
            raise WalletSendsError(self.account)
        if not await self._sender.rpc.balance_wei(self.account):
            raise NoGasError(self.account)
        return await self._sender.send(to, calldata)

    async def _deposit(
        self, escrow: Address, token: Address, amount: int, calldata: bytes
    ) -> TxHash:
        """Deposit one at a time: two would each count the same allowance as theirs (F-41)."""
        async with self._spending_allowance:
            await self._raise_allowance(escrow, token, amount, at_least=amount)
            return (await self._send(escrow, calldata)).tx_hash

    async def _raise_allowance(
        self, spender: Address, token: Address, amount: int, *, at_least: int
    ) -> None:
        """Allow exactly `amount`, unless `at_least` is already allowed."""
        question = abi.allowance.encode(self.account, spender)
        allowed = abi.allowance.decode_int(await self._sender.rpc.call(token, question))
        if allowed >= at_least:
            return
        try:
            await self._send(token, abi.approve.encode(spender, amount))
        except ContractRevertedError as error:
            if allowed == 0 or error.tx_hash is not None:
                raise
            # USDT and similar tokens change a non-zero allowance only to zero first (F-89).
            await self._send(token, abi.approve.encode(spender, 0))
            await self._send(token, abi.approve.encode(spender, amount))


def _call(to: Address, calldata: bytes) -> Call:
    return questions.call({"to": "0x" + to.hex(), "data": "0x" + calldata.hex()})
