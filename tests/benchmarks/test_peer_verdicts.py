"""The arithmetic of benchmarks/peers: budgets to meet, verdicts, segmentations kept."""

from __future__ import annotations

from types import ModuleType

import pytest

from support.benchmarks import benchmark_module


@pytest.fixture(scope="module")
def verdicts() -> ModuleType:
    return benchmark_module("peers.verdicts")


def test_each_peak_has_a_budget_at_most_2_percent_below_it(verdicts: ModuleType) -> None:
    peaks = [1000, 999, 985, 981, 979, 500, 495, 100]
    budgets = verdicts.budgets_to_meet(peaks)
    assert budgets == [981, 979, 495, 100]
    for peak in peaks:
        assert any(0.98 * peak <= b <= peak for b in budgets), peak


def test_no_peaks_need_no_budget(verdicts: ModuleType) -> None:
    assert verdicts.budgets_to_meet([]) == []
    assert verdicts.budgets_to_meet([7]) == [7]


def test_a_peer_meets_our_largest_run_within_its_peak(verdicts: ModuleType) -> None:
    peer = verdicts.Timed("peer", 100, (10.0, 20.0, 40.0), (20.0, 40.0, 80.0))
    larger = verdicts.Timed("larger", 101, (1.0, 1.0, 1.0))
    fitting = verdicts.Timed("fitting", 100, (10.5, 20.0, 44.0), (18.0, 36.0, 88.0))
    small = verdicts.Timed("small", 60, (5.0, 5.0, 5.0))
    found = verdicts.judge(peer, [larger, small, fitting])
    assert found.ours == "fitting"
    assert found.peak_ratio == 1.0
    # Round by round: 1.05, 1.00, 1.10. Not the ratio of the medians, 1.00.
    assert found.time_ratio == pytest.approx(1.05)
    assert (found.low, found.high) == (pytest.approx(1.025), pytest.approx(1.075))
    assert found.wall_ratio == pytest.approx(0.9)


@pytest.mark.parametrize(("ours", "word"), [(105.0, "no slower"), (105.1, "SLOWER")])
def test_five_percent_is_noise_and_more_is_not(
    verdicts: ModuleType, ours: float, word: str
) -> None:
    peer = verdicts.Timed("peer", 9, (100.0,) * 3)
    assert verdicts.judge(peer, [verdicts.Timed("ours", 9, (ours,) * 3)]).word == word


def test_a_peak_that_none_of_ours_reaches_is_said_to_be_so(verdicts: ModuleType) -> None:
    peer = verdicts.Timed("peer", 100, (10.0, 10.0))
    found = verdicts.judge(peer, [verdicts.Timed("ours", 150, (1.0, 1.0))])
    assert (found.word, found.ours, found.peak_ratio) == ("OUT OF REACH", None, 1.5)
    assert found.time_ratio is None


def test_the_smallest_and_the_fastest_segmentation_are_kept(verdicts: ModuleType) -> None:
    two = verdicts.Timed("two", 90, (10.0, 11.0))
    five = verdicts.Timed("five", 50, (12.0, 12.0))
    nine = verdicts.Timed("nine", 50, (13.0, 13.0))
    assert verdicts.kept_segmentations([two, nine, five]) == ["five", "two"]
    assert verdicts.kept_segmentations([five]) == ["five"]
    assert verdicts.kept_segmentations([]) == []


@pytest.mark.parametrize(
    ("difference", "word"), [(0.0, "bitwise"), (1e-4, "rounding"), (0.03, "WRONG")]
)
def test_gradients_are_rated(verdicts: ModuleType, difference: float, word: str) -> None:
    assert verdicts.rating(difference) == word


def test_a_gradient_that_is_not_a_number_is_wrong(verdicts: ModuleType) -> None:
    assert verdicts.rating(float("nan")) == "WRONG"
