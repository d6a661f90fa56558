"""Markdown of user text: a parser gives the text back, without any markup."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pipeline.text.markdown_text import markdown, markdown_table, mlflow_markdown
from pipeline.text.visible_text import visible
from tests.hostile_reports import TEXTS

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
BLOCKS = ["- a", "# a", "#", "1) a", "123. a", "=== ", "    code", "> q", "___", "-"]
SPANS = ["~~a~~", "![a](b)", "&amp;", "<a@b.c>", "a\\", "**a**", "`a`"]
any_text = st.one_of(
    st.text(st.characters()),
    st.sampled_from([*TEXTS, *BLOCKS, *SPANS]),
    st.text("-#*_`~=+1.)( \\[]<>&", max_size=9),
)


@pytest.mark.parametrize("escape", [markdown, mlflow_markdown])
@given(text=any_text)
def test_a_parser_reads_any_text_as_plain_text(escape: Callable[[str], str], text: str) -> None:
    tokens = PARSER.parse(escape(text))
    assert {token.type for token in tokens} <= {"paragraph_open", "inline", "paragraph_close"}
    inline = [child for token in tokens for child in token.children or []]
    assert {token.type for token in inline} <= {"text", "text_special"}
    assert "".join(token.content for token in inline).strip() == visible(text).strip()


def test_a_cell_of_a_table_holds_any_text() -> None:
    rows = [[markdown(text), "1"] for text in [*TEXTS, *BLOCKS, *SPANS]]
    tokens = PARSER.parse(markdown_table(["a", "b"], rows))
    assert sum(token.type == "td_open" for token in tokens) == 2 * len(rows)


def test_long_text_is_cut_before_it_is_escaped() -> None:
    assert markdown("*" * 50, 4) == "\\*\\*\\*…"


def test_mentions_emojis_and_addresses_stay_text_in_both_parsers() -> None:
    # Prefect shows numeric entities as they are, and Showdown a backslash before these characters.
    assert markdown("@bob :smile: www.a.b 15:21") == r"\@bob \:smile: www\.a.b 15\:21"
    assert mlflow_markdown("@bob :smile: www.a.b ...") == "&#64;bob &#58;smile: www&#46;a.b &#46;&#46;."


def test_numbers_and_words_stay_readable_in_the_source() -> None:
    assert markdown("mean pinball is 0.25 (champion: 0.3)") == "mean pinball is 0.25 (champion: 0.3)"
