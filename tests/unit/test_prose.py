"""Phrases that ``make check`` refuses are found in every place where people read text."""

from pathlib import Path

import pytest

from tests import prose

# Words are joined by underscores here, so that the check does not find these sentences in this file.
PLANTED = {
    "what": "What_is_held_waits_for_the_gap",
    "who": "The_file_is_for_who_wants_it",
    "whoever": "Whoever_holds_the_lock_goes_on",
    "whatever": "The_row_keeps_whatever_arrived",
    "such": "Such_are_never_written",
    "others": "Restore_one_while_others_wait",
    "likewise": "likewise_in_the_changelog",
    "of-those": "Of_those_served_one_is_late",
    "of-these": "All_states_of_these_are_written",
    "of-then": "Replies_are_of_before_the_rebalance",
    "so-many": "Wait_for_so_many_cadences",
    "so-long": "The_command_ends_after_so_long",
    "is-none": "The_readings_and_those_that_are_none",
    "none-where": "The_alias_that_serves,_none_where_no_model_fits",
    "is-no": "The_value_is_no_schedule",
    "finite": "A_state_holds_no_finite_numbers",
    "else": "Else_the_reader_waits",
    "rest": "The_stream_is_at_rest",
    "anew": "The_topic_was_made_anew",
    "news": "Late_readings_pass_for_news",
    "nothing-of": "The_batch_failed:_nothing_of_it_is_visible",
    "but-for": "Every_run_is_deleted_but_for_the_newest",
    "not-there": "The_first_reading_is_not_there_any_more",
    "not-known": "The_batch_is_not_known_to_be_committed",
    "so": "The_states_are_so_again",
    "to-be": "To_be_asked_again",
    "want": "The_upload_fails_for_want_of_room",
}
PLACES = {
    "comment": ("a.py", "x = 1  # {}."),
    "comment over two lines": ("a.py", "# The offsets.\n# {}.\n"),
    "docstring": ("a.py", 'def f():\n    """The offsets.\n\n    {}.\n    """\n'),
    "message": ("a.py", 'raise ValueError("{}.")'),
    "f-string": ("a.py", 'logger.info(f"offset {{offset}} of {{topic}}. {}; {{advice}}")'),
    "concatenated string": ("a.py", 'x = (\n    "The offsets. "\n    "{}."\n)'),
    "value in an f-string": ("a.py", "x = f\"{{'{}.' if lost else ''}}\""),
    "help text": ("a.py", 'click.option("--all", help="{}.")'),
    "paragraph of a page": ("README.md", "# Offsets\n\nThe offsets.\n{}.\n"),
    "list of a page": ("README.md", "- {}.\n- The offsets.\n"),
    "row of a table": ("README.md", "| offsets | {}. |\n"),
    "comment of settings": ("pyproject.toml", "line-length = 120 # {}."),
    "description in settings": ("pyproject.toml", 'description = "{}."'),
    "comment of a manifest": ("deploy/a.yaml", "# {}.\nname: a\n"),
    "help of a target": ("Makefile", "demo: setup ## {}.\n"),
}


def words(sentence: str) -> str:
    return sentence.replace("_", " ")


def kinds(path: str, source: str) -> set[str]:
    return {fault.kind for fault in prose.faults(path, source)}


@pytest.mark.parametrize("kind", [phrase.kind for phrase in prose.PHRASES])
def test_a_planted_sentence_of_each_kind_is_found_in_every_place(kind: str) -> None:
    for place, (path, template) in PLACES.items():
        assert kinds(path, template.format(words("The_offsets"))) == set(), place
        assert kind in kinds(path, template.format(words(PLANTED[kind]))), place


@pytest.mark.parametrize("kind", ["what", "of-those", "anew", "is-none"])
def test_names_of_tests_are_read_as_sentences(kind: str) -> None:
    assert kinds("a.py", f"def test_{PLANTED[kind].lower()}() -> None: ...") >= {kind}


@pytest.mark.parametrize(
    "source",
    [
        "# The offsets of\n# those_lost.",
        '"""The offsets of\nthose_lost."""',
        'x = "The offsets of " "those_lost."',
        'x = (\n    f"{count} offsets of "\n    f"those_lost in {topic}"\n)',
    ],
)
def test_a_phrase_is_found_across_lines(source: str) -> None:
    assert kinds("a.py", words(source)) == {"of-those"}


def test_a_fault_names_file_line_phrase_and_advice() -> None:
    comment = f"# The offsets.\n# {words('They_are_read_anew')}.\n"
    text = f'x = (\n    "The states, "\n    "{words("in_this_file,_likewise")}"\n)\n'
    first, second = prose.faults("model/a.py", f"{comment}{text}")
    assert str(first).startswith(f'model/a.py:2: "{words("anew")}" in "The offsets.')
    assert str(first).endswith(": again, from scratch, recreate, reset")
    assert (second.line, second.kind) == (5, "likewise")


@pytest.mark.parametrize(
    "sentence",
    [
        "The message says what went wrong, what happened to the batch, and what to do next.",
        "What is lost, and for what?",
        "It is for people who have sensors.",
        "There is no such topic, and no value such as this.",
        "Such states are discarded.",
        "One forecaster stops while the others go on.",
        "It waits for the offsets of these partitions.",
        "The lag of those partitions, of those 3, is no longer known.",
        "A batch has as many rows as there are sensors.",
        "It is none of the client's business: the value is None.",
        "There is no committed offset, so the group is no larger than before.",
        "Nothing else changes.",
        "The rest of the batch knows nothing of it.",
        "Quotations are left out: `likewise`, ``of those``.",
    ],
)
def test_good_english_and_code_in_backticks_pass(sentence: str) -> None:
    assert prose.faults("README.md", sentence) == []


def test_code_and_single_words_are_not_prose() -> None:
    lines = [
        "others={'news':None,'likewise':('such','who')}",
        "if_others_is_none:",
        "____what=1",
        "else:",
        "____what=2",
    ]
    assert prose.faults("a.py", words("\n".join(lines))) == []


def test_a_key_of_the_audit_passes_and_the_same_words_in_a_sentence_do_not() -> None:
    assert prose.faults("a.py", f'fault = "{words("begun_anew")}"') == []
    assert kinds("a.py", f'fault = "The state was {words("begun_anew")}"') == {"anew"}


def test_a_page_that_a_program_wrote_is_left_to_the_check_of_that_program() -> None:
    page = f"{words('It_is_all_made_anew')}.\n"
    assert prose.faults("README.md", page)
    assert prose.faults("tests/SPEED.md", f"# Speed\n\nWritten by `make bench`.\n\n{page}") == []


def test_the_command_prints_the_faults_and_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("The offsets are committed.\n")
    bad.write_text(f"The offsets are\n{words('made_anew')}.\n")
    assert prose.main([str(good)]) == 0
    assert capsys.readouterr().out == ""
    assert prose.main([str(good), str(bad)]) == 1
    assert f"{bad}:2: " in capsys.readouterr().out
