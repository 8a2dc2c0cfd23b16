"""Names and numbers in messages."""

import pytest

from t2i.names import counted, installed, number, verb


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (None, 3, "not finite"),
        (0.0, 3, "0"),
        (0.00012345, 3, "0.000123"),
        (-3.14159, 3, "-3.14"),
        (43.2, 2, "43"),
        (342.4, 2, "342"),
        (999.7, 3, "1,000"),
        (1234.5, 3, "1,234"),
        (-52300.0, 3, "-52,300"),
        (999_999.0, 3, "999,999"),
        (12_345_678.0, 3, "1.23e+07"),
    ],
)
def test_a_number_has_no_exponent_below_a_million(value: float | None, digits: int, text: str) -> None:
    assert number(value, digits) == text


def test_counts_have_their_number() -> None:
    assert [counted(count, "image") for count in (0, 1, 5000)] == ["0 images", "1 image", "5,000 images"]
    assert [counted(count, "process") for count in (1, 2)] == ["1 process", "2 processes"]
    assert [counted(minutes, "minute") for minutes in (1.0, 1.5, 60.0)] == ["1 minute", "1.5 minutes", "60 minutes"]
    assert [verb(1), verb(2), verb(1, "was", "were")] == ["is", "are", "was"]


def test_a_module_whose_parent_is_missing_is_not_installed() -> None:
    assert installed("json") and installed("importlib.util")
    assert not installed("no_such_package") and not installed("no_such_package.below") and not installed("json.below")
