"""Any tariff that a server may offer, and usage of its kinds."""

from hypothesis import strategies as st

from channel.tariff import KINDS, Rate, Tariff

AMOUNTS = st.integers(0, 10**6)


@st.composite
def tariffs(draw: st.DrawFn) -> Tariff:
    """Tariffs of up to four kinds, with steps that rise and fall, and bounds."""
    kinds = draw(st.lists(st.sampled_from((*KINDS, "song")), min_size=1, max_size=4, unique=True))
    rates = []
    for place, kind in enumerate(kinds):
        least = 1 if place == 0 else 0
        per = draw(st.sampled_from([1, 3, 1000, 10**6]))
        rates.append(Rate(kind, draw(st.integers(least, 10**6)), per))
        above = 0
        for _ in range(draw(st.integers(0, 2))):
            above += draw(st.integers(1, 500))
            rates.append(Rate(kind, draw(AMOUNTS), per, above))
    minimum = draw(st.integers(0, 1000))
    maximum = draw(st.none() | st.integers(max(1, minimum), 10**7))
    return Tariff(tuple(rates), minimum, maximum)
