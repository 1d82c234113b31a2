"""PSNs and QPNs: their modulus, and which PSN follows which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hil.roce.psn import HALF, MASK, MODULUS, any_not_before, not_before, psn_of
from hil.roce.qpn import qpn_of

PSNS = st.integers(0, MASK).map(psn_of) | st.sampled_from([0, 1, HALF - 1, HALF, MASK]).map(psn_of)


@pytest.mark.parametrize(
    ("psn", "other", "follows"), [(5, 5, True), (0, MASK, True), (MASK, 0, False), (HALF, 0, False)]
)
def test_a_psn_follows_another_within_half_of_the_numbers(psn: int, other: int, follows: bool) -> None:
    """Modulo 2**24; itself is not before itself."""
    assert not_before(psn_of(psn), psn_of(other)) is follows


def test_numbers_are_taken_modulo_their_bits() -> None:
    """24 bits of a field of 32."""
    assert (psn_of(MODULUS + 3), psn_of(-1), qpn_of(0xFF000011)) == (3, MASK, 0x11)


@given(st.lists(PSNS, max_size=6), PSNS)
def test_any_of_several_follows_as_each_by_itself(psns: list[int], other: int) -> None:
    """The search in sorted numbers says what a look at each one says."""
    ascending = [psn_of(psn) for psn in sorted(psns)]
    assert any_not_before(ascending, psn_of(other)) == any(not_before(psn, psn_of(other)) for psn in ascending)
