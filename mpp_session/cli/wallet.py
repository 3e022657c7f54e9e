"""The account that pays and the limits that it pays within, as flags of a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from mpp_session.cli.account import KeyedAccount, devnet_store, load_account, store_path
from mpp_session.errors import CommandError

if TYPE_CHECKING:
    from channel.client.policy.policy import Policy
    from channel.types import Address
    from mpp_session.agent.amounts import TokenUnit
    from mpp_session.agent.pay import Wallet

__all__ = [
    "DEPOSIT_MAX",
    "Budget",
    "Caps",
    "ChainId",
    "Contract",
    "DepositMax",
    "Keystore",
    "PasswordFile",
    "PayDevnet",
    "PriceMax",
    "RpcUrl",
    "Store",
    "Token",
    "VoucherKeysFile",
    "load_wallet",
]

DEPOSIT_MAX: Final = "1000000"
_TOKENS: Final = (
    "output_token",
    "reasoning_token",
    "input_token",
    "cached_input_token",
    "cache_write_token",
    "llm_token",
    "llm_chunk",
)
_PRICE_MAX: Final = {**dict.fromkeys(_TOKENS, 100), "request": 10_000}
"""Kinds that a command agrees to, with the greatest price of each unit, in base units."""

PayDevnet = Annotated[
    Path | None, typer.Option(help="Pay on a running devnet, as its account `agent`.")
]
RpcUrl = Annotated[str | None, typer.Option(help="Node of the chain to pay on.")]
ChainId = Annotated[int | None, typer.Option(help="That chain.")]
Token = Annotated[str | None, typer.Option(help="Token to pay in, 0x...")]
Keystore = Annotated[Path | None, typer.Option(help="Encrypted key of the account that pays.")]
PasswordFile = Annotated[Path | None, typer.Option(help="File whose first line decrypts it.")]
Contract = Annotated[
    str | None,
    typer.Option(help="Contract wallet that pays, 0x...: one that obeys the key (ERC-1271)."),
]
VoucherKeysFile = Annotated[
    Path | None,
    typer.Option(
        help="Sign vouchers with a key for each channel, from the secret in this file; made "
        "if missing, encrypted with the same password."
    ),
]
PriceMax = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[KIND=]PRICE",
        help='Greatest price to pay: money ("0.60 / 1M"), or base units of the token for one '
        "unit (100). KIND=PRICE sets one kind (input_token=...). PRICE alone sets every kind "
        "of token, and without a / also requests. Repeat it for several kinds. If not given: "
        "10,000 base units for a request and 100 for a token.",
    ),
]
DepositMax = Annotated[
    str,
    typer.Option(
        metavar="AMOUNT",
        help='Most to deposit in one channel, in base units or in money ("1.00 usdc").',
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="AMOUNT",
        help="Most to sign for one server in a day, over all runs with this store; as much as "
        "--deposit-max if not given.",
    ),
]
Store = Annotated[Path | None, typer.Option(help="Where channels and signed amounts are kept.")]


class Caps(NamedTuple):
    """What the flags allow, as they were typed."""

    price_max: list[str]
    deposit_max: str
    budget: str

    def policy(self, chain_id: int, token: "Address", unit: "TokenUnit | None") -> "Policy":
        """Return the policy; `unit` is the token's, None where no node names it.

        Raises:
            CommandError: A flag cannot be read.
        """
        from channel.client.policy.policy import Policy, TokenLimits
        from channel.errors import ConfigError

        try:
            limits = TokenLimits(
                chain_id=chain_id,
                token=token,
                unit_price_max=self._prices(),
                deposit_max=_amount(self.deposit_max, unit),
                budget=_amount(self.budget, unit),
                unit=unit,
            )
        except ConfigError as error:
            raise CommandError(f"--price-max: {error}") from None
        return Policy(limits=(limits,), allow_loopback_http=True)

    def _prices(self) -> dict[str, int | str]:
        """Return the greatest price of each kind. A price for a named kind overrides the others."""
        prices: dict[str, int | str] = dict(_PRICE_MAX)
        named: dict[str, int | str] = {}
        for text in self.price_max:
            kind, is_named, price = text.rpartition("=")
            value = int(price) if price.isascii() and price.isdigit() else price
            if is_named:
                named[kind.strip()] = value
            else:
                prices |= dict.fromkeys(_TOKENS if "/" in price else prices, value)
        return prices | named


def load_wallet(  # noqa: PLR0913 -- each is a flag
    caps: Caps,
    *,
    devnet: Path | None,
    rpc_url: str | None,
    chain_id: int | None,
    token: str | None,
    keystore: Path | None,
    password_file: Path | None,
    contract: str | None,
    voucher_keys: Path | None,
) -> "Wallet":
    """Return the wallet that the flags describe.

    Raises:
        CommandError: Flags are missing or cannot be read.
        ConfigError: A file cannot be read, or the password does not decrypt the keystore.
    """
    if devnet is not None:
        return _devnet_wallet(devnet, caps)
    account = load_account(
        rpc_url=rpc_url,
        chain_id=chain_id,
        token=token,
        keystore=keystore,
        password_file=password_file,
    )
    return _wallet(account, caps, _address("--token", token), contract, voucher_keys)


def _devnet_wallet(path: Path, caps: Caps) -> "Wallet":
    from mpp_session.agent.amounts import TokenUnit
    from mpp_session.agent.pay import Wallet
    from mpp_session.devnet_file import read_devnet
    from settlement.dev.devnet import GASLESS

    values = read_devnet(path)
    unit = TokenUnit(values.token_symbol, values.token_decimals)
    return Wallet(
        rpc_url=values.rpc_url,
        private_key=values.accounts[GASLESS].private_key,
        policy=caps.policy(values.chain_id, values.token, unit),
        unit=unit,
        store=devnet_store(path),
    )


def _wallet(
    account: KeyedAccount,
    caps: Caps,
    token: "Address",
    contract: str | None,
    voucher_keys: Path | None,
) -> "Wallet":
    import asyncio

    from mpp_session.agent.amounts import BASE_UNITS
    from mpp_session.agent.pay import Wallet
    from mpp_session.agent.voucher_keys import load_channel_keys
    from mpp_session.operator.token_units import read_units

    keys = None
    if voucher_keys is not None:
        keys = asyncio.run(load_channel_keys(voucher_keys, account.password))
    units = asyncio.run(read_units(account.rpc_url, account.chain_id, [token]))
    unit = units.get(token)
    return Wallet(
        rpc_url=account.rpc_url,
        private_key=account.private_key,
        policy=caps.policy(account.chain_id, token, unit),
        unit=unit or BASE_UNITS,
        store=store_path(),
        contract=None if contract is None else _address("--wallet", contract),
        keys=keys,
    )


def _address(flag: str, text: str | None) -> "Address":
    from channel.types import address

    try:
        return address(bytes.fromhex((text or "").removeprefix("0x")))
    except ValueError:
        raise CommandError(
            f"{flag}: expected an address, 0x and 40 hexadecimal digits, found {text}"
        ) from None


def _amount(text: str, unit: "TokenUnit | None") -> int:
    """Return an amount of money, or of base units, in base units."""
    from channel.errors import ConfigError
    from channel.tariff import parse_money

    if text.isascii() and text.isdigit():
        return int(text)
    if unit is None:
        raise CommandError(
            f"--deposit-max, --budget: {text!r} is money, and the node does not name the token: "
            "give base units, a whole number"
        )
    try:
        return parse_money(text, unit)
    except ConfigError as error:
        raise CommandError(f"--deposit-max, --budget: {error}") from None
