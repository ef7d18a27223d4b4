"""A card that is not exactly right is refused in one line that can be shown on a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from support.makers import MakeCard

from leuda_deploy.errors import ModelError
from leuda_deploy.model.card import MAX_CARD_BYTES, PALETTE, ModelCard, parse_card


def changed(card: ModelCard, change: Callable[[dict[str, Any]], object]) -> str:
    content = json.loads(card.to_json())
    change(content)
    return json.dumps(content)


def refusal(text: str) -> str:
    with pytest.raises(ModelError) as caught:
        parse_card(text, "a.onnx")
    line = str(caught.value)
    assert "a.onnx" in line
    assert line.isprintable()  # no line break, no terminal code
    assert len(line) < 600
    return line


def test_card_round_trips(make_card: MakeCard) -> None:
    card = make_card()
    assert parse_card(card.to_json(), "a.onnx") == card
    assert card.label_names == {1: "grey", 2: "bright"}


def test_spacing_and_scores_round_trip(make_card: MakeCard) -> None:
    card = make_card(recipe=make_card().recipe.model_copy(update={"spacing_mm": (1.25, 0.1)}))
    found = parse_card(card.to_json(), "a.onnx")
    assert found.recipe.spacing_mm == (1.25, 0.1)


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"a": 1,}', "9" * 5000, "\x00"])
def test_what_is_not_json_is_refused(text: str) -> None:
    assert "is not JSON" in refusal(text)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"card"', "{}"])
def test_json_that_is_no_card_is_refused(text: str) -> None:
    assert "schema version" in refusal(text)


@pytest.mark.parametrize("version", [0, 2, "1", None, "9\n\x1b[2J" * 100])
def test_unknown_schema_version_is_refused(make_card: MakeCard, version: object) -> None:
    text = changed(make_card(), lambda content: content.update(schema_version=version))
    assert "this leuda reads version 1" in refusal(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(colour="red"), "unknown key 'colour'"),
        (lambda c: c["recipe"].update(zoom=3), "unknown key 'recipe.zoom'"),
        (lambda c: c["provenance"].update(user="me"), "unknown key 'provenance.user'"),
        (lambda c: c.pop("recipe"), "'recipe' is missing"),
        (lambda c: c["recipe"].pop("window"), "'recipe.window' is missing"),
        (lambda c: c.update(structures=[]), "'structures'"),
        (lambda c: c.update(feed="source"), "'feed' = source"),
        (lambda c: c.update(precision="fp8"), "'precision' = fp8"),
        (lambda c: c["options"].update(output="labels"), "options.output"),
        (lambda c: c.update(name="x" * 501), "at most 500 characters"),
        (lambda c: c["structures"][0].update(value=256), "less than or equal to 255"),
        (lambda c: c["structures"][0].update(value=0), "greater than or equal to 1"),
        (lambda c: c["structures"][0].update(colour=[0, 0, 256]), "colour"),
        (lambda c: c["recipe"].update(clip_percentiles=[98, 2]), "must rise"),
        (lambda c: c["recipe"].update(window=[4, 10**9]), "(and 1 more)"),
        (lambda c: c["tiling"].update(whole=[64, 64]), "fixed window"),
        (lambda c: c.update(tiling={"air": 0.1}, depth={"slices": 8}), "2D"),
    ],
)
def test_card_against_the_schema_is_refused(
    make_card: MakeCard, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    assert message in refusal(changed(make_card(), change))


@pytest.mark.parametrize("values", [(2, 1), (1, 1), (1, 3), (2, 3)])
def test_structures_that_are_not_numbered_in_order_are_refused(
    make_card: MakeCard, values: tuple[int, int]
) -> None:
    def renumber(content: dict[str, Any]) -> None:
        for structure, value in zip(content["structures"], values, strict=True):
            structure["value"] = value

    assert "numbers its structures out of order" in refusal(changed(make_card(), renumber))


def test_too_large_a_card_is_refused_before_it_is_parsed(make_card: MakeCard) -> None:
    padding = MAX_CARD_BYTES + 1 - len(make_card().to_json())
    assert "1,048,577 bytes" in refusal(make_card().to_json() + " " * padding)
    parse_card(make_card().to_json() + " " * (padding - 1), "a.onnx")
    # fewer characters than the limit, but more bytes
    assert "bytes" in refusal('"' + "ö" * (MAX_CARD_BYTES // 2) + '"')


@pytest.mark.parametrize("depth", [50, 900, 100_000])
@pytest.mark.parametrize("key", ["name", "unknown"])
def test_deeply_nested_card_is_refused(depth: int, key: str) -> None:
    refusal(f'{{"schema_version": 1, "{key}": {"[" * depth}{"]" * depth}}}')


def test_refusal_shows_no_line_breaks_and_terminal_codes(make_card: MakeCard) -> None:
    nasty = "\n\r\x1b[2J\x07\u202e"
    refusal(changed(make_card(), lambda content: content.update({nasty: 1})))
    refusal(changed(make_card(), lambda content: content.update(name=nasty + "x" * 600)))
    refusal(changed(make_card(), lambda content: content.update(feed=nasty)))


def test_palette_colours_differ() -> None:
    assert len(set(PALETTE)) == len(PALETTE)
