"""The report of an ingest."""

from pipeline.history.ingest import IngestReport


def test_deleted_offsets_are_reported_with_and_without_new_readings() -> None:
    assert str(IngestReport("readings", 0, 0)) == "nothing new on topic readings"
    lost = "deleted by the topic's retention before they were read: 1,234 offsets"
    assert str(IngestReport("readings", 0, 0, lost_offsets=1_234)) == f"nothing new on topic readings; {lost}"
    assert str(IngestReport("t", 4, 4, 3, 1, seconds=1, commits=1)).startswith(
        "3 readings and 1 outlook from topic t in"
    )
    done = str(IngestReport("readings", 7, 7, readings=7, lost_offsets=1_234, commits=1))
    assert done == f"7 readings from topic readings in 0.0 s, 1 commit; {lost}"
