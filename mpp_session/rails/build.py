"""Builds the rails of an application from its settings."""

from channel.types import TokenUnit
from mpp_session.rails.serving import ChargeRails
from mpp_session.rails.verifier import ChargeTerms, ChargeVerifier
from mpp_session.settings import ProviderConfig, parse_address
from settlement.charge.worker import ChargeWorker
from settlement.escrow.token_domain import TokenDomain

__all__ = ["build_rails"]


def build_rails(
    config: ProviderConfig, worker: ChargeWorker, domain: TokenDomain, unit: TokenUnit
) -> ChargeRails:
    """Return the rails that take payments for `worker`; `domain` and `unit` are the token's."""
    terms = ChargeTerms(
        chain_id=config.chain.id,
        token=parse_address(config.chain.token),
        token_name=domain.name,
        token_version=domain.version,
        decimals=unit.decimals,
        payee=worker.payee,
        realm=config.payment.realm,
        secret=config.payment.secrets[0].reveal().encode(),
        challenge_lifetime_s=config.payment.challenge_lifetime_s,
        credential_header=config.payment.credential_header,
        x402=config.rails.x402,
    )
    return ChargeRails(
        ChargeVerifier(terms),
        worker,
        amount_min=config.rails.amount_min,
        url=config.discovery.url,
    )
