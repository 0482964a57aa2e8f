"""The world's benchmark: what the judge finds, and when an image is right."""

import argparse
import dataclasses
import random

import numpy as np
import pytest
import torch
from benchmarks import world_detector
from benchmarks.world_detector import (
    COLOURS,
    NAMES,
    UNCLEAR,
    Detector,
    detect,
    detector_loss,
    load_detector,
    middle,
    save_detector,
    targets,
    train_detector,
    worsened,
)
from benchmarks.world_judging import (
    GENEVAL,
    POINTS,
    Seen,
    Wish,
    background_of,
    changed,
    described,
    exactly,
    faults,
    look,
    scores,
    shown,
    standard_error,
)
from benchmarks.world_workbench import trained_file
from perfect_judge import Perfect

from recipes.image_tokens import to_pixel_values
from recipes.world.drawing import draw
from recipes.world.objects import STYLES, save_objects
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import BACKGROUNDS, Item, Scene
from showo_hf.commands.errors import UsageError


TWO = Scene((Item("dog", "blue", 0, 3), Item("fox", None, 7, 3)), "flat", "night")
SWAPPED = Scene((Item("dog", "blue", 7, 3), Item("fox", None, 0, 3)), "flat", "night")
APPLE = Scene((Item("apple", None, 4, 4),), "flat")
CORNER = Scene((Item("dog", None, 7, 0),), "noto", "grass")


def with_item(scene, at, **fields):
    items = list(scene.items)
    items[at] = dataclasses.replace(items[at], **fields)
    return dataclasses.replace(scene, items=tuple(items))


def pixels_of(scenes, objects):
    return to_pixel_values(np.stack([draw(scene, objects) for scene in scenes]))


# The judge


def test_a_perfect_judge_finds_what_is_there_and_has_no_loss(objects):
    maker = SceneMaker(objects, random.Random(0))
    scenes = [maker.scene("any") for _ in range(40)]
    model = Perfect(scenes)
    for scene, one in zip(scenes, look(model, pixels_of(scenes, objects)), strict=True):
        assert sorted(one.things, key=repr) == sorted(exactly(scene).things, key=repr)
        assert one.background == scene.background
    assert detector_loss(model(None), scenes) < 1e-3


def test_what_is_half_made_is_in_the_image_but_is_no_thing(objects):
    for certainty, clear in ((5.5, True), (4.5, False)):  # probabilities 0.65 and 0.40 among 134 classes
        found = detect(Perfect([TWO], certainty), torch.zeros(1, 3, 96, 96))[0]
        assert [item.thing for item, _ in found] == (["dog", "fox"] if clear else [UNCLEAR] * 2)
    unclear = Seen(((Item(UNCLEAR, "red", 3, 3), "flat"), *exactly(APPLE).things), "white")
    assert faults(described(APPLE), unclear) == {"things"}


def test_targets_are_where_the_middles_are():
    cow = Scene((Item("cow", None, 2, 1),), "noto")
    sizes, items = targets([TWO, cow])
    assert sizes.shape == (2, 12, 12) and sizes.sum() == 3
    assert middle(cow.items[0]) == (3, 4) and sizes[1, 3, 4] == 1
    assert items[0].tolist() == [0, 5, 2, NAMES.index("dog"), COLOURS.index("blue"), STYLES.index("flat")]


