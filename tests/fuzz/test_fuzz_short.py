"""One second of each fuzz target. ``python -m tests.fuzz --seconds 180`` runs longer."""

import logging
from collections.abc import Iterator

import pytest

from tests.fuzz import targets
from tests.fuzz.run import fuzz

SEED = 20_261_123


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.long(11)  # with the other tests of this file
@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_second_of_fuzzing_finds_no_failure(name: str) -> None:
    cases, findings = fuzz(targets.TARGETS[name], SEED, 1.0)
    assert not findings, f"case {findings[0].case}:\n{findings[0].error}"
    assert cases


def test_a_decoder_without_a_limit_on_values_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the target can fail."""
    monkeypatch.setattr("pipeline.messages.LARGEST_VALUE", float("inf"))
    _, findings = fuzz(targets.decoder, SEED, 20.0, most=1)
    assert findings


def test_an_outlook_decoder_without_a_limit_on_times_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.outlook_messages.LATEST_TIMESTAMP_US", 2**63)
    _, findings = fuzz(targets.outlooks, SEED, 20.0, most=1)
    assert findings


def test_a_state_codec_without_its_checksum_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.messages.zlib.crc32", lambda row: 0)
    monkeypatch.setattr(targets, "_STATES", targets._states())
    _, findings = fuzz(targets.state_codec, SEED, 20.0, most=1)
    assert findings


def test_a_file_that_cuts_fractions_and_a_stream_that_rounds_them_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.files.time_fields.MICROSECOND_DIGITS", 3)
    _, findings = fuzz(targets.file_times, SEED, 20.0, most=1)
    assert findings
