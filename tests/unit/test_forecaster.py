"""What the forecaster's loop does around a failure, without a broker."""

import pytest

from pipeline.forecaster import FIRST_RETRY_S, LONGEST_RETRY_S, retry_wait_s


@pytest.mark.parametrize(
    ("failures", "wait_s"),
    [
        (1, FIRST_RETRY_S),
        (2, 2 * FIRST_RETRY_S),
        (3, 4 * FIRST_RETRY_S),
        (100, LONGEST_RETRY_S),
        (10**6, LONGEST_RETRY_S),
    ],
)
def test_the_wait_after_a_failure_doubles_up_to_a_limit(failures: int, wait_s: float) -> None:
    assert retry_wait_s(failures) == pytest.approx(wait_s)
