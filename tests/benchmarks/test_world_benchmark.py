"""The world's benchmark: when an image is right, what the judge finds, the baselines, and parts that resume."""

import dataclasses
import json
import random

import pytest
import tiny
import torch
from benchmarks import world
from benchmarks.world_detector import (
    COLOURS,
    HEADS,
    NAMES,
    SIZES,
    Detector,
    detect,
    detector_loss,
    middle,
    targets,
    worsened,
)
from benchmarks.world_inpainting import draw_replacements, measured
from benchmarks.world_prompts import (
    KINDS,
    NearestByWords,
    Prompt,
    draw_prompts,
    exactly,
    in_style,
    is_right,
    prompt_text,
)
from benchmarks.world_understanding import Baselines, draw_questions, judged, normal, script, understanding
from PIL import Image
from torch import nn
from world_objects import drawn_objects

from recipes.byte_pairs import train_text_tokenizer
from recipes.fresh_model import fresh_pipeline
from recipes.image_tokens import to_pixel_values
from recipes.world.captions import caption
from recipes.world.conversations import Turn
from recipes.world.drawing import draw
from recipes.world.objects import STYLES, save_objects
from recipes.world.questions import KINDS_OF_QUESTION
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import Item, Scene
from recipes.world.words import THINGS


TWO = Scene((Item("dog", "blue", 0, 3), Item("fox", None, 7, 3)), "3d", "night")
SWAPPED = Scene((Item("dog", "blue", 7, 3), Item("fox", None, 0, 3)), "3d", "night")


@pytest.fixture(scope="module")
def objects():
    return drawn_objects()


class Perfect(nn.Module):
    """Logits that are certain of the given scenes."""

    def __init__(self, scenes):
        super().__init__()
        self.scenes = scenes

    def forward(self, pixel_values):
        logits = {name: torch.zeros(len(self.scenes), classes, 12, 12) for name, classes in HEADS.items()}
        sizes, items = targets(self.scenes)
        logits["size"].scatter_(1, sizes[:, None], 20.0)
        for number, row, column, *classes in items.tolist():
            for name, one in zip(("thing", "colour", "style"), classes, strict=True):
                logits[name][number, one, row, column] = 20.0
        return logits


# The judge


def test_a_perfect_judge_finds_what_is_there_and_has_no_loss(objects):
    maker = SceneMaker(objects, random.Random(0))
    scenes = [maker.scene("any") for _ in range(40)]
    model = Perfect(scenes)
    found = detect(model, torch.zeros(40, 3, 96, 96), batch_size=40)
    for scene, one in zip(scenes, found, strict=True):
        assert sorted(one, key=repr) == sorted(exactly(scene), key=repr)
    assert detector_loss(model(None), scenes) < 1e-3


def test_targets_are_where_the_middles_are():
    large = Scene((Item("cow", None, 2, 1, large=True),), "noto")
    sizes, items = targets([TWO, large])
    assert sizes.shape == (2, 12, 12) and sizes.count_nonzero() == 3
    assert middle(large.items[0]) == (5, 6) and sizes[1, 5, 6] == SIZES.index(8)
    assert items[0].tolist() == [0, 5, 2, NAMES.index("dog"), COLOURS.index("blue"), STYLES.index("3d")]


