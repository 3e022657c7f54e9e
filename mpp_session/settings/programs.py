"""All settings of one program: a gateway, a seller, a settler, a watchtower."""

from collections.abc import Sequence

import msgspec

from channel.errors import ConfigError
from channel.types import Address
from mpp_session.settings.admin import Admin
from mpp_session.settings.books import Exposure, Ledger, Settlement, Sponsoring, Tower
from mpp_session.settings.chain import Chain, Payee, Relayer, names_key, require_development
from mpp_session.settings.discovery import Discovery
from mpp_session.settings.limits import Limits
from mpp_session.settings.rails import Rails
from mpp_session.settings.serving import Listen, Payment, Price, PriceRow, Prices, Upstream
from mpp_session.settings.values import parse_address

__all__ = [
    "Config",
    "ProviderConfig",
    "SettlerConfig",
    "TowerConfig",
    "WatchConfig",
]


class WatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for reading ledger and chain, and deciding what is due: no key, no secret."""

    chain: Chain
    ledger: Ledger
    settlement: Settlement = Settlement()
    exposure: Exposure = Exposure()


class SettlerConfig(WatchConfig, frozen=True, kw_only=True):
    """Settings of a settler, wherever it runs."""

    payee: Payee
    relayer: Relayer = Relayer()
    tower: Tower = Tower()
    price: Price | None = None
    """Needed for settling by units."""
    sponsoring: Sponsoring = Sponsoring()
    rails: Rails = Rails()

    @property
    def gas_account(self) -> Address:
        """The account whose ether pays for settling."""
        return parse_address(self.relayer.address or self.payee.address)

    def __post_init__(self) -> None:
        if (self.settlement.settle_units is not None) and (
            self.price is None or self.price.per_unit is None
        ):
            raise ValueError(
                "`settlement.settle_units` needs `price.per_unit`, the price of a unit; with "
                "prices per million tokens set `settlement.settle_value`"
            )
        require_development(self.chain, payee=self.payee, relayer=self.relayer)


class TowerConfig(WatchConfig, frozen=True, kw_only=True):
    """Settings of a watchtower. Its ledger holds only its own journal."""

    payee: Payee
    relayer: Relayer = Relayer()
    tower: Tower = Tower()

    def __post_init__(self) -> None:
        if self.relayer.address is None:
            raise ValueError(
                "`relayer.address` is missing: set the account that pays the tower's gas"
            )
        if names_key(self.payee):
            raise ValueError("`payee` names a key: give a watchtower only `payee.address`")
        require_development(self.chain, relayer=self.relayer)


class ProviderConfig(SettlerConfig, frozen=True, kw_only=True):
    """Settings of a seller: a gateway, or an application that sells by itself."""

    payment: Payment
    discovery: Discovery = Discovery()
    limits: Limits = Limits()
    admin: Admin = Admin()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.settlement.start:
            return
        sections: dict[str, Payee | Relayer] = {"payee": self.payee}
        if self.relayer.address is not None:
            sections["relayer"] = self.relayer
        for name, section in sections.items():
            if not names_key(section):
                raise ValueError(
                    f"`{name}` names no key: set `keystore_file` with `password_file`, or "
                    "`signer_url`; or set `settlement.start = false` and run `mpp-session settle` "
                    "where the key is"
                )


class Config(ProviderConfig, frozen=True, kw_only=True):
    """All settings of one gateway. An instance exists only if every setting is valid."""

    upstream: Upstream
    prices: Prices = Prices()
    listen: Listen = Listen()

    @property
    def price_rows(self) -> tuple[PriceRow, ...]:
        """The prices, in order. `[price]` is one row, for every model."""
        if self.price is None:
            return self.prices.rows
        return (PriceRow(**msgspec.structs.asdict(self.price)),)

    def with_prices(self, rows: Sequence[PriceRow]) -> "Config":
        """Return these settings with other prices.

        Raises:
            ConfigError: Another setting does not allow them.
        """
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        short = {name: getattr(rows[0], name) for name in Price.__struct_fields__} if rows else {}
        is_short = len(rows) == 1 and rows[0] == PriceRow(**short)
        values["price"] = Price(**short) if is_short else None
        values["prices"] = Prices() if is_short else Prices(file=self.prices.file, rows=tuple(rows))
        try:
            return Config(**values)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.price is None) == (not self.prices.rows):
            raise ValueError(
                "expected either `[price]`, for every model, or `[[prices]]`, a table for each, "
                f"found {'neither' if self.price is None else 'both'}"
            )
        if self.listen.workers > 1 and self.ledger.url.startswith("sqlite:"):
            raise ValueError(
                "`listen.workers` above 1 needs a ledger in PostgreSQL: only one process can "
                "serve a SQLite file"
            )
