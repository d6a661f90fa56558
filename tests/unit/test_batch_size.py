"""The size of a batch follows the time and bytes of the batches before it."""

from pipeline.forecaster.group_limit import MAX_TRANSACTION_BYTES
from pipeline.forecaster.micro_batch import (
    BUDGET_S,
    FIRST_BATCH_READINGS,
    SMALL_TRANSACTION_BYTES,
    SMALLEST_BATCH_READINGS,
    BatchSize,
)


def test_full_batches_below_the_time_budget_grow_up_to_the_limit() -> None:
    size = BatchSize(20_000, 60.0)
    seen = [size.readings]
    for _ in range(8):
        size.committed(size.readings, 0.1)
        seen.append(size.readings)
    assert seen[:3] == [FIRST_BATCH_READINGS, 2 * FIRST_BATCH_READINGS, 4 * FIRST_BATCH_READINGS]
    assert seen[-1] == 20_000


def test_a_small_batch_does_not_change_the_size() -> None:
    size = BatchSize(20_000, 60.0)
    size.committed(10, 0.001)
    assert size.readings == FIRST_BATCH_READINGS


def test_a_batch_that_took_too_long_is_followed_by_one_that_fits() -> None:
    size = BatchSize(20_000, 60.0)
    size.committed(1_000, 10 * BUDGET_S)
    assert size.readings == 100
    size.committed(100, 100 * BUDGET_S)
    assert size.readings == SMALLEST_BATCH_READINGS


def test_the_budget_lies_far_below_a_short_poll_interval() -> None:
    size = BatchSize(20_000, 7.0)
    size.committed(1_000, 1.4)
    assert size.readings == 500


def test_a_small_limit_in_the_settings_is_kept() -> None:
    size = BatchSize(10, 60.0)
    assert size.readings == 10
    size.committed(10, 0.001)
    size.committed(10, 100.0)
    assert size.readings == 10


def test_batches_with_large_states_have_fewer_readings() -> None:
    size = BatchSize(20_000, 60.0)
    size.set_bytes_per_reading(40_000)
    for _ in range(8):
        size.committed(size.readings, 0.1)
    assert size.readings == MAX_TRANSACTION_BYTES // 40_000
    size.set_bytes_per_reading(1_000)
    for _ in range(8):
        size.committed(size.readings, 0.1)
    assert size.readings == 20_000


def test_a_batch_with_huge_states_keeps_the_smallest_size() -> None:
    size = BatchSize(20_000, 60.0)
    size.set_bytes_per_reading(10 * MAX_TRANSACTION_BYTES)
    assert size.readings == SMALLEST_BATCH_READINGS


def test_failed_transactions_shrink_batches_until_transactions_are_small() -> None:
    size = BatchSize(20_000, 60.0)
    size.set_bytes_per_reading(40_000)
    for _ in range(10):
        size.failed(size.readings, 0.1)
    assert SMALLEST_BATCH_READINGS <= size.readings <= SMALL_TRANSACTION_BYTES // 40_000
    size.set_bytes_per_reading(10 * MAX_TRANSACTION_BYTES)
    size.failed(size.readings, 0.1)
    assert size.readings == SMALLEST_BATCH_READINGS


def test_a_failed_size_is_reached_again_only_after_several_commits() -> None:
    size = BatchSize(20_000, 60.0)
    size.set_bytes_per_reading(6_000)
    size.failed(1_000, 0.1)
    seen = []
    for _ in range(40):
        size.committed(size.readings, 0.1)
        seen.append(size.readings)
    assert seen[0] < 600
    assert seen[-1] >= 1_000


def test_failed_small_transactions_do_not_shrink_batches() -> None:
    size = BatchSize(20_000, 60.0)
    size.set_bytes_per_reading(6_000)
    for _ in range(20):
        size.failed(60, 0.01)
    assert size.readings == FIRST_BATCH_READINGS


def test_a_batch_that_took_too_long_and_failed_is_followed_by_one_that_fits() -> None:
    size = BatchSize(20_000, 60.0)
    size.failed(1_000, 10 * BUDGET_S)
    assert size.readings == 100


def test_a_transaction_without_readings_does_not_change_the_size() -> None:
    size = BatchSize(20_000, 60.0)
    size.committed(0, 10 * BUDGET_S)
    assert size.readings == FIRST_BATCH_READINGS


def test_slow_or_failed_batches_of_outlooks_shrink_batches() -> None:
    """One outlook of a group changes 10,000 states."""
    for name in ("committed", "failed"):
        size = BatchSize(20_000, 60.0)
        size.set_bytes_per_reading(3_000)
        getattr(size, name)(1, 2 * BUDGET_S, 10_000)
        assert size.readings == FIRST_BATCH_READINGS // 2
    failing = BatchSize(20_000, 60.0)
    failing.set_bytes_per_reading(7_568)
    for _ in range(10):
        failing.failed(1, 0.1, 10_000)
    assert failing.readings == SMALLEST_BATCH_READINGS


def test_states_changed_by_outlooks_do_not_make_a_batch_full() -> None:
    size = BatchSize(20_000, 60.0)
    size.committed(1, 0.1, 10_000)
    assert size.readings == FIRST_BATCH_READINGS
