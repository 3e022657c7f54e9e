"""The paying client's fixtures: a paper chain, a provider, and agents over any store."""

from tests.channel.client.conftest import chain, open_agent, provider

__all__ = ["chain", "open_agent", "provider"]
