"""O-90: a clock that is wrong, or is set, forgets nothing, closes nothing and charges nothing."""

import pytest

from channel.errors import ConfigError
from channel.limits import CLOCK_SKEW_S_MAX
from mpp_session.process.clock import ServiceClock, require_clock
from settlement.node.chain_clock import ChainClock
from settlement.types import BlockRef

NOW = 1_800_000_000
MAINNET, ANVIL = 1, 31337


class Machine:
    """A machine whose clock the test sets."""

    def __init__(self) -> None:
        self.passed, self.set_by = 0.0, 0.0

    def wall(self) -> float:
        return NOW + self.passed + self.set_by

    def count(self) -> float:
        return self.passed


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.mark.parametrize(
    ("chain_id", "ahead_s", "said"),
    [
        (MAINNET, -120, None),
        (MAINNET, -121, "121 s behind"),
        (MAINNET, 3600, None),
        (MAINNET, 3601, "3601 s old"),
        (ANVIL, -3600, None),
        (ANVIL, -3601, "3601 s behind"),
        (ANVIL, 90_000, None),
    ],
)
def test_a_clock_that_the_chain_contradicts_does_not_serve(
    chain_id: int, ahead_s: int, said: str | None
) -> None:
    """O-90: at the bound, and beyond it by one; a development chain may stand for days."""
    if said is None:
        require_clock(NOW, chain_id=chain_id, wall=NOW + ahead_s)
        return
    with pytest.raises(ConfigError, match=said):
        require_clock(NOW, chain_id=chain_id, wall=NOW + ahead_s)


@pytest.mark.parametrize("set_by", [-600, 600, 25 * 3600, -40 * 24 * 3600])
def test_time_goes_on_when_the_machines_clock_is_set(machine: Machine, set_by: int) -> None:
    """O-90: ten minutes behind while running, and days; blocks that come agree with us."""
    clock = ServiceClock(wall=machine.wall, count=machine.count)
    machine.passed, machine.set_by = 100, set_by
    assert clock.now() == NOW + 100
    clock.saw(NOW + 98)
    assert clock.now() == NOW + 100


@pytest.mark.parametrize("wrong_by", [-600, 25 * 3600])
def test_a_clock_that_is_put_right_is_followed(machine: Machine, wrong_by: int) -> None:
    """O-90: the host booted with a wrong one, and NTP came later."""
    machine.set_by = wrong_by
    clock = ServiceClock(wall=machine.wall, count=machine.count)
    machine.passed, machine.set_by = 100, 0
    clock.saw(NOW + 98)
    assert clock.now() == NOW + 100


def test_what_differs_by_a_moment_is_left_alone(machine: Machine) -> None:
    clock = ServiceClock(wall=machine.wall, count=machine.count)
    machine.set_by = CLOCK_SKEW_S_MAX
    clock.saw(NOW + CLOCK_SKEW_S_MAX)
    assert clock.now() == NOW
    machine.set_by += 1
    clock.saw(NOW + CLOCK_SKEW_S_MAX + 1)
    assert clock.now() == NOW + CLOCK_SKEW_S_MAX + 1


@pytest.mark.parametrize("set_by", [-600, 0, 600])
def test_what_is_old_is_old_by_both_clocks(machine: Machine, set_by: int) -> None:
    """O-90: nothing is pruned by the one that runs ahead, nor counts as unused by the other."""
    clock = ChainClock(wall=machine.wall, monotonic=machine.count)
    machine.set_by = set_by
    assert clock.earliest() == 0
    assert clock.latest() == NOW + set_by
    clock.saw(BlockRef(number=1, hash=b"", timestamp=NOW, base_fee_wei=None, parent_hash=b""))
    assert clock.earliest() == NOW + min(0, set_by)
    assert clock.latest() == NOW + max(0, set_by)
