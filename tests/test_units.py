"""Bytes in and out."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfit.budget import Budget, parse_budget, parse_bytes
from memfit.errors import InvalidBudgetError, UsageError
from memfit.units import format_bytes, format_time_ns


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("3GiB", 3 * 2**30),
        ("3GB", 3 * 10**9),
        ("800MB", 800 * 10**6),
        ("800 mib", 800 * 2**20),
        ("1.5KiB", 1536),
        (".5kb", 500),
        ("1.0000001kB", 1000),
        ("1_000", 1000),
        (" 512 ", 512),
        ("17B", 17),
        (3_221_225_472, 3 * 2**30),
        ("2TiB", 2**41),
    ],
)
def test_sizes_with_and_without_units(text: str | int, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GiB",
        "3 gigs",
        "-3GiB",
        "3GiB extra",
        "nan",
        "inf",
        "1e9",
        "0",
        "0.1B",
        0,
        -1,
        2**62,
        "4194304TiB",
        True,
        None,
        2.5,
        "60%",
        "auto",
        "٣GiB",
    ],
)
def test_what_is_no_size_is_refused_with_a_remedy(text: object) -> None:
    with pytest.raises(InvalidBudgetError) as caught:
        parse_bytes(text)  # type: ignore[arg-type]
    message = str(caught.value)
    assert repr(text) in message
    assert '"3GiB"' in message
    assert "\n" not in message
    assert isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("budget", "remedy"), [("0.6", '"60%"'), (".25", '"25%"'), (0.6, '"60%"'), ("6G", '"3GiB"')]
)
def test_a_budget_that_may_be_a_share(budget: object, remedy: str) -> None:
    with pytest.raises(InvalidBudgetError) as caught:
        parse_budget(budget)  # type: ignore[arg-type]
    assert remedy in str(caught.value)
    assert repr(budget) in str(caught.value)


def test_gib_is_not_gb() -> None:
    assert parse_bytes("1GiB") - parse_bytes("1GB") == 73_741_824


@given(st.integers(1, 2**62 - 1))
def test_plain_numbers_come_back_exactly(size_bytes: int) -> None:
    assert parse_bytes(size_bytes) == parse_bytes(str(size_bytes)) == size_bytes


@given(st.integers(0, 10**6), st.sampled_from(["KiB", "MiB", "GiB", "kB", "MB", "GB"]))
def test_fractions_are_exact_and_rounded_down(thousandths: int, unit: str) -> None:
    scale = parse_bytes(f"1{unit}")
    wanted = thousandths * scale // 1000
    text = f"{thousandths // 1000}.{thousandths % 1000:03d}{unit}"
    if wanted:
        assert parse_bytes(text) == wanted
    else:
        with pytest.raises(InvalidBudgetError):
            parse_bytes(text)


def test_budget_is_bytes_a_share_or_auto() -> None:
    assert parse_budget("3GiB") == parse_budget(3 * 2**30) == Budget(absolute_bytes=3 * 2**30)
    assert parse_budget("60%") == parse_budget(" 60 % ") == Budget(share=Fraction(3, 5))
    assert parse_budget("33.3%") == Budget(share=Fraction(333, 1000))
    assert parse_budget("auto") == parse_budget(" AUTO ") == Budget(auto=True)
    budget = Budget(absolute_bytes=5)
    assert parse_budget(budget) is budget


@pytest.mark.parametrize("text", ["0%", "1001%", "-5%", "%", "sixty%"])
def test_shares_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(InvalidBudgetError, match="60%"):
        parse_budget(text)


def test_budget_resolves_against_what_it_is_measured_by() -> None:
    def resolve(text: str) -> int:
        return parse_budget(text).resolve(plain_peak_bytes=1001, free_bytes=77)

    assert resolve("500") == 500
    assert resolve("50%") == 500
    assert resolve("100%") == 1001
    assert resolve("auto") == 77


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (17, "17 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (12 * 2**20, "12.0 MiB"),
        (-12 * 2**20, "-12.0 MiB"),
        (int(3.4 * 2**30), "3.40 GiB"),
        (5 * 2**40, "5.00 TiB"),
    ],
)
def test_bytes_for_people(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


@given(st.integers(1024, 2**50))
def test_bytes_for_people_are_within_one_percent(size_bytes: int) -> None:
    number, unit = format_bytes(size_bytes).split()
    assert abs(float(number) * parse_bytes(f"1{unit}") - size_bytes) <= size_bytes / 100


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "0 ns"),
        (999, "999 ns"),
        (17_000, "17.0 us"),
        (3_100_000, "3.10 ms"),
        (1_250_000_000, "1.25 s"),
        (90 * 10**9, "90.0 s"),
    ],
)
def test_times_for_people(time_ns: int, text: str) -> None:
    assert format_time_ns(time_ns) == text