def test_the_judge_learns(objects):
    torch.manual_seed(0)
    model, scenes = Detector(width=16, depth=1), [TWO, SWAPPED]
    pixels = pixels_of(scenes, objects)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        loss = detector_loss(model(pixels), scenes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [sorted(one.things, key=repr) for one in look(model.eval(), pixels)] == [
        sorted(exactly(scene).things, key=repr) for scene in scenes
    ]


def test_a_judge_depends_on_its_steps_alone_and_says_how_far_it_is(objects, monkeypatch, capsys):
    monkeypatch.setattr(world_detector, "_REPORTED_EVERY", 1)
    one, same, other = (train_detector(objects, steps, batch_size=2).state_dict() for steps in (2, 2, 3))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    said = capsys.readouterr()
    assert "judge: step 2 of 3, loss " in said.err and "0 minutes left" in said.err and not said.out


def test_a_judge_of_other_cut_outs_or_steps_is_refused(objects, tmp_path):
    (tmp_path / "objects").mkdir()
    save_objects(objects, tmp_path / "objects")
    options = argparse.Namespace(objects=str(tmp_path / "objects"), detector_steps=1)
    file = trained_file(tmp_path / "judge.safetensors", objects, options)
    written = file.read_bytes()
    assert trained_file(file, objects, options) == file and file.read_bytes() == written
    message = "`--detector` must be a judge with {}, but '.*judge.safetensors' has {}. Remove the file"
    with pytest.raises(UsageError, match=message.format("steps 2", "steps 1")):
        trained_file(file, objects, argparse.Namespace(objects=options.objects, detector_steps=2))
    with open(tmp_path / "objects" / "cutouts.json", "a") as cutouts:
        cutouts.write("\n")
    with pytest.raises(UsageError, match=message.format(*["objects [0-9a-f]{16}"] * 2)):
        trained_file(file, objects, options)
    save_detector(load_detector(file), file, {})
    with pytest.raises(UsageError, match="has objects None"):
        trained_file(file, objects, options)


def test_worsened_images_are_repeatable_and_not_the_same():
    pixels = torch.rand(2, 3, 96, 96) * 2 - 1
    one, other = (worsened(pixels, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, other) and not torch.equal(one, pixels)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_background_is_seen_between_the_things_and_through_noise(objects, background):
    full = Scene(tuple(Item("dog", None, *at) for at in ((0, 0), (7, 0), (0, 7), (7, 7))), "flat", background)
    pixels = pixels_of([full], objects)[0] + 0.1 * torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(0))
    assert background_of(pixels, full.items) == background
    # Things at the edge, partly outside of the grid, and no free cell at all.
    assert (
        background_of(pixels_of([Scene((), "flat", background)], objects)[0], [Item("dog", None, -1, -2)])
        == background
    )
    everywhere = [Item("dog", None, column, row) for column in (0, 4, 8) for row in (0, 4, 8)]
    assert background_of(pixels_of([Scene((), "flat", background)], objects)[0], everywhere) == background


# Right and wrong


@pytest.mark.parametrize(
    "wish, seen, wrong",
    [
        (described(TWO), TWO, set()),
        (described(TWO), SWAPPED, {"sides"}),
        (Wish(TWO), SWAPPED, set()),  # "a blue dog and a fox"
        (Wish(TWO), with_item(TWO, 0, colour=None), {"colours"}),
        (Wish(TWO), with_item(TWO, 1, colour="red"), {"own colours"}),  # the colour has leaked
        (described(APPLE), with_item(APPLE, 0, colour="red"), set()),  # an apple's own colour is red
        (Wish(TWO), with_item(TWO, 1, thing="cat"), {"things"}),
        (Wish(TWO), Scene(TWO.items[:1], "flat", "night"), {"things"}),
        (Wish(TWO), Scene((*TWO.items, Item("fox", None, 3, 7)), "flat", "night"), {"things"}),
        (Wish(TWO), Scene(TWO.items, "3d", "night"), {"style"}),
        (Wish(TWO), Scene(TWO.items, "flat", "sea"), {"background"}),
        (described(APPLE), Scene(APPLE.items, "flat", "pink"), {"background"}),  # none is named: white
        (described(APPLE), with_item(APPLE, 0, column=0), {"place"}),  # none is named: in the middle
        (described(APPLE), with_item(APPLE, 0, column=5, row=3), set()),
        (described(CORNER), with_item(CORNER, 0, column=0), {"place"}),
        (described(CORNER), with_item(CORNER, 0, column=6, row=1), set()),
        (Wish(CORNER), with_item(CORNER, 0, column=0), set()),
    ],
)
def test_every_point_that_the_words_name_counts(wish, seen, wrong):
    assert faults(wish, exactly(seen)) == wrong <= set(POINTS)


def test_both_scores_and_their_parts():
    mixed = Seen(((TWO.items[0], "3d"), (TWO.items[1], "flat")), "night")
    found = scores([Wish(TWO)] * 4, [exactly(TWO), mixed, exactly(with_item(TWO, 1, colour="red")), Seen((), "sea")])
    assert found["right"] == 0.25 and found["as_geneval"] == 0.75
    assert found["style"] == (1 + 0.5 + 1 + 0) / 4 and found["background"] == 0.75
    assert found["wrong_points"]["own colours"] == 0.25 and set(found["wrong_points"]) == set(POINTS)
    assert GENEVAL == {"things", "colours", "sides"}


def test_sides_count_only_if_they_were_said_or_shown():
    three = Scene((Item("dog", None, 3, 0), Item("cat", None, 0, 7), Item("tree", None, 7, 7)), "flat")
    assert described(three).related == {frozenset({"dog", "cat"}), frozenset({"dog", "tree"})}
    assert described(dataclasses.replace(three, items=three.items[::-1])).related, "the same, from the last one"
    beside = Scene((Item("dog", None, 0, 0), Item("cat", None, 7, 0), Item("tree", None, 3, 7)), "flat")
    assert frozenset({"dog", "cat"}) in shown(beside).related
    rest = Scene(beside.items[:2], "flat")
    swapped = Scene((beside.items[0].moved(7, 0), beside.items[1].moved(0, 0)), "flat")
    assert faults(changed(shown(beside), "remove", rest), exactly(swapped)) == {"sides"}
    assert not faults(changed(Wish(beside), "remove", rest), exactly(swapped))
    replaced = with_item(rest, 1, thing="cow")
    assert changed(shown(rest), "replace", replaced).related == {frozenset({"dog", "cow"})}
    assert shown(beside).places_are_known and not Wish(beside).places_are_known
    assert described(APPLE).places_are_known and not Wish(CORNER).places_are_known


def test_what_is_known_of_a_place_ends_with_a_new_arrangement():
    added = Scene((Item("cat", None, 0, 3), Item("dog", None, 7, 3)), "noto", "grass")
    after = changed(described(CORNER), "add", added)
    assert after.related == {frozenset({"dog", "cat"})} and not after.placed
    assert not changed(after, "remove", Scene(added.items[1:], "noto", "grass")).placed
    assert changed(shown(added), "remove", Scene(added.items[1:], "noto", "grass")).placed
    assert not changed(shown(CORNER), "add_another", added).related


def test_the_standard_error_counts_clusters():
    right = [True, True, False, True, False, False, True, True]
    alone = standard_error(right, range(8))
    assert alone == pytest.approx((5 / 8 * 3 / 8 / 7) ** 0.5)
    assert standard_error([one for one in right for _ in range(5)], [at for at in range(8) for _ in range(5)]) == (
        pytest.approx(alone)
    ), "the same answer five times tells no more"
    assert standard_error(right, [0] * 8) is None
