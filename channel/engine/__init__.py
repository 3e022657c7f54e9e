"""One function per action, from a credential to its durable result."""

from channel.engine.challenger import Authenticated
from channel.engine.engine import Engine
from channel.engine.offer import Offer
from channel.engine.outcome import Hold, Outcome
from channel.engine.rate_limit import RateLimiter
from channel.engine.reservation import RunningReservation
from channel.engine.settings import EngineSettings, SponsorTerms, verifying_threads

__all__ = [
    "Authenticated",
    "Engine",
    "EngineSettings",
    "Hold",
    "Offer",
    "Outcome",
    "RateLimiter",
    "RunningReservation",
    "SponsorTerms",
    "verifying_threads",
]