def test_the_judge_learns(objects):
    torch.manual_seed(0)
    model, scenes = Detector(width=16, depth=1), [TWO, SWAPPED]
    pixels = torch.cat([to_pixel_values(draw(scene, objects)[None]) for scene in scenes])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        loss = detector_loss(model(pixels), scenes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [sorted(one, key=repr) for one in detect(model.eval(), pixels)] == [
        sorted(exactly(scene), key=repr) for scene in scenes
    ]


def test_worsened_images_are_repeatable_and_not_the_same():
    pixels = torch.rand(2, 3, 96, 96) * 2 - 1
    one, other = (worsened(pixels, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, other) and not torch.equal(one, pixels)


# Prompts


def changed(scene, at, **fields):
    items = list(scene.items)
    items[at] = dataclasses.replace(items[at], **fields)
    return dataclasses.replace(scene, items=tuple(items))


@pytest.mark.parametrize(
    "kind, found, right",
    [
        ("position", TWO, True),
        ("position", SWAPPED, False),
        ("binding", SWAPPED, True),
        ("binding", changed(TWO, 0, colour=None), False),
        ("binding", changed(TWO, 1, colour="red"), True),  # the prompt names no colour of the fox
        ("two_objects", changed(TWO, 1, thing="cat"), False),
        ("two_objects", Scene(TWO.items[:1], "3d"), False),
        ("two_objects", Scene((*TWO.items, Item("fox", None, 3, 7)), "3d"), False),
        ("two_objects", Scene(TWO.items, "flat"), True),
        ("single", Scene(TWO.items, "flat"), False),
    ],
)
def test_right_images(kind, found, right):
    assert is_right(Prompt(kind, TWO, ""), exactly(found)) == right


def test_the_share_of_the_style():
    mixed = [(TWO.items[0], "3d"), (TWO.items[1], "flat")]
    assert in_style(Prompt("single", TWO, ""), mixed) == 0.5
    assert in_style(Prompt("single", TWO, ""), []) == 0


def test_prompts_name_what_their_kind_is_about():
    assert prompt_text(TWO, "position") == "a blue dog to the left of a fox at night, 3d style"
    assert prompt_text(TWO, "binding") == "a blue dog and a fox at night, 3d style"
    assert prompt_text(TWO, "binding", reordered=True) == "3d style: a fox and a blue dog at night"


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_different_and_of_their_split(objects, kind):
    prompts = draw_prompts(objects, "validation", kind, 12)
    assert len({prompt.text for prompt in prompts}) == 12
    assert {prompt.scene.split for prompt in prompts} == {"validation"}
    assert prompts == draw_prompts(objects, "validation", kind, 12)
    assert {prompt.scene.split for prompt in draw_prompts(objects, "train", kind, 5)} == {"train"}


def test_the_nearest_scene_shares_the_most_words(objects):
    nearest = NearestByWords(objects, 600)
    for words, scene in nearest.known[:10]:
        assert nearest.answer(" ".join(words)).counts == scene.counts


# Understanding


def test_answers_are_compared_without_case_and_full_stop():
    assert normal(" It is  Blue.") == "it is blue" != normal("it is red.")


def test_the_baselines_know_training_questions(objects):
    baselines = Baselines(objects, 15)
    scene, question = baselines.known["describe"][3]
    assert baselines.nearest("describe", scene, question) == question.answer
    assert baselines.blind("is_there") in {question.answer for _, question in baselines.known["is_there"]}
    asked = draw_questions(objects, "validation", "what", 6)
    right = [question.answer.upper() for _, question in asked]
    result = understanding(lambda images, texts: right, objects, "validation", "what", 6, baselines)
    assert result["model"] == 1.0 and result["wrong"] == [] and result["questions"] == 6
    result = understanding(lambda images, texts: ["?"] * 6, objects, "validation", "what", 6, baselines)
    assert result["model"] == 0.0 and len(result["wrong"]) == 6


def test_turns_are_judged_by_words_or_by_the_image(objects):
    image = Image.fromarray(draw(TWO, objects))
    made = Turn("draw", "draw it", "here is it:", made=(TWO,))
    answer = [{"type": "text", "text": "here:"}, {"type": "image", "image": image}]
    assert judged(made, answer, Perfect([TWO])) and not judged(made, answer, Perfect([SWAPPED]))
    assert not judged(made, answer[:1], Perfect([TWO]))
    two = Turn("draw", "draw it, then the other way round", "here is it:", made=(TWO, SWAPPED))
    assert judged(two, [*answer, *answer], Perfect([TWO, SWAPPED]))
    assert not judged(two, [*answer, *answer], Perfect([TWO, TWO])) and not judged(two, answer, Perfect([TWO]))
    asked = Turn("ask", "what?", "it is blue.")
    assert judged(asked, [{"type": "text", "text": "It is blue"}], None)
    assert not judged(asked, [{"type": "text", "text": "it is red."}], None)
    assert not judged(asked, [{"type": "text", "text": "it is blue."}, answer[1]], None)


def test_scripts_begin_with_an_unseen_combination(objects):
    for number in range(5):
        turns = script(objects, "validation", number)
        assert turns == script(objects, "validation", number) and len(turns) in (6, 7)
        scenes = [scene for turn in turns for scene in turn.scenes]
        assert scenes[0].split == "validation"
        assert {scene.split for scene in scenes} <= {"train", "validation"}


# The command


@pytest.fixture(scope="module")
def folder(objects, tmp_path_factory):
    """An untrained model whose images have 12 x 12 tokens."""
    root = tmp_path_factory.mktemp("world")
    (root / "objects").mkdir()
    save_objects(objects, root / "objects")
    maker = SceneMaker(objects, random.Random(0))
    texts = [caption(maker.scene(), maker.rng) for _ in range(300)]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    image_tokenizer = tiny.lfq(stages=4, sample_size=96)
    text_tokenizer = train_text_tokenizer(texts, 400, lower_case=True)
    fresh_pipeline(image_tokenizer, text_tokenizer, num_key_value_heads=2, **sizes).save_pretrained(root / "model")
    return root


@pytest.mark.parametrize("split", ["validation", "train"])
def test_replacements_change_one_thing_of_a_trained_scene(objects, split):
    replacements = draw_replacements(objects, split, 20)
    assert replacements == draw_replacements(objects, split, 20)
    for one in replacements:
        assert (
            one.before.split == "train" and one.after.split == split and one.before.background == one.after.background
        )
        kept, gone = one.before.items[1 - one.changed], one.before.items[one.changed]
        assert kept == one.after.items[1 - one.changed]
        new = one.after.items[one.changed]
        assert new.thing not in (kept.thing, gone.thing) and (new.row, new.column) == (gone.row, gone.column)
        assert new.thing in one.text or any(noun.singular in one.text for noun in THINGS[new.thing].nouns)
        # Only the marked cells differ between the two images.
        differs = (draw(one.before, objects) != draw(one.after, objects)).any(-1)
        assert differs.any() and not (torch.from_numpy(differs) & (one.mask() == 0)).any()


def test_painting_over_is_right_if_only_the_marked_thing_changes(objects):
    replacements = draw_replacements(objects, "train", 5)
    answers = {
        "after": ([exactly(one.after) for one in replacements], (1, 1, 1)),
        "before": ([exactly(one.before) for one in replacements], (0, 1, 0)),
        "only new": ([exactly(one.after)[one.changed : one.changed + 1] for one in replacements], (1, 0, 0)),
        "one more": ([[*exactly(one.after), exactly(one.before)[one.changed]] for one in replacements], (0, 0, 0)),
        "nothing": ([[] for _ in replacements], (0, 0, 0)),
    }
    for found, expected in answers.values():
        shares = measured(replacements, lambda asked: torch.zeros(len(asked)), lambda images, found=found: found)
        assert tuple(shares.values()) == expected
    moved = [
        [(item.moved(item.column, item.row + 2), style) for item, style in exactly(one.after)] for one in replacements
    ]
    assert measured(replacements, lambda asked: None, lambda images: moved)["right"] == 0


@pytest.mark.slow
def test_all_parts_run_and_resume(folder, capsys):
    folders = {"--model": "model", "--objects": "objects", "--output": "out"}
    arguments = [word for option, name in folders.items() for word in (option, str(folder / name))]
    arguments += "--count 2 --conversations 1 --steps 1 --detector-seconds 1 --known-scenes 300".split()
    world.main(arguments)
    first = capsys.readouterr()
    files = {file: file.stat().st_mtime_ns for file in (folder / "out").rglob("*.json")}
    assert len(files) == 6 + 12 + 3 + 2 + len(KINDS_OF_QUESTION) + 1
    for kind in KINDS:
        stored = json.loads((folder / "out" / f"images-validation-{kind}.json").read_text())
        assert 0 <= stored["result"]["right"] <= 1 and stored["result"]["detail"] > 0
        assert stored["settings"]["split"] == "validation" and stored["settings"]["steps"] == 1
    assert "| binding |" in first.out and "blind guess" in first.out and "| all |" in first.out
    world.main(arguments)
    again = capsys.readouterr()
    assert "done" in first.err and "done" not in again.err
    tables = [[line for line in out.splitlines() if line.startswith("|")] for out in (first.out, again.out)]
    assert tables[0] == tables[1]
    assert {file: file.stat().st_mtime_ns for file in files} == files
    world.main([*arguments, "--parts", "images", "--count", "1"])
    assert "images-validation-single: done" in capsys.readouterr().err, "other settings, another result"


def test_the_judge_alone_needs_no_model(folder, capsys):
    folders = ["--objects", str(folder / "objects"), "--output", str(folder / "judge")]
    common = [*folders, "--count", "2", "--known-scenes", "300"]
    world.main([*common, "--parts", "judge", "--detector-seconds", "1"])
    assert "| single |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        world.main([*common, "--parts", "images"])
    assert "--model is needed" in capsys.readouterr().err
