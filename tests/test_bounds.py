"""Every bound stands in one place, is in the manual, and is crossed by a test (issue 10 B)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from channel import limits
from channel.engine import EngineSettings
from mpp_session.settings.config import list_settings

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
BOUNDS = {name: value for name, value in vars(limits).items() if name.isupper()}

OURS = {
    "AHEAD_S_MAX": "how far this clock may be off",
    "ATTEMPTS_MAX": "how often a voucher is sent",
    "BATCH_MAX": "questions that we ask a node in one batch",
    "BEHIND_S_MAX": "how far this clock may be off",
    "CRAWLED_BYTES_MAX": "of our own document, when it is longer than crawlers read",
    "DEPOSIT_MAX": "of a helper for tests",
    "DEPOSIT_MIN": "of a helper for tests",
    "DEVELOPMENT_S_MAX": "how far this clock may be off",
    "DISK_BYTES_MIN": "when a check of the disk advises",
    "ENDED_MAX": "of a journal for scripts and tests",
    "EXIT_STAGE_MAX": "when we act",
    "HASHES_PER_LOOK_MAX": "questions that we ask a node in one batch",
    "HIDDEN_UNITS_MAX": "what an answer shows; it is RESERVATION_STEP_UNITS",
    "IDLE_S_MAX": "how long we keep a connection",
    "INT64_MAX": "of a column of the books",
    "KEPT_BODY_BYTES_MAX": "how much of the caller's own body is kept to send it again",
    "KEYS_CACHED_MAX": "keys that we derive",
    "KIND_AGE_S_MAX": "how often we ask",
    "LAYERS_MAX": "of the application's own routers",
    "LEASE_S_MAX": "of our own lease",
    "LEFT_S_MIN": "when we sign again",
    "BATCH_BYTES_MAX": "of our own transactions",
    "MCP_DESCRIPTION_MAX": "how much of our own text a registry takes",
    "LOOK_S_MAX": "when a check of the settler rings",
    "MEASURED_S_MIN": "when we measure",
    "NAMED_MAX": "what a refusal names",
    "NAME_CHARS_MAX": "how much of a name a refusal quotes",
    "NODES_MIN": "how many nodes an operator must name for a comparison",
    "OFFERED_MAX": "what a refusal offers",
    "PATH_BYTES_MAX": "what the system takes as a socket's path",
    "PENDING_S_MAX": "our own pause",
    "PLACES_MAX": "of decimals that we write",
    "POLL_S_MAX": "our own pause",
    "PRICE_MAX": "of an operator's setting",
    "RECONNECT_S_MAX": "our own pause",
    "REFUSED_S_MAX": "our own pause",
    "COOLDOWN_S_MAX": "our own pause",
    "CHANNELS_READ_MAX": "of our own channels, on one page",
    "RETRY_S_MAX": "our own pause",
    "ROWS_READ_MAX": "of our own books, for one page",
    "SENT_MAX": "of our own transactions",
    "TAGS_MAX": "how many of our own words a registry takes",
    "SHARED_MIN": "when a thread is worth it",
    "SHOWN_MAX": "of our own channels",
    "STARTS_MAX": "of our own processes",
    "STILL_S_MAX": "when an alarm rings",
    "TOKEN_CHARS_MIN": "of an operator's setting",
    "TOKENS_MAX": "of an operator's setting",
    "TOKEN_BYTES_MAX": "what is known of vocabularies",
    "TOWER_S_MAX": "when a check of the watchtower's file rings",
    "UINT64_MAX": "of a field of the contract",
    "UNIT_PRICE_MAX": "of a helper for tests",
}
"""Constants that bound nothing another party can make us use, and what they are instead."""


DEFAULTS = {
    "ledger.channels_cached": "CHANNELS_CACHED_MAX",
    "ledger.charges_days": "CHARGES_DAYS",
    "limits.per_second_per_address": "REQUESTS_PER_SOURCE_AND_SECOND_MAX",
    "limits.per_second_per_payer": "REQUESTS_PER_PAYER_AND_SECOND_MAX",
    "limits.running_max": "RUNNING_REQUESTS_MAX",
    "limits.running_per_address": "RUNNING_PER_SOURCE_MAX",
    "limits.running_per_payer": "RUNNING_PER_PAYER_MAX",
    "listen.body_timeout_s": "BODY_S_MAX",
    "listen.connections_max": "CONNECTIONS_MAX",
    "listen.head_timeout_s": "HEAD_S_MAX",
    "listen.read_timeout_s": "READ_S_MAX",
    "payment.chain_checks_per_address": "CHAIN_CHECKS_PER_SOURCE_MAX",
    "payment.challenge_lifetime_s": "CHALLENGE_LIFETIME_S",
    "payment.pause_timeout_s": "STREAM_PAUSE_S",
    "payment.reservation_lease_s": "RESERVATION_LEASE_S",
    "payment.reservation_step_units": "RESERVATION_STEP_UNITS",
    "payment.vouchers_per_second": "VOUCHERS_PER_SECOND_MAX",
    "settlement.close_timeout_s": "CLOSE_TIMEOUT_S",
    "rails.amount_min": "CHARGE_AMOUNT_MIN",
    "rails.margin_s": "AUTHORIZATION_MARGIN_S",
    "sponsoring.deposit_min": "SPONSORED_DEPOSIT_MIN",
    "sponsoring.deposits_per_address": "SPONSORED_PER_SOURCE_MAX",
    "sponsoring.gas_per_deposit_max": "SPONSORED_GAS_MAX",
    "sponsoring.margin_s": "AUTHORIZATION_MARGIN_S",
    "upstream.abandoned_units_max": "ABANDONED_UNITS_MAX",
    "upstream.body_bytes_max": "REQUEST_BYTES_MAX",
}
"""Bounds that an operator sets: the tests of the setting cross it at another value."""

ENGINE_DEFAULTS = {
    "close_timeout_s": "CLOSE_TIMEOUT_S",
    "close_wait_s": "CLOSE_WAIT_S_MAX",
    "fact_age_s_max": "FACT_AGE_S_MAX",
    "fact_ttl_s": "FACT_TTL_S",
    "transaction_wait_s": "TRANSACTION_WAIT_S_MAX",
}
"""The same for what the engine is built with."""

CROSSED_AS = {
    "AUTHORIZATION_S_MAX": "channel/http/test_websocket.py::"
    "test_a_first_frame_that_does_not_come_ends_the_connection",
    "COMMIT_BATCH_MAX": "channel/ledger/test_group_commit.py::test_a_batch_is_bounded",
    "COMMIT_QUEUE_MAX": "channel/ledger/test_group_commit.py::"
    "test_a_full_queue_refuses_and_does_not_grow",
    "DISTRUSTED_MAX": "settlement/tx/journal/test_interface.py::"
    "test_the_newest_of_them_are_known_up_to_a_bound",
    "EVENT_BYTES_MAX": "channel/wire/test_sse.py::"
    "test_an_endless_event_is_refused_and_not_collected",
    "FILE_S_MAX": "settlement/test_files.py::test_a_file_system_that_hangs_costs_a_bounded_time",
    "HEAD_BYTES_MAX": "mpp_session/gateway/test_serve.py::"
    "test_a_large_head_is_refused_with_any_parser_installed",
    "TARPIT_WAITING_MAX": "channel/http/test_tarpit.py::test_so_many_wait_and_no_more",
    "TARPIT_DELAY_S": "channel/http/test_tarpit.py::"
    "test_first_offers_come_late_beyond_a_rate_from_one_address",
    "LOG_QUEUED_BYTES_MAX": "mpp_session/process/test_relay.py::"
    "test_what_found_no_room_is_counted_when_it_is_read_again",
    "NODE_ANSWER_BYTES_MAX": "settlement/node/test_transport.py::"
    "test_a_coded_answer_is_unpacked_within_the_bound",
    "OPEN_ORDERS_MAX": "settlement/sponsor/orders/test_interface.py::"
    "test_so_many_are_looked_at_together_and_more_wait",
    "PROBE_S_MAX": "mpp_session/gateway/test_readiness.py::"
    "test_a_server_that_is_busy_is_there_and_one_that_is_silent_is_not",
    "SOCKET_IDLE_S_MAX": "channel/http/test_websocket.py::"
    "test_an_idle_connection_ends_with_its_receipt",
    "STREAM_PAUSE_S_MAX": "channel/http/test_events.py::"
    "test_a_pause_that_is_not_paid_ends_with_a_receipt",
}
"""Bounds that a test crosses at another value, given as a parameter, or amid other parts."""

PACES = {
    *("ACCEPTED_TOGETHER_MAX", "READ_BYTES_MAX", "TOWER_READ_BYTES_MAX", "VERIFYING_THREADS_MAX"),
    *("LEDGER_LOOK_S", "LEDGER_POLL_S", "MARKER_SYNC_S"),
    *("FAILED_REQUESTS_PERIOD_S", "SPONSORED_PERIOD_S"),
}
"""How much is done in one turn, how often, over which time: what passes it waits."""


def constants() -> Iterator[tuple[str, str]]:
    """Yield each constant of a module that is named as a bound, with its module."""
    for package in ("channel", "settlement", "mpp_session"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path == Path(str(limits.__file__)):
                continue
            for node in ast.parse(path.read_text()).body:
                target = node.target if isinstance(node, ast.AnnAssign) else None
                if isinstance(target, ast.Name) and re.search(r"_(MAX|MIN)$", target.id):
                    yield target.id, path.relative_to(ROOT).as_posix()


def used(path: Path) -> set[str]:
    """Return what a test names: as itself, or in the text of what it patches."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.rpartition(".")[2])
    return found


