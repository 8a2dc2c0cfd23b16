"""Names and numbers in messages."""

import pytest

from t2i.names import number


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
