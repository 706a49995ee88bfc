"""When the cubature of a growing library is selected anew."""

from __future__ import annotations

from forebay.solvers.rom import growth


def test_points_are_thinned_out_at_powers_of_two_and_versions_between_are_made_fast():
    assert [version for version in range(1, 70) if growth._thins(version)] == [1, 2, 4, 8, 16, 32, 64]
