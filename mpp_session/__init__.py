"""Payment channels for AI agents and inference providers: the public names.

    from mpp_session import Price, Route, sell                      # a provider
    from mpp_session import Policy, TokenLimits, open_client        # an agent

A name is imported when it is first used, so that `import mpp_session` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from channel.client.funding.keys import ChannelKeys as ChannelKeys
    from channel.client.funding.signer import AccountSigner as AccountSigner
    from channel.client.funding.signer import LocalSigner as LocalSigner
    from channel.client.http.transport import PayingTransport as PayingTransport
    from channel.client.http.websocket import PayingWebSocket as PayingWebSocket
    from channel.client.payments import Payments as Payments
    from channel.client.payments import Summary as Summary
    from channel.client.policy.policy import Policy as Policy
    from channel.client.policy.policy import TokenLimits as TokenLimits
    from channel.client.policy.quote import Quote as Quote
    from channel.client.store.sqlite import PaymentStore as PaymentStore
    from channel.errors import AgentError as AgentError
    from channel.errors import ApprovalPendingError as ApprovalPendingError
    from channel.errors import BudgetExceededError as BudgetExceededError
    from channel.errors import ConfigError as ConfigError
    from channel.errors import MppSessionError as MppSessionError
    from channel.errors import OfferRefusedError as OfferRefusedError
    from channel.errors import PaymentRefusedError as PaymentRefusedError
    from channel.errors import PolicyRefusedError as PolicyRefusedError
    from channel.http.events import Event as Event
    from channel.http.events import PaidEventStream as PaidEventStream
    from channel.http.hooks import AlarmEvent as AlarmEvent
    from channel.http.hooks import ChallengeEvent as ChallengeEvent
    from channel.http.hooks import Fanout as Fanout
    from channel.http.hooks import Hooks as Hooks
    from channel.http.hooks import OpenEvent as OpenEvent
    from channel.http.hooks import ReceiptEvent as ReceiptEvent
    from channel.http.hooks import RefusalEvent as RefusalEvent
    from channel.http.hooks import SettleEvent as SettleEvent
    from channel.http.hooks import SpendEvent as SpendEvent
    from channel.http.metering import Meter as Meter
    from channel.http.metering import current_meter as current_meter
    from channel.http.metering import metered as metered
    from channel.http.metering import require_meter as require_meter
    from channel.http.middleware import PaymentGate as PaymentGate
    from channel.http.pricing import Price as Price
    from channel.http.pricing import Route as Route
    from channel.http.running import RequestLimits as RequestLimits
    from channel.types import TokenUnit as TokenUnit
    from mpp_session.agent.client import PayingClient as PayingClient
    from mpp_session.agent.client import build_client as build_client
    from mpp_session.agent.client import load_keystore as load_keystore
    from mpp_session.agent.client import open_client as open_client
    from mpp_session.agent.httpx2_transport import httpx2_transport as httpx2_transport
    from mpp_session.agent.purpose import Purpose as Purpose
    from mpp_session.agent.purpose import attach_purpose as attach_purpose
    from mpp_session.agent.sync_client import SyncPayingClient as SyncPayingClient
    from mpp_session.agent.sync_client import SyncPayments as SyncPayments
    from mpp_session.agent.sync_client import open_sync_client as open_sync_client
    from mpp_session.devnet_file import read_devnet as read_devnet
    from mpp_session.observe.metrics import PrometheusHooks as PrometheusHooks
    from mpp_session.selling import sell as sell

_HOMES = {
    "AccountSigner": "channel.client.funding.signer",
    "AgentError": "channel.errors",
    "AlarmEvent": "channel.http.hooks",
    "ApprovalPendingError": "channel.errors",
    "BudgetExceededError": "channel.errors",
    "ChallengeEvent": "channel.http.hooks",
    "ChannelKeys": "channel.client.funding.keys",
    "ConfigError": "channel.errors",
    "Event": "channel.http.events",
    "Fanout": "channel.http.hooks",
    "Hooks": "channel.http.hooks",
    "LocalSigner": "channel.client.funding.signer",
    "Meter": "channel.http.metering",
    "MppSessionError": "channel.errors",
    "OfferRefusedError": "channel.errors",
    "OpenEvent": "channel.http.hooks",
    "PaidEventStream": "channel.http.events",
    "PayingClient": "mpp_session.agent.client",
    "PayingTransport": "channel.client.http.transport",
    "PayingWebSocket": "channel.client.http.websocket",
    "PaymentGate": "channel.http.middleware",
    "PaymentRefusedError": "channel.errors",
    "PaymentStore": "channel.client.store.sqlite",
    "Payments": "channel.client.payments",
    "Policy": "channel.client.policy.policy",
    "PolicyRefusedError": "channel.errors",
    "Price": "channel.http.pricing",
    "PrometheusHooks": "mpp_session.observe.metrics",
    "Purpose": "mpp_session.agent.purpose",
    "Quote": "channel.client.policy.quote",
    "ReceiptEvent": "channel.http.hooks",
    "RefusalEvent": "channel.http.hooks",
    "RequestLimits": "channel.http.running",
    "Route": "channel.http.pricing",
    "SettleEvent": "channel.http.hooks",
    "SpendEvent": "channel.http.hooks",
    "Summary": "channel.client.payments",
    "SyncPayingClient": "mpp_session.agent.sync_client",
    "SyncPayments": "mpp_session.agent.sync_client",
    "TokenLimits": "channel.client.policy.policy",
    "TokenUnit": "channel.types",
    "attach_purpose": "mpp_session.agent.purpose",
    "build_client": "mpp_session.agent.client",
    "current_meter": "channel.http.metering",
    "httpx2_transport": "mpp_session.agent.httpx2_transport",
    "load_keystore": "mpp_session.agent.client",
    "metered": "channel.http.metering",
    "open_client": "mpp_session.agent.client",
    "open_sync_client": "mpp_session.agent.sync_client",
    "read_devnet": "mpp_session.devnet_file",
    "require_meter": "channel.http.metering",
    "sell": "mpp_session.selling",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 -- reads files; few ask

        return version("mpp-session")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names before they are imported."""
    return sorted([*globals(), *_HOMES, "__version__"])
