"""The outer limits of an agent's paying client: never narrower than what the policy allows (pure).

The client checks prices, deposits and escrows before the wallet is asked. The wallet's decision is
the limit that counts; these keep the client from sizing a deposit that is refused anyway.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final

from channel.client.policy.policy import Policy, TokenLimits
from channel.limits import AMOUNT_MAX
from channel.tariff import KINDS, Rate, format_rate
from mpp_session.wallet.policy.compiled import Rule, Token, WalletPolicy
from mpp_session.wallet.policy.matching import is_near
from mpp_session.wallet.policy.patterns import matches_origin, normalise_origin

__all__ = ["client_policy"]

_ORIGINS_CACHED: Final = 256
_UNBOUNDED: Final = 1_000_000
"""Channels or streams of a rule that bounds neither."""


class _EveryKind(Mapping[str, int | str]):
    """Caps of the client where a rule bounds no price: any kind at any price."""

    def __getitem__(self, kind: str) -> int | str:
        return AMOUNT_MAX

    def __iter__(self) -> Iterator[str]:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)


def client_policy(policy: WalletPolicy, agent: str) -> Policy:
    """Return the limits for an agent's paying client; nothing is payable for an unknown agent.

    For each origin only the rules count that may be about it, because the client sizes deposits by
    the limits.
    """
    rules = _rules_about(policy, agent, None)
    is_open = policy.default == "ask"

    @lru_cache(maxsize=_ORIGINS_CACHED)
    def limits_of(origin: str) -> tuple[TokenLimits, ...]:
        return _limits_under(policy, agent, _rules_about(policy, agent, origin))

    return Policy(
        limits=_limits_under(policy, agent, rules),
        limits_of=limits_of,
        pays=("session", "charge", "x402"),
        channels_per_origin_max=_greatest([rule.caps.channels for rule in rules], is_open=is_open),
        parallel_streams_max=_greatest([rule.caps.streams for rule in rules], is_open=is_open),
        allow_loopback_http=policy.allow_loopback_http,
    )


def _rules_about(policy: WalletPolicy, agent: str, origin: str | None) -> list[Rule]:
    return [rule for rule in policy.rules if _may_allow(rule, agent, origin)]


def _limits_under(
    policy: WalletPolicy, agent: str, rules: Sequence[Rule]
) -> tuple[TokenLimits, ...]:
    is_open = policy.default == "ask"
    limits = []
    for token in policy.tokens.values():
        about = [rule for rule in rules if _is_about(rule, token)]
        if (about or is_open) and policy.envelopes_of(agent, token.alias):
            limits.append(_limits(policy, agent, token, about, is_open=is_open))
    return tuple(limits)


def _may_allow(rule: Rule, agent: str, origin: str | None) -> bool:
    if not (rule.may_grant and is_near(rule, agent)):
        return False
    normal = None if origin is None else normalise_origin(origin)
    named = rule.match.origin
    return normal is None or named is None or any(matches_origin(one, normal) for one in named)


def _is_about(rule: Rule, token: Token) -> bool:
    named, chains = rule.match.token, rule.match.chain
    return (named is None or token.alias in named) and (chains is None or token.chain in chains)


def _greatest(caps: Sequence[int | None], *, is_open: bool, most: int = _UNBOUNDED) -> int:
    if is_open or not caps:
        return most
    return max(most if cap is None else cap for cap in caps)


def _limits(
    policy: WalletPolicy, agent: str, token: Token, rules: Sequence[Rule], *, is_open: bool
) -> TokenLimits:
    deposit = _greatest([rule.caps.deposit for rule in rules], is_open=is_open, most=AMOUNT_MAX)
    # More than an envelope can ever lock is refused for certain, so no deposit is sized so.
    locked = [
        envelope.locked_max
        for envelope in policy.envelopes_of(agent, token.alias)
        if envelope.on_exceed == "deny"
    ]
    return TokenLimits(
        chain_id=token.chain,
        token=token.address,
        unit_price_max=_prices(rules, token, is_open=is_open),
        deposit_max=min([deposit, *locked]),
        budget=AMOUNT_MAX,
        budget_total=AMOUNT_MAX,
        locked_max=AMOUNT_MAX,
        locked_total_max=AMOUNT_MAX,
        escrows=(
            None if token.escrows is None else frozenset(escrow.address for escrow in token.escrows)
        ),
        charge_max=_greatest(
            [rule.caps.request for rule in rules], is_open=is_open, most=AMOUNT_MAX
        ),
        unit=token.unit,
    )


def _prices(rules: Sequence[Rule], token: Token, *, is_open: bool) -> Mapping[str, int | str]:
    greatest: dict[str, Rate] = {}
    for rule in rules:
        if rule.caps.unit_price is None:
            return _EveryKind()
        for kind, rate in rule.caps.unit_price.items():
            if kind not in greatest or rate.exceeds(greatest[kind]):
                greatest[kind] = rate
    if is_open:
        return _EveryKind()
    return {kind: format_rate(rate, token.unit) for kind, rate in greatest.items()}