def test_bounds_on_others_stand_in_one_place() -> None:
    """Issue 10 B: a new `_MAX` or `_MIN` of a module is in limits.py, or is said to be ours."""
    elsewhere = {name.lstrip("_"): module for name, module in constants()}
    assert {name: elsewhere[name] for name in elsewhere.keys() - OURS.keys()} == {}
    assert sorted(OURS.keys() - elsewhere.keys()) == [], "gone: take it out of the list"


def test_every_bound_is_in_the_manual_with_its_value() -> None:
    """Issue 10 B: docs/guide/operating.md lists what limits.py has, and nothing else."""
    text = (ROOT / "docs" / "guide" / "operating.md").read_text()
    section = text.split("\n## Every bound\n")[1].split("\n## ")[0]
    listed = re.findall(r"(?m)^\| `([A-Z_]+)` \| ([\d,.]+) \| .+ \|$", section)
    assert dict(listed) == {name: f"{value:,}" for name, value in BOUNDS.items()}
    assert len(listed) == len(BOUNDS)


def test_what_an_operator_sets_begins_at_its_bound() -> None:
    """Issue 10 B: the default of each such setting is the constant, and no second number."""
    found = list_settings()
    assert {name: found[name].default for name in DEFAULTS} == {
        name: BOUNDS[bound] for name, bound in DEFAULTS.items()
    }
    engine = dict(
        zip(
            EngineSettings.__struct_fields__[::-1],
            EngineSettings.__struct_defaults__[::-1],
            strict=False,
        )
    )
    assert {name: engine[name] for name in ENGINE_DEFAULTS} == {
        name: BOUNDS[bound] for name, bound in ENGINE_DEFAULTS.items()
    }


def test_every_bound_is_crossed_by_a_test() -> None:
    """Issue 10 B: a test names it, or crosses it at another value; no bound is left out."""
    named: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        if "node_modules" not in path.parts and path != Path(__file__):
            named |= used(path)
    for test in CROSSED_AS.values():
        module, function = test.split("::")
        assert f"def {function}(" in (TESTS / module).read_text(), test
    otherwise = {*DEFAULTS.values(), *ENGINE_DEFAULTS.values(), *CROSSED_AS, *PACES}
    assert BOUNDS.keys() - named - otherwise == set()
