"""What would lose money later is refused when the engine is built (decision 15)."""

import pytest
from msgspec.structs import replace

from channel.errors import ConfigError
from tests.channel.selling import SETTINGS


@pytest.mark.parametrize(
    "change",
    [
        {"realm": ""},
        {"realm": "a|b"},
        {"confirmations": 0},
        {"fact_age_s_max": 61},
        {"fact_ttl_s": 61},
        {"fact_ttl_s": -1},
        {"reservation_step_units": 0},
        {"vouchers_per_second": 0},
        {"verifying_threads": 0},
        {"reservation_lease_s": 0},
        {"challenge_lifetime_s": 0},
    ],
    ids=str,
)
def test_a_setting_out_of_its_bounds_is_refused(change: dict[str, object]) -> None:
    """CHAL-09, OPEN-12, VCH-10: each bound is crossed by one."""
    with pytest.raises(ConfigError):
        replace(SETTINGS, **change)
