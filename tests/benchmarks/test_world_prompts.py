"""The world's benchmark: prompts, the baseline of words, and inpainting."""

from collections import Counter

import pytest
import torch
from benchmarks.world_inpainting import draw_replacements, measured
from benchmarks.world_judging import Seen, Wish, described, exactly
from benchmarks.world_prompts import KINDS, NearestByWords, Prompt, draw_prompts, prompt_text

from recipes.world.drawing import draw
from recipes.world.scenes import Item, Scene
from recipes.world.words import THINGS


TWO = Scene((Item("dog", "blue", 0, 3), Item("fox", None, 7, 3)), "flat", "night")


def test_prompts_name_what_their_kind_is_about():
    assert prompt_text(TWO, "position") == "a blue dog to the left of a fox at night, flat style"
    assert prompt_text(TWO, "binding") == "a blue dog and a fox at night, flat style"
    assert prompt_text(TWO, "binding", reordered=True) == "flat style: a fox and a blue dog at night"
    other_way = "flat style: a fox to the right of a blue dog at night"
    assert prompt_text(TWO, "position", reordered=True) == other_way
    below = Scene((Item("dog", None, 4, 0), Item("fox", None, 4, 7)), "3d")
    assert prompt_text(below, "position", reordered=True) == "3d style: a fox below a dog"
    assert prompt_text(Scene(below.items[:1], "3d"), "single", reordered=True) == "3d style: a dog at the top"
    assert Prompt("position", TWO, "").wish == described(TWO) != Wish(TWO) == Prompt("binding", TWO, "").wish
    assert {one.kind for one in Prompt("position", TWO, "").combinations} == {"left"}


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_different_and_of_their_split(objects, kind):
    prompts = draw_prompts(objects, "validation", kind, 12)
    assert len({prompt.text for prompt in prompts}) == 12
    assert {prompt.scene.split for prompt in prompts} == {"validation"}
    assert {one.split for prompt in prompts for one in prompt.combinations} == {"validation"}
    assert prompts == draw_prompts(objects, "validation", kind, 12)
    assert {prompt.scene.split for prompt in draw_prompts(objects, "train", kind, 5)} == {"train"}


def test_trained_things_have_the_styles_in_which_things_are_held_out(objects):
    styles = {prompt.scene.style for prompt in draw_prompts(objects, "train", "single", 30)}
    assert styles == {"fluent", "noto", "3d"}


def test_every_combination_has_its_turn(objects):
    alone = Counter(prompt.combinations for prompt in draw_prompts(objects, "validation", "single", 30))
    assert 10 < len(alone) < 30 and max(alone.values()) - min(alone.values()) <= 1
    pairs = Counter(prompt.combinations for prompt in draw_prompts(objects, "validation", "two_objects", 15))
    assert len(pairs) == 15, "there are enough pairs for one of each"


def test_the_nearest_scene_shares_the_most_words(objects):
    nearest = NearestByWords(objects, 600)
    for text, scene in list(zip(nearest.texts, nearest.known, strict=True))[:10]:
        assert nearest.answer(text) == scene
        assert nearest.answer(f"xylophone {text}") == scene, "a word that no scene has"


# Inpainting


@pytest.mark.parametrize("split", ["validation", "train"])
def test_replacements_change_one_thing_of_a_trained_scene(objects, split):
    replacements = draw_replacements(objects, split, 20)
    assert replacements == draw_replacements(objects, split, 20)
    for one in replacements:
        assert one.before.split == "train" and one.after.split == split
        assert one.before.background == one.after.background
        kept, gone = one.before.items[1 - one.changed], one.before.items[one.changed]
        assert kept == one.after.items[1 - one.changed]
        new = one.after.items[one.changed]
        assert new.thing not in (kept.thing, gone.thing) and (new.row, new.column) == (gone.row, gone.column)
        assert new.thing in one.text or any(noun.singular in one.text for noun in THINGS[new.thing].nouns)
        # Only the marked cells differ between the two images.
        differs = (draw(one.before, objects) != draw(one.after, objects)).any(-1)
        assert differs.any() and not (torch.from_numpy(differs) & (one.mask() == 0)).any()


def test_the_same_thing_is_never_painted_over_itself(objects):
    replacements = draw_replacements(objects, "train", 400)  # some three would be, by chance
    assert all(one.before.items[one.changed].thing != one.after.items[one.changed].thing for one in replacements)


def test_painting_over_is_right_if_only_the_marked_thing_changes(objects):
    replacements = draw_replacements(objects, "train", 5)
    exact = [exactly(one.after) for one in replacements]

    def shares(found):
        values = measured(replacements, lambda asked: None, lambda images: found)
        return values["object"], values["rest"], values["right"]

    def alone(one):
        return Seen(exactly(one.after).things[one.changed :][:1], one.after.background)

    def one_more(one):
        return Seen((*exactly(one.after).things, exactly(one.before).things[one.changed]), one.after.background)

    assert shares(exact) == (1, 1, 1)
    assert shares([exactly(one.before) for one in replacements]) == (0, 1, 0)
    assert shares([alone(one) for one in replacements]) == (1, 0, 0)
    assert shares([one_more(one) for one in replacements]) == (0, 0, 0)
    assert shares([Seen((), "white")] * 5) == (0, 0, 0)
    moved = [
        Seen(tuple((item.moved(item.column, item.row + 2), style) for item, style in one.things), one.background)
        for one in exact
    ]
    assert shares(moved)[2] == 0
    other = {"white": "night"}
    assert shares([Seen(one.things, other.get(one.background, "white")) for one in exact]) == (1, 0, 0)
    restyled = [Seen(tuple((item, "none") for item in one.items), one.background) for one in exact]
    assert shares(restyled) == (0, 0, 0)
