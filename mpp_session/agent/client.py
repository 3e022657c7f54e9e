"""An httpx client that pays: `channel.client` joined with an account on a chain.

    policy = Policy(limits=(TokenLimits(
        chain_id=8453, token=USDC, unit_price_max={"llm_token": 50, "request": 10_000},
        deposit_max=5_000_000, budget=20_000_000),))

    async with open_client(
        rpc_url=RPC_URL, private_key=KEY, policy=policy, store="agent.db"
    ) as client:
        answer = await client.get("https://api.example/joke")
        await client.payments.close("https://api.example/")

The same client serves `openai.AsyncOpenAI(base_url=..., api_key="unused", http_client=client)`.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from channel.chain import PayerChain
from channel.client.funding.keys import OneKey, VoucherKeys
from channel.client.funding.signer import AccountSigner, Signer
from channel.client.http.transport import PayingTransport
from channel.client.http.websocket import PayingWebSocket
from channel.client.payment.payer import Payer
from channel.client.payments import Payments
from channel.client.policy.policy import Policy
from channel.client.store.sqlite import PaymentStore
from channel.errors import ConfigError
from channel.types import Address
from mpp_session.agent.keystore import decrypt_keystore
from settlement.escrow.payer import PayerAccount
from settlement.node.rpc import Rpc
from settlement.tx.manager import TxManager
from settlement.tx.signer import KeySigner, WalletSigner

__all__ = ["PayingClient", "build_client", "load_keystore", "open_client"]

TIMEOUT_S: Final = 60.0
"""Model servers take long until their first byte; httpx's default is 5 s."""


