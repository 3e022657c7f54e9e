"""Every setting of the programs: name, type, bounds, default and purpose.

One frozen struct a section. `docs/reference/configuration.md` is generated from here, and a test
compares the two. The constructors check what they can without a node or a file;
`mpp_session.wiring` checks the rest before anything is served.
"""

from mpp_session.settings.admin import ADMIN_PORT, Admin
from mpp_session.settings.books import Exposure, Ledger, Settlement, Sponsoring, Tower
from mpp_session.settings.chain import DEVELOPMENT_CHAINS, Chain, Payee, Relayer, names_key
from mpp_session.settings.discovery import Discovery
from mpp_session.settings.limits import Limits
from mpp_session.settings.programs import (
    Config,
    ProviderConfig,
    SettlerConfig,
    TowerConfig,
    WatchConfig,
)
from mpp_session.settings.rails import Rails
from mpp_session.settings.serving import (
    Listen,
    Payment,
    Price,
    PriceRow,
    Prices,
    Upstream,
    describe_tariff,
)
from mpp_session.settings.values import Money, Secret, parse_address

__all__ = [
    "ADMIN_PORT",
    "DEVELOPMENT_CHAINS",
    "Admin",
    "Chain",
    "Config",
    "Discovery",
    "Exposure",
    "Ledger",
    "Limits",
    "Listen",
    "Money",
    "Payee",
    "Payment",
    "Price",
    "PriceRow",
    "Prices",
    "ProviderConfig",
    "Rails",
    "Relayer",
    "Secret",
    "Settlement",
    "SettlerConfig",
    "Sponsoring",
    "Tower",
    "TowerConfig",
    "Upstream",
    "WatchConfig",
    "describe_tariff",
    "names_key",
    "parse_address",
]
