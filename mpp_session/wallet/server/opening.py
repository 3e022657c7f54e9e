"""Opens what a wallet needs, and checks it, before any agent can connect."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from channel.client.funding.keys import VoucherKeys
from channel.errors import ConfigError
from channel.verify.typed_data import keccak
from mpp_session.wallet.approvals.rules import rules_of
from mpp_session.wallet.approvals.store import Approvals
from mpp_session.wallet.audit.checkpoints import CheckpointWriter
from mpp_session.wallet.audit.trail import Trail
from mpp_session.wallet.books.books import WalletBooks
from mpp_session.wallet.policy import WalletPolicy, counters_for, decide, load_policy
from mpp_session.wallet.policy.compiled import Token
from mpp_session.wallet.server.running import RunningWallet
from mpp_session.wallet.server.sockets import make_home, require_private
from mpp_session.wallet.watch.store import Watch
from settlement.escrow.payer import PayerAccount
from settlement.escrow.token_name import read_token_unit
from settlement.node.rpc import Rpc
from settlement.tx.manager import TxManager
from settlement.tx.signer import KeySigner

__all__ = ["BOOKS", "WalletSettings", "has_other_users", "open_wallet"]

BOOKS: Final = "wallet.db"
"""The file of channels, sums and the trail, in the wallet's directory."""
CHECKPOINTS: Final = "trail.checkpoints"
PUBLIC_KEY: Final = "trail.pub"


class WalletSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a wallet is started with."""

    policy: Path
    home: Path
    """Directory of its own: books, sockets, the owner's token."""
    rpc_urls: Sequence[str]
    """Nodes; several of one chain are used in this order."""
    private_key: bytes
    """Of the account that deposits, on every chain."""
    keys: VoucherKeys | None = None
    """Sign the vouchers, a key for each channel; None: the account does."""
    listen: tuple[str, int] | None = None
    """Address and port of this machine for agents that have no Unix sockets."""
    approvals: tuple[str, int] | None = None
    """Address and port of this machine for the pages on which people answer."""
    checkpoints: Path | None = None
    """File for the checkpoints of the audit trail; None: in `home`."""

    def __repr__(self) -> str:
        return f"WalletSettings(policy={self.policy}, home={self.home}, private_key=...)"


@asynccontextmanager
async def open_wallet(settings: WalletSettings) -> AsyncIterator[RunningWallet]:
    """Open a wallet, and close it at the end: streams first, then clients, nodes and books.

    Raises:
        ConfigError: The policy is invalid or open to others, or contradicts the chain.
        ChainUnavailableError: A node does not answer.
        StoreError: The books cannot be opened, another wallet uses them, or their audit trail is
            not that of its checkpoints.
    """
    policy = await asyncio.to_thread(_prepare, settings)
    async with AsyncExitStack() as opened:
        chains = await _open_chains(settings, policy, opened)
        trail = Trail()
        approvals = Approvals(rules_of(policy), trail)
        watch = Watch(policy)
        books = await WalletBooks.open(
            settings.home / BOOKS,
            policy,
            decide=decide,
            counters_for=counters_for,
            trail=trail,
            approvals=approvals,
            watch=watch,
        )
        opened.push_async_callback(books.close)
        writer = await CheckpointWriter.open(
            books.store.transact,
            trail,
            settings.checkpoints or settings.home / CHECKPOINTS,
            secret=settings.private_key,
            key_path=settings.home / PUBLIC_KEY,
        )
        opened.push_async_callback(writer.close)
        wallet = RunningWallet(
            policy,
            policy_path=settings.policy,
            books=books,
            approvals=approvals,
            watch=watch,
            checkpoints=writer,
            chains=chains,
            keys=settings.keys,
        )
        opened.push_async_callback(wallet.end)
        await wallet.begin()
        yield wallet


def _prepare(settings: WalletSettings) -> WalletPolicy:
    require_private(settings.policy, "policy")
    policy = load_policy(settings.policy)
    make_home(settings.home, is_passed=has_other_users(policy))
    return policy


def has_other_users(policy: WalletPolicy) -> bool:
    """Whether an agent has a user of its own, and so a socket of its own."""
    return any(agent.uid is not None for agent in policy.agents.values())


async def _open_chains(
    settings: WalletSettings, policy: WalletPolicy, opened: AsyncExitStack
) -> Mapping[int, PayerAccount]:
    urls = await _urls_by_chain(settings.rpc_urls)
    wanted = {token.chain for token in policy.tokens.values()}
    missing = wanted - set(urls)
    if missing:
        found = ", ".join(map(str, urls)) or "no chain"
        raise ConfigError(
            f"the policy has tokens on chain {min(missing)}, and the nodes serve {found}: give "
            "one --rpc-url of each chain"
        )
    signer = KeySigner(settings.private_key)
    chains = {}
    for number in sorted(wanted):
        rpc = await opened.enter_async_context(await Rpc.connect(urls[number], chain_id=number))
        tokens = [token for token in policy.tokens.values() if token.chain == number]
        await _check_tokens(rpc, tokens)
        trusted = [escrow.address for token in tokens for escrow in token.escrows or ()]
        chains[number] = PayerAccount(TxManager(rpc, signer), trusted_escrows=trusted)
    return chains


async def _urls_by_chain(urls: Collection[str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for url in urls:
        async with await Rpc.connect(url) as rpc:
            found.setdefault(rpc.chain_id, []).append(url)
    return found


async def _check_tokens(rpc: Rpc, tokens: Collection[Token]) -> None:
    """Check what the policy says of tokens and escrows against the chain.

    Raises:
        ConfigError: The token has other decimals, or a named escrow has other code. Every amount
            of the policy would mean another one.
    """
    for token in tokens:
        unit = await read_token_unit(rpc, token.address)
        where = f"token.{token.alias} (0x{token.address.hex()} on chain {token.chain})"
        if unit is None:
            raise ConfigError(f"{where}: there is no token, or it names no decimals")
        if unit.decimals != token.unit.decimals:
            raise ConfigError(
                f"{where}: expected {token.unit.decimals} decimals as the policy says, found "
                f"{unit.decimals} on the chain: correct `decimals`"
            )
        for escrow in token.escrows or ():
            if escrow.code_hash is None:
                continue
            found = keccak(await rpc.code(escrow.address))
            if found != escrow.code_hash:
                raise ConfigError(
                    f"{where}: the escrow 0x{escrow.address.hex()} has code with the hash "
                    f"0x{found.hex()}, and the policy expects another: do not deposit there"
                )
