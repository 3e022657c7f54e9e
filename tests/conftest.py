"""What holds for every test: our code does not block the event loop, properties may take time.

A server that tests share is here, so that a process of the test run starts one of it and no more.
"""

import itertools
import os
import signal
from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from coverage import Coverage
from hypothesis import HealthCheck, settings

from mpp_session.agent.keystore import import_account
from tests.e2e.warm import Forge

pytest_plugins = ["mpp_session.testing", "tests.postgres"]

import_account()  # before a test imports eth_account and lifts the recursion limit (F-02)

# What a developer's shell says of a proxy, or of a gateway of hers, is not about these tests.
for _name in [name for name in os.environ if name.startswith("MPP_SESSION_")]:
    del os.environ[_name]
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1"
# What a shell starts in the background ignores Ctrl-C, and so would the programs it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Begun first, so that the other tests run beside them and not before.
LONGEST = ("test_forge.py", "test_compile.py")
# Their thousands of examples run lines that other tests run once; measuring takes as long again.
REPEATING = ("test_ledgers.py", "test_parsers.py", "test_state_machine.py")
_machines = itertools.count()
OURS = ["channel", "settlement", "mpp_session"]

# A shared machine's pauses are no failures; a failing example is printed so that it can be rerun.
settings.register_profile(
    "mpp-session", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mpp-session")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Store what a worker measured while the main process waits: later it may be killed."""
    measured = Coverage.current()
    if measured is not None and hasattr(session.config, "workerinput"):
        measured.stop()
        measured.save()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that take longest at the front."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True)
def _state_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each test is a machine of its own, where payees have had no ledger yet."""
    state = tmp_path_factory.getbasetemp() / f"state-{next(_machines)}"
    monkeypatch.setenv("XDG_STATE_HOME", str(state))


@pytest.fixture(autouse=True)
def _unmeasured_repetition(request: pytest.FixtureRequest) -> Iterator[None]:
    """Count no lines while a test repeats itself."""
    measured = Coverage.current() if request.path.name in REPEATING else None
    if measured is not None:
        measured.stop()
    yield
    if measured is not None:
        measured.start()


@pytest.fixture(autouse=True)
def _no_blocking_call() -> Iterator[BlockBuster]:
    """Fail the test in which our code, called from a coroutine, sleeps or waits for I/O."""
    with blockbuster_ctx(scanned_modules=OURS) as blockbuster:
        for name in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
            blockbuster.functions[name].can_block_in("coverage/collector.py", "lock_data")
            # for the one signature that another core is at: 30 us, and a bound
            blockbuster.functions[name].can_block_in("channel/engine/verify_pool.py", "_end_turn")
        yield blockbuster


@pytest.fixture(scope="session")
def forge() -> Iterator[Forge]:
    """Starts gateways fast, for tests that start many."""
    forge = Forge()
    yield forge
    forge.close()
