"""Makes a policy that decides out of one that was read: names resolved, amounts in base units.

Every contradiction is an error with its path. What an owner might take for a limit and what is none
is an error, too: a cap on a rule that denies, an amount in another token than its rule's.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from channel.client.policy.prices import read_cap
from channel.errors import ConfigError, WireError
from channel.tariff import Rate, is_kind, parse_money
from channel.types import Address, TokenUnit, address
from channel.wire.encoding import canonical_json
from mpp_session.wallet.policy import compiled
from mpp_session.wallet.policy.file import (
    AgentTable,
    CapsTable,
    EnvelopeTable,
    MatchTable,
    OneOrMore,
    PolicyFile,
    RuleTable,
    TokenTable,
    TripTable,
)
from mpp_session.wallet.policy.patterns import read_origin_pattern, read_path_pattern
from mpp_session.wallet.policy.reading import read_file, read_text
from mpp_session.wallet.policy.times import parse_duration, parse_hours

__all__ = ["compile_policy", "load_policy", "parse_policy"]

T = TypeVar("T")

_MONEY: Final = re.compile(r"[0-9]+(?:\.[0-9]+)? ([a-z][a-z0-9_]*)")
_PRICE: Final = re.compile(r"[0-9]+(?:\.[0-9]+)? ([a-z][a-z0-9_]*)(?: ?/.*)?")
Tokens = Mapping[str, compiled.Token]


def load_policy(path: Path) -> compiled.WalletPolicy:
    """Return the policy of a file.

    Raises:
        ConfigError: It cannot be read, or is no policy; one line with the path of what is wrong.
    """
    return parse_policy(read_file(path), str(path))


def parse_policy(text: str, source: str = "policy") -> compiled.WalletPolicy:
    """Return the policy of a text in TOML. `source` names it in errors.

    Raises:
        ConfigError: It is no policy; one line with the path of what is wrong.
    """
    file = read_text(text, source)
    try:
        return compile_policy(file)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def compile_policy(file: PolicyFile) -> compiled.WalletPolicy:
    """Return the policy that a file states.

    Raises:
        ConfigError: It contradicts itself; one line with the path of what is wrong.
    """
    tokens = {alias: _token(alias, table) for alias, table in file.token.items()}
    _require_once(
        ((token.chain, token.address), f"token.{token.alias}") for token in tokens.values()
    )
    envelopes = {
        name: _envelope(name, table, tokens, file.envelope) for name, table in file.envelope.items()
    }
    _require_trees(envelopes)
    agents = {name: _agent(name, table, file, tokens) for name, table in file.agent.items()}
    _require_once((agent.token_digest, f"agent.{agent.name}.token") for agent in agents.values())
    _require_once((rule.name, f"rule[{place}].name") for place, rule in enumerate(file.rule))
    rules = [_rule(place, table, tokens) for place, table in enumerate(file.rule)]
    return compiled.WalletPolicy(
        revision=file.revision,
        hash=_hash(file),
        default=file.default,
        allow_loopback_http=file.allow_loopback_http,
        tokens=tokens,
        envelopes=envelopes,
        agents=agents,
        tasks=tuple(dict.fromkeys(task for agent in agents.values() for task in agent.tasks or ())),
        rules=tuple(sorted(rules, key=lambda rule: rule.name)),
        approval=_approval(file, tokens),
        breaker=_breaker(file),
        anomaly=compiled.Anomaly(file.anomaly.action, file.anomaly.warm_up),
    )


def _hash(file: PolicyFile) -> str:
    content = _content(file)
    content["rule"] = sorted(content.get("rule", ()), key=lambda rule: rule["name"])
    try:
        return hashlib.sha256(canonical_json(content)).hexdigest()
    except WireError as error:
        raise ConfigError(f"the file has no canonical form: {error}") from None


def _content(value: Any) -> Any:
    """Return a part of the file as JSON has it, without what is at its default."""
    match value:
        case msgspec.Struct():
            return {
                field.encode_name: _content(found)
                for field in msgspec.structs.fields(value)
                if (found := getattr(value, field.name)) != field.default
            }
        case Mapping():
            return {key: _content(one) for key, one in value.items()}
        case tuple():
            return [_content(one) for one in value]
        case datetime():
            return value.astimezone(UTC).isoformat()
        case Decimal():
            return str(value.normalize())
        case _:
            return value


@contextmanager
def _at(path: str) -> Iterator[None]:
    """Name the path of a setting in the errors of what reads it."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"`{path}`: {error}") from None