class PayingClient(httpx.AsyncClient):
    """An `httpx.AsyncClient` whose requests are paid for, and its channels."""

    def __init__(self, *, payments: Payments, transport: PayingTransport, **options: Any) -> None:
        super().__init__(transport=transport, **options)
        self.payments = payments
        self.transport = transport
        """What pays: for a client of another kind."""

    def websocket(
        self, url: str, *, headers: Mapping[str, str] | None = None, protocols: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[PayingWebSocket]:
        """Open a websocket and pay for its messages, within the policy.

            async with client.websocket("wss://api.example/talk") as socket:
                await socket.send("hello")
                async for message in socket:
                    print(message)

        Raises:
            AgentError: Paying would violate the policy, or did not help.
            httpx.ConnectError: The connection could not be made.
        """
        return self.payments.websocket(url, headers=headers, protocols=protocols)


def build_client(  # noqa: PLR0913 -- the parts it is put together from, once
    *,
    policy: Policy,
    keys: VoucherKeys,
    store: PaymentStore,
    chains: Collection[PayerChain],
    base_url: str = "",
    timeout_s: float = TIMEOUT_S,
    transport: httpx.AsyncBaseTransport | None = None,
    management: httpx.AsyncBaseTransport | None = None,
    answers_refusals: bool | None = None,
) -> PayingClient:
    """Return a client over parts that the caller has opened and will close.

    Args:
        policy: What the client may agree to.
        keys: Sign the vouchers: `OneKey(signer)`, or a key for each channel.
        store: Stores what was signed.
        chains: The depositing accounts, one a chain.
        base_url: As in httpx.
        timeout_s: Timeout in seconds for connecting, and between bytes.
        transport: Sends the requests; a plain `httpx.AsyncHTTPTransport` if None.
        management: Sends vouchers beside streams; see `PayingTransport`.
        answers_refusals: See `PayingTransport`.
    """
    inner = httpx.AsyncHTTPTransport() if transport is None else transport
    payer = Payer(
        policy=policy,
        keys=keys,
        store=store,
        chains={chain.chain_id: chain for chain in chains},
    )
    return PayingClient(
        payments=Payments(payer, management or inner),
        transport=PayingTransport(
            payer, inner, management=management, answers_refusals=answers_refusals
        ),
        base_url=base_url,
        timeout=timeout_s,
    )


@asynccontextmanager
async def open_client(  # noqa: PLR0913 -- each is a choice, and none but four must be made
    *,
    rpc_url: str | None = None,
    private_key: bytes | str | None = None,
    policy: Policy | None = None,
    store: Path | str | None = None,
    signer: Signer | None = None,
    keys: VoucherKeys | None = None,
    wallet: Address | str | None = None,
    token: str | None = None,
    task: str = "",
    on_behalf_of: str = "",
    trusted_escrows: Collection[Address] = (),
    base_url: str = "",
    timeout_s: float = TIMEOUT_S,
    answers_refusals: bool | None = None,
) -> AsyncIterator[PayingClient]:
    """Open a client for one account on one chain; close everything at the end of the context.

    Channels stay open, and the next client with the same store uses them again.
    `client.payments.close()` closes them.

    With the address of a wallet process (`wallet="unix:/path/wallet.sock"`) and this agent's
    `token`, that process makes each request and pays for it. Then the first six arguments and
    `trusted_escrows` are the wallet's, and are left out here.

    Args:
        rpc_url: A node of the chain that the policy's limits name.
        private_key: The depositing account's key: 32 bytes, or hexadecimal. The account needs ether
            only for servers that do not pay the gas of a deposit.
        policy: What the client may agree to.
        store: File for what was signed; created if missing, readable by its owner only.
        signer: Signs the vouchers, for example a key that can move no deposit. The account if None.
        keys: Sign the vouchers instead, a key for each channel: see `load_channel_keys`.
        wallet: The contract wallet that deposits, if one does: it must accept the key's signatures
            as its own (ERC-1271). It must hold the token, and needs no ether. Or the address of a
            wallet process: `unix:/path/wallet.sock`, or `http://127.0.0.1:PORT`.
        token: The agent's token for that process, as `mpp-session wallet agent-add` shows it.
        task: What the requests are for, unless a request says it by `PURPOSE` or `attach_purpose`.
        on_behalf_of: For whom they are made, likewise.
        trusted_escrows: Escrows to trust beside those of this package's factory (F-91).
        base_url: As in httpx.
        timeout_s: Timeout in seconds for connecting, and between bytes.
        answers_refusals: Whether a refusal is an answer or an exception; see `PayingTransport`.

    Raises:
        ConfigError: Arguments are missing or do not belong together, the key is invalid, the limits
            name several chains, or the node is on another.
        ChainUnavailableError: The node does not answer.
        StoreError: The store cannot be opened.
    """
    given = {
        "rpc_url": rpc_url,
        "private_key": private_key,
        "policy": policy,
        "store": store,
        "signer": signer,
        "keys": keys,
        "trusted_escrows": trusted_escrows or None,
    }
    if isinstance(wallet, str):
        from mpp_session.agent.wallet_socket import connect_wallet  # noqa: PLC0415 -- it imports us

        _require_none(given)
        if token is None:
            raise ConfigError("give the agent's `token` for the wallet, too")
        async with connect_wallet(
            wallet,
            token=token,
            task=task,
            on_behalf_of=on_behalf_of,
            base_url=base_url,
            timeout_s=timeout_s,
            answers_refusals=answers_refusals,
        ) as client:
            yield client
        return
    if rpc_url is None or private_key is None or policy is None or store is None:
        missing = [
            name for name in ("rpc_url", "private_key", "policy", "store") if not given[name]
        ]
        raise ConfigError(f"give {', '.join(missing)}; or the address of a `wallet` and a `token`")
    if token is not None or task or on_behalf_of:
        raise ConfigError("`token`, `task` and `on_behalf_of` need the address of a `wallet`")
    key = _key_signer(private_key)
    chain_ids = {limits.chain_id for limits in policy.limits}
    if len(chain_ids) != 1:
        raise ConfigError("the policy's limits must name one chain; for several use `build_client`")
    async with await Rpc.connect(rpc_url, chain_id=chain_ids.pop()) as rpc:
        payment_store = await PaymentStore.open(store)
        try:
            chain = PayerAccount(
                TxManager(rpc, key),
                signer=key if wallet is None else WalletSigner(wallet, key),
                trusted_escrows=trusted_escrows,
            )
            async with build_client(
                policy=policy,
                keys=keys or OneKey(signer or AccountSigner(chain)),
                store=payment_store,
                chains=[chain],
                base_url=base_url,
                timeout_s=timeout_s,
                answers_refusals=answers_refusals,
            ) as client:
                yield client
        finally:
            await payment_store.close()


async def load_keystore(path: Path | str, password: str) -> bytes:
    """Return the private key of an encrypted keystore file. Slow by design; runs in a thread.

    Raises:
        ConfigError: The file cannot be read, or the password does not decrypt it.
    """
    return await asyncio.to_thread(decrypt_keystore, Path(path), password)


def _require_none(given: Mapping[str, object]) -> None:
    """Check that nothing is given that a wallet process holds itself."""
    surplus = [name for name, value in given.items() if value is not None]
    if surplus:
        raise ConfigError(
            f"leave out {', '.join(surplus)}: the wallet process has its own, and an agent that "
            "pays through it needs neither a key nor a policy"
        )


def _key_signer(private_key: bytes | str) -> KeySigner:
    if isinstance(private_key, bytes):
        return KeySigner(private_key)
    try:
        return KeySigner(bytes.fromhex(private_key.removeprefix("0x")))
    except ValueError:
        raise ConfigError("the private key is not 32 bytes, nor 64 hexadecimal digits") from None
