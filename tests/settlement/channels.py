"""Opens channels and signs their vouchers, for the tests of the chain side."""

import asyncio

from eth_account import Account
from msgspec.structs import replace

from channel.methods.evm.method import EVM
from channel.types import ZERO_ADDRESS, Address, ChannelId, ChannelKey, ChannelTerms, TxHash
from channel.verify.typed_data import derive_channel_id
from settlement import abi
from settlement.dev.devnet import Devnet
from settlement.escrow.payer import PayerAccount

DEPOSIT = 1_000_000


class Channels:
    """Channels from `payer` to `payee`."""

    def __init__(self, chain: Devnet, account: PayerAccount) -> None:
        self._chain = chain
        self._account = account
        self._opened = 0
        self.terms = ChannelTerms(
            payer=chain.account("payer").address,
            payee=chain.account("payee").address,
            token=chain.values.token,
            authorized_signer=ZERO_ADDRESS,
        )

    def key(self, channel_id: ChannelId) -> ChannelKey:
        return ChannelKey(self._chain.values.chain_id, self._chain.values.escrow, channel_id)

    async def open(self, deposit: int = DEPOSIT, *, signer: Address | None = None) -> ChannelId:
        channel_id, _ = await self.open_with_hash(deposit, signer=signer)
        return channel_id

    async def open_with_hash(
        self, deposit: int = DEPOSIT, *, signer: Address | None = None
    ) -> tuple[ChannelId, TxHash]:
        self._opened += 1
        salt = self._opened.to_bytes(32, "big")
        values, terms = self._chain.values, self.terms
        if signer is not None:
            terms = replace(terms, authorized_signer=signer)
        tx_hash = await self._account.open_channel(
            escrow=values.escrow,
            payee=terms.payee,
            token=terms.token,
            deposit=deposit,
            salt=salt,
            authorized_signer=terms.authorized_signer,
        )
        channel_id = derive_channel_id(
            terms, salt=salt, escrow=values.escrow, chain_id=values.chain_id
        )
        return channel_id, tx_hash

    def sign(self, channel_id: ChannelId, amount: int, *, by: str = "payer") -> bytes:
        """Sign a voucher with eth_account: another implementation than the engine's own."""
        digest = EVM.voucher_digest(self.key(channel_id), amount)
        key = self._chain.account(by).private_key
        return bytes(Account.unsafe_sign_hash(digest, key).signature)

    async def top_up(self, channel_id: ChannelId, amount: int) -> TxHash:
        values = self._chain.values
        return await self._account.top_up(
            escrow=values.escrow, token=values.token, channel_id=channel_id, amount=amount
        )


async def set_paused(chain: Devnet, *, on: bool) -> None:
    """Stop the token, or let it move again."""
    function = abi.Function("pause()" if on else "unpause()")
    await chain.deployer.send(chain.values.token, function.encode())


async def send_blindly(chain: Devnet, to: Address, calldata: bytes, *, by: str) -> TxHash:
    """Send without a simulation, as others do: it is mined, and reverts."""
    account = chain.account(by)
    nonce = await chain.rpc.read("eth_getTransactionCount", "0x" + account.address.hex(), "latest")
    signed = Account.sign_transaction(
        {
            "type": 2,
            "chainId": chain.values.chain_id,
            "nonce": int(nonce, 16),
            "gas": 500_000,
            "maxFeePerGas": 10**10,
            "maxPriorityFeePerGas": 1,
            "value": 0,
            "to": to,
            "data": calldata,
        },
        account.private_key,
    )
    raw = "0x" + bytes(signed.raw_transaction).hex()
    tx_hash = TxHash(bytes.fromhex((await chain.rpc.command("eth_sendRawTransaction", raw))[2:]))
    for _ in range(200):
        if await chain.rpc.receipt(tx_hash) is not None:
            break
        await asyncio.sleep(0.005)  # Anvil answers before it has mined
    return tx_hash