def _refuse(path: str, complaint: str) -> ConfigError:
    return ConfigError(f"`{path}`: {complaint}")


def _require_once(named: Iterable[tuple[object, str]]) -> None:
    seen: dict[object, str] = {}
    for value, path in named:
        if value in seen:
            raise _refuse(path, f"the same as `{seen[value]}`; each may be there once")
        seen[value] = path


def _require_distinct(path: str, values: Iterable[object]) -> None:
    twice = [str(value) for value, times in Counter(values).items() if times > 1]
    if twice:
        raise _refuse(path, f"{twice[0]} is there twice")


def _token(alias: str, table: TokenTable) -> compiled.Token:
    escrows = None
    if table.escrows is not None:
        escrows = tuple(
            compiled.Escrow(
                _address(one.address),
                None if one.code_hash is None else bytes.fromhex(one.code_hash[2:]),
            )
            for one in table.escrows
        )
        _require_distinct(f"token.{alias}.escrows", (one.address.hex() for one in escrows))
    return compiled.Token(
        alias=alias,
        chain=table.chain,
        address=_address(table.address),
        unit=TokenUnit(alias.upper(), table.decimals),
        escrows=escrows,
    )


def _address(text: str) -> Address:
    return address(bytes.fromhex(text[2:]))


def _money(path: str, text: str, tokens: Tokens) -> tuple[compiled.Token, int]:
    """Return the token and the base units of `"5.00 usdc"`."""
    with _at(path):
        token = _token_named(_MONEY, text, tokens, "an amount such as")
        return token, parse_money(text, token.unit)


def _token_named(form: re.Pattern[str], text: str, tokens: Tokens, expected: str) -> compiled.Token:
    found = form.fullmatch(text)
    if found is None:
        example = "5.00 usdc" if form is _MONEY else "0.60 usdc / 1M"
        raise ConfigError(f'expected {expected} "{example}", found {text!r}')
    token = tokens.get(found[1])
    if token is None:
        raise ConfigError(f"no token has the alias {found[1]}; known: {', '.join(sorted(tokens))}")
    return token


def _amounts(path: str, given: OneOrMore | None, tokens: Tokens) -> dict[str, int]:
    texts = (given,) if isinstance(given, str) else given or ()
    found: dict[str, int] = {}
    for text in texts:
        token, amount = _money(path, text, tokens)
        if token.alias in found:
            raise _refuse(path, f"two amounts in {token.alias}")
        found[token.alias] = amount
    return found


def _envelope(
    name: str, table: EnvelopeTable, tokens: Tokens, others: Mapping[str, EnvelopeTable]
) -> compiled.Envelope:
    path = f"envelope.{name}"
    token, amount = _money(f"{path}.amount", table.amount, tokens)
    locked_max = amount
    if table.locked_max is not None:
        other, locked_max = _money(f"{path}.locked_max", table.locked_max, tokens)
        _require_token(f"{path}.locked_max", other, token)
    if table.parent is not None and table.parent not in others:
        raise _refuse(f"{path}.parent", f"there is no envelope {table.parent}")
    window_s = None
    if table.window not in ("task", "total"):
        with _at(f"{path}.window"):
            window_s = parse_duration(table.window)
    return compiled.Envelope(
        name=name,
        token=token.alias,
        amount=amount,
        window_s=window_s,
        per_task=table.window == "task",
        locked_max=locked_max,
        on_exceed=table.on_exceed,
        parent=table.parent,
        warn_at=tuple(_share(f"{path}.warn_at", one) for one in sorted(table.warn_at)),
    )


def _share(path: str, share: Any) -> tuple[int, int]:
    if not (share.is_finite() and 0 < share <= 1 and share.as_tuple().exponent >= -9):  # noqa: PLR2004
        raise _refuse(path, f"expected shares above 0 and up to 1, such as 0.8, found {share}")
    fraction = Fraction(share)
    return fraction.numerator, fraction.denominator


