"""Promotions: their history in tags that MLflow keeps, and the command that undoes them."""

from collections.abc import Mapping
from typing import cast

from pipeline.registry.promotion import Promotion
from pipeline.registry.promotion_log import EVENT_PREFIX, Mover, events, record_move
from pipeline.registry.versions import Registry
from pipeline.text.visible_text import visible


class Tags:
    """Keeps the tags of versions, as ``Registry.tag`` sends them."""

    def __init__(self) -> None:
        self.of: dict[int, dict[str, str]] = {}

    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        self.of.setdefault(version, {}).update({key: visible(value) for key, value in tags.items()})


def test_a_long_reason_of_control_characters_is_cut_to_a_tag_that_mlflow_keeps() -> None:
    tags = Tags()
    record_move(cast(Registry, tags), "champion", 2, 1, Mover("ann", "\u202e" * 3_900))
    for version in (1, 2):
        ((key, text),) = tags.of[version].items()
        assert key.startswith(EVENT_PREFIX)
        assert len(text) < 5_000
        assert text.endswith("…")
        assert events(tags.of[version])[0].text == text


def test_the_command_that_undoes_a_promotion_names_the_alias() -> None:
    assert Promotion(3, "champion", 2).undo == "streamgru promote 2"
    assert Promotion(3, "challenger", 2).undo == "streamgru promote 2 --alias challenger"
    assert Promotion(3, "champion", 3).undo is None
    assert Promotion(3, "champion", None).undo is None