def _require_token(path: str, found: compiled.Token, wanted: compiled.Token) -> None:
    if found.alias != wanted.alias:
        raise _refuse(
            path,
            f"is in {found.alias}, beside an amount in {wanted.alias}: amounts of different tokens "
            "cannot be compared",
        )


def _require_trees(envelopes: Mapping[str, compiled.Envelope]) -> None:
    for envelope in envelopes.values():
        seen = [envelope.name]
        at = envelope
        while at.parent is not None:
            parent = envelopes[at.parent]
            path = f"envelope.{at.name}.parent"
            if parent.name in seen:
                raise _refuse(path, f"a circle: {' -> '.join([*seen, parent.name])}")
            if parent.token != at.token:
                raise _refuse(path, f"counts {parent.token}, and this envelope {at.token}")
            seen.append(parent.name)
            at = parent


def _agent(name: str, table: AgentTable, file: PolicyFile, tokens: Tokens) -> compiled.Agent:
    path = f"agent.{name}"
    for envelope in table.envelopes:
        if envelope not in file.envelope:
            raise _refuse(f"{path}.envelopes", f"there is no envelope {envelope}")
    for other in table.may_approve:
        if other not in file.agent:
            raise _refuse(f"{path}.may_approve", f"there is no agent {other}")
        if other == name:
            raise _refuse(f"{path}.may_approve", "an agent cannot approve what it asks itself")
    if bool(table.may_approve) != (table.approve_max is not None):
        raise _refuse(path, "`may_approve` and `approve_max` need each other")
    return compiled.Agent(
        name=name,
        token_digest=bytes.fromhex(table.token.removeprefix("sha256:")),
        uid=table.uid,
        envelopes=table.envelopes,
        expires=table.expires.timestamp(),
        tasks=table.tasks,
        may_approve=table.may_approve,
        approve_max=_amounts(f"{path}.approve_max", table.approve_max, tokens),
    )


def _rule(place: int, table: RuleTable, tokens: Tokens) -> compiled.Rule:
    path = f"rule[{place}]"
    try:
        match = _match(f"{path}.match", table.match, tokens)
        caps, token = _caps(f"{path}.cap", table.cap, tokens)
        _require_rule_fits(path, table, token, tokens)
        return compiled.Rule(
            name=table.name,
            action=table.action,
            match=match,
            caps=caps,
            when=_when(f"{path}.when", table),
        )
    except ConfigError as error:
        raise ConfigError(f"{error} (rule {table.name})") from None


def _require_rule_fits(
    path: str, table: RuleTable, token: compiled.Token | None, tokens: Tokens
) -> None:
    if table.action == "deny" and table.cap != CapsTable():
        raise _refuse(
            f"{path}.cap",
            'a rule that denies has no caps: write action = "allow" to allow up to them',
        )
    if table.action == "allow" and table.match.first_seen is not None:
        raise _refuse(
            f"{path}.match.first_seen",
            'is for rules that ask or deny: write action = "ask", and a rule that allows beside it',
        )
    named = table.match.token or tuple(tokens)
    if token is not None and named != (token.alias,):
        raise _refuse(
            f"{path}.cap",
            f"caps amounts in {token.alias}, and the rule is about {', '.join(named)}: write "
            f'match.token = ["{token.alias}"] and a rule for each other token',
        )


def _match(path: str, table: MatchTable, tokens: Tokens) -> compiled.Match:
    for alias in table.token or ():
        if alias not in tokens:
            raise _refuse(f"{path}.token", f"no token has the alias {alias}")

    def read(key: str, values: tuple[str, ...] | None, one: Any) -> Any:
        with _at(f"{path}.{key}"):
            return None if values is None else tuple(one(value) for value in values)

    return compiled.Match(
        agent=table.agent,
        origin=read("origin", table.origin, read_origin_pattern),
        method=read("method", table.method, str.upper),
        path=read("path", table.path, read_path_pattern),
        chain=table.chain,
        token=table.token,
        recipient=read("recipient", table.recipient, _address),
        escrow=read("escrow", table.escrow, _address),
        unit=table.unit,
        tool=table.tool,
        task=table.task,
        first_seen=table.first_seen,
    )


def _caps(
    path: str, table: CapsTable, tokens: Tokens
) -> tuple[compiled.Caps, compiled.Token | None]:
    """Return the caps and the one token that their amounts are in; None where they have none."""
    used: list[tuple[str, compiled.Token]] = []

    def money(key: str, text: str | None) -> int | None:
        if text is None:
            return None
        token, amount = _money(f"{path}.{key}", text, tokens)
        used.append((f"{path}.{key}", token))
        return amount

    prices = None
    if table.unit_price is not None:
        prices = {}
        for kind, text in table.unit_price.items():
            token, rate = _unit_price(f"{path}.unit_price.{kind}", kind, text, tokens)
            used.append((f"{path}.unit_price.{kind}", token))
            prices[kind] = rate
        if not prices:
            raise _refuse(f"{path}.unit_price", "an empty table allows no price: name a kind")
    caps = compiled.Caps(
        unit_price=prices,
        request=money("request", table.request),
        deposit=money("deposit", table.deposit),
        channel=money("channel", table.channel),
        per=tuple(
            compiled.Per(
                one.by,
                money(f"per[{place}].amount", one.amount) or 0,
                _window(f"{path}.per[{place}].window", one.window),
            )
            for place, one in enumerate(table.per or ())
        ),
        rate=tuple(
            compiled.RateCap(
                one.by, one.count, _seconds(f"{path}.rate[{place}].window", one.window)
            )
            for place, one in enumerate(table.rate or ())
        ),
        channels=table.channels,
        streams=table.streams,
    )
    for where, token in used:
        _require_token(where, token, used[0][1])
    return caps, used[0][1] if used else None


def _unit_price(path: str, kind: str, text: str, tokens: Tokens) -> tuple[compiled.Token, Rate]:
    with _at(path):
        if not is_kind(kind):
            raise ConfigError(f"expected a kind such as output_token, found {kind!r:.80}")
        token = _token_named(_PRICE, text, tokens, "a price such as")
        return token, read_cap(kind, text, token.unit)


def _window(path: str, text: str) -> int | None:
    return None if text == "total" else _seconds(path, text)


def _seconds(path: str, text: str) -> int:
    with _at(path):
        return parse_duration(text)


def _when(path: str, table: RuleTable) -> compiled.When:
    when = table.when
    start = None if when.not_before is None else when.not_before.timestamp()
    end = None if when.not_after is None else when.not_after.timestamp()
    if start is not None and end is not None and start >= end:
        raise _refuse(f"{path}.not_after", "is not after `not_before`")
    with _at(f"{path}.hours"):
        hours = None if when.hours is None else parse_hours(when.hours)
    return compiled.When(not_before=start, not_after=end, hours=hours)


def _approval(file: PolicyFile, tokens: Tokens) -> compiled.Approval:
    table = file.approval
    webhook = None
    if table.webhook is not None:
        if not table.webhook.url.startswith(("https://", "http://")):
            raise _refuse("approval.webhook.url", "expected an http or https URL")
        webhook = compiled.Webhook(table.webhook.url, table.webhook.secret_file)
    return compiled.Approval(
        above=_amounts("approval.above", table.above, tokens),
        timeout_s=_seconds("approval.timeout", table.timeout),
        on_timeout=table.on_timeout,
        quorum=table.quorum,
        scope_max=table.scope_max,
        webhook=webhook,
        pending_max=table.pending_max,
    )


def _breaker(file: PolicyFile) -> compiled.Breaker:
    def trip(name: str, table: TripTable) -> compiled.Trip:
        path = f"breaker.{name}"
        return compiled.Trip(
            table.count,
            _seconds(f"{path}.window", table.window),
            _seconds(f"{path}.cooldown", table.cooldown),
        )

    table = file.breaker
    return compiled.Breaker(
        repeated_402=trip("repeated_402", table.repeated_402),
        paid_errors=trip("paid_errors", table.paid_errors),
        same_request=trip("same_request", table.same_request),
    )
