"""The world's benchmark: wordings that training does not have, scripted conversations, and when a turn is right."""

import ast
import dataclasses
import random
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks import world_wordings
from benchmarks.world_judging import Wish, described, shown
from benchmarks.world_scripts import Step, converse, has_room, judged, script, turn_rows
from benchmarks.world_wordings import CHANGES, QUESTIONS, SCENERY_CHANGES, TALK, WORDINGS, change_text, reworded, talk
from perfect_judge import Perfect
from PIL import Image

import recipes.world
from recipes.world import questions
from recipes.world.changes import KINDS_OF_CHANGE
from recipes.world.conversations import small_talk
from recipes.world.drawing import draw
from recipes.world.more_wordings import MORE
from recipes.world.rows import CONVERSATION_IMAGES
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import Item, Scene
from showo_hf import ShowoAnyToAnyPipeline, ShowoT2IPipeline


TWO = Scene((Item("dog", "blue", 0, 3), Item("fox", None, 7, 3)), "flat", "night")


# Wordings


def held_out_texts():
    """All templates of the benchmark, but for the canonical prompt itself."""
    tables = (QUESTIONS, CHANGES, SCENERY_CHANGES, TALK)
    texts = [text for table in tables for texts in table.values() for text in texts]
    return [*texts, *list(WORDINGS.values())[1:], *world_wordings.DRAW, *world_wordings.DRAW_TWO]


def as_template(text):
    return " ".join(re.sub(r"[^{}a-z0-9' ]", " ", re.sub(r"{[^}]*}", "{}", text.lower())).split())


def texts_of(module):
    """All texts in a module, its f-strings with "{}" where something is put in."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)


def test_no_wording_is_among_those_of_training():
    modules = list(Path(recipes.world.__path__[0]).glob("*.py"))
    training = {as_template(text) for module in modules for text in texts_of(module)}
    training |= {as_template(text) for wordings in MORE.values() for text in wordings}
    assert {
        as_template(text) for text in ("draw {}", "make {} {}", "how many {many}?", "replace the {a} with {b}")
    } <= training
    assert not {as_template(text) for text in held_out_texts()} & training


def test_every_wording_of_a_question_has_others_with_the_same_words():
    used = {name: value for name, value in vars(questions).items() if isinstance(value, tuple) and name.isupper()}
    spoken = {value for name, value in used.items() if " " in str(value[0]) and name != "NEXT_TO"}
    assert spoken == set(QUESTIONS)
    for training, others in QUESTIONS.items():
        names = {frozenset(re.findall(r"{(.*?)}", text)) for text in training}
        assert {frozenset(re.findall(r"{(.*?)}", text)) for text in others} <= names


def test_every_kind_of_change_and_talk_has_wordings(objects):
    assert set(CHANGES) == set(KINDS_OF_CHANGE)
    said = {small_talk(random.Random(number)).text for number in range(3000)}
    assert set(TALK) <= said, "the training wording of each is still there"
    turn = talk(reworded(3))
    assert turn.text in {text for texts in TALK.values() for text in texts} and turn.answer
    assert {talk(reworded(number), "praise").text for number in range(40)} == {*TALK["thank you"], *TALK["well done"]}


def test_changes_say_what_they_change(objects):
    rng = random.Random(0)
    seen = set()
    maker = SceneMaker(objects, rng)
    for _ in range(60):
        before = maker.scene()
        for kind, make in KINDS_OF_CHANGE.items():
            made = make(before, maker)
            if made is not None:
                text = change_text(kind, before, made.scene, rng)
                assert "{" not in text and "None" not in text
                seen.add(kind)
                if kind == "recolour":
                    assert next(item for item in made.scene.items if item not in before.items).colour in text
    assert seen == set(KINDS_OF_CHANGE)
    one, night = (Scene((Item("dog", None, 4, 4),), "flat", background) for background in ("white", "night"))
    assert change_text("background", one, night, rng) in SCENERY_CHANGES["night"]
    pair = Scene((Item("cat", None, 0, 3), Item("dog", None, 7, 3)), "flat")
    assert "a cat to the left of it" in change_text("add", one, pair, rng)


# Scripts


def test_scripts_are_unseen_in_words_and_in_combinations(objects):
    patterns = [re.compile(re.sub(r"\\{.*?\\}", ".+", re.escape(text))) for text in held_out_texts()]
    kinds = set()
    for number in range(40):
        steps = script(objects, "validation", number)
        assert steps == script(objects, "validation", number) and len(steps) in (6, 7)
        scenes = [scene for step in steps for scene in step.scenes]
        assert 1 <= len(scenes) <= CONVERSATION_IMAGES and scenes[0].split == "validation"
        assert {scene.split for scene in scenes} <= {"train", "validation"}
        asked: list[str] = []
        for step in steps:
            asked = [] if step.scenes else asked
            if step.kind == "ask":
                assert step.name not in asked, "no kind of question comes twice about an image"
                asked.append(step.name)
            assert any(pattern.fullmatch(step.text) for pattern in patterns), step.text
            kinds.add((step.kind, step.about))
            if step.kind == "draw":
                assert {scene.split for scene in step.scenes} == {"validation"}
                assert step.text.count(" style") >= len(step.scenes), "every style is said"
    assert kinds == {("draw", None), ("change", None), ("ask", "shown"), ("ask", "drawn"), ("talk", None)}
    assert script(objects, "validation", 0, seed=1) != script(objects, "validation", 0)


def test_small_talk_stands_where_training_has_it(objects):
    places = {
        "hello": "first",
        "how are you?": "first",
        "thank you": "after a drawing",
        "well done": "after a drawing",
    }
    place_of = {text: places.get(name) for name, texts in TALK.items() for text in texts}
    place_of |= dict.fromkeys(TALK["goodbye"], "last")
    seen: Counter[str | None] = Counter()
    for number in range(400):
        steps = script(objects, "validation", number)
        for at, step in enumerate(steps):
            if step.kind == "talk":
                place = place_of[step.text]
                seen[place] += 1
                assert place != "first" or at == 0
                assert place != "last" or at == len(steps) - 1
                assert place != "after a drawing" or (at > 0 and steps[at - 1].wishes)
        answers = [step.answer for step in steps if step.kind == "talk"]
        assert len(set(answers)) == len(answers), "nothing is said twice"
    assert set(seen) == {"first", "after a drawing", "last", None} and min(seen.values()) > 5


# Turns


def part(image):
    return {"type": "image", "image": image}


def text(words):
    return {"type": "text", "text": words}


def test_turns_are_judged_by_words_or_by_the_image(objects):
    swapped = Scene((TWO.items[1].moved(0, 3), TWO.items[0].moved(7, 3)), "flat", "night")
    image = part(Image.fromarray(draw(TWO, objects)))
    step = Step("draw", "draw", "draw it", "here is it:", wishes=(described(TWO),))
    answer = [text("here:"), image]

    def right(step, parts, *found):
        return judged(step, parts, Perfect(list(found)), True)["right"]

    assert right(step, answer, TWO) and not right(step, answer, swapped) and not right(step, answer[:1], TWO)
    two = Step("draw", "draw two", "both", "here is it:", wishes=(described(TWO), described(swapped)))
    assert right(two, [*answer, *answer], TWO, swapped)
    assert not right(two, [*answer, *answer], TWO, TWO) and not right(two, answer, TWO)
    asked = Step("ask", "colour", "what?", "it is blue.", about="shown")
    assert right(asked, [text("It is blue")]) and not right(asked, [text("it is red.")])
    assert not right(asked, [text("it is blue."), image])


@pytest.mark.parametrize("fields", [{"style": "3d"}, {"background": "sea"}])
def test_the_old_image_is_no_answer_to_a_change_of_style_or_background(objects, fields):
    before = Scene((Item("dog", None, 0, 3), Item("fox", None, 7, 3)), "flat", "night")
    after = dataclasses.replace(before, **fields)
    step = Step("change", next(iter(fields)), "change it", "", wishes=(Wish(after),))
    old, new = ([part(Image.fromarray(draw(scene, objects)))] for scene in (before, after))
    unchanged = judged(step, old, Perfect([before]), True)
    assert not unchanged["right"] and unchanged["faults"] == list(fields) and unchanged["as_geneval"]
    assert judged(step, new, Perfect([after]), True)["right"]


def test_a_question_about_a_wrong_drawing_is_counted_apart():
    step = Step("ask", "colour", "which?", "it is blue.", about="drawn")
    assert judged(step, [text("it is blue.")], None, True) == {"right": True, "about": "drawn"}
    wrong = judged(step, [text("it is blue.")], None, False)
    assert wrong == {"right": None, "as_in_the_script": True, "about": "wrong drawing"}
    turns = [{"kind": "ask", "name": "colour", **one} for one in (wrong, {"right": True, "about": "drawn"})]
    rows = {name: (count, share) for name, count, share in turn_rows(turns)}
    assert rows["all"] == (1, 1.0) == rows["ask, drawn image"]
    assert rows["asked about a wrong drawing (not in all): as in the script"] == (1, 1.0)


class Talker:
    """Answers a script from its own words and scenes, but draws what `alter` makes of them. Its context is never full."""

    messages, default_grid, context_length = (), (12, 12), 1

    def __init__(self, steps, objects, alter=lambda scene: scene):
        self.steps, self.objects, self.alter, self.judge, self.options = iter(steps), objects, alter, Perfect([]), []

    def start(self):
        return self

    def token_ids(self, messages):
        return []

    def send(self, message, generator, **options):
        step = next(self.steps)
        self.options.append({"seed": generator.initial_seed(), **options})
        assert message["content"][-1]["text"] == step.text
        assert (message["content"][0]["type"] == "image") == (step.image is not None)
        self.judge.scenes = [self.alter(wish.scene) for wish in step.wishes]
        images = [part(Image.fromarray(draw(scene, self.objects))) for scene in self.judge.scenes]
        return SimpleNamespace(content=[text(step.answer), *images])


def test_a_perfect_model_has_all_turns_right(objects):
    turns = []
    for number in range(12):
        steps = script(objects, "validation", number)
        talker = Talker(steps, objects)
        turns += converse(talker, steps, objects, talker.judge, seed=70, guidance_scale=0.0)
        assert talker.options == [{"seed": 70 + at, "guidance_scale": 0.0} for at in range(len(steps))]
    assert all(turn["right"] for turn in turns), [turn for turn in turns if not turn["right"]]
    assert all(share == 1 for _, _, share in turn_rows(turns))


def test_a_model_that_ignores_the_background_fails_and_is_not_asked_about_it(objects):
    for number in range(6):
        steps = script(objects, "validation", number)
        talker = Talker(
            steps,
            objects,
            lambda scene: Scene(scene.items, scene.style, "sea" if scene.background == "night" else "night"),
        )
        turns = converse(talker, steps, objects, talker.judge)
        for step, turn in zip(steps, turns, strict=True):
            if step.wishes:
                assert not turn["right"] and turn["as_geneval"] and turn["faults"] == ["background"]
            elif step.about == "drawn":
                assert turn["right"] is None and turn["as_in_the_script"]
            else:
                assert turn["right"]
    assert shown(TWO).placed


class Drawer(ShowoAnyToAnyPipeline):
    """Draws as many images as it may in each turn, and says nothing."""

    def choose_token(self, logits, processors, params):
        logits = logits.clone()
        logits[self.processor.soi_token_id], logits[self.processor.eot_token_id] = 2e9, 1e9
        return super().choose_token(logits, processors, params)


@pytest.fixture(scope="module")
def drawer(world_folder):
    pipe = Drawer(**ShowoT2IPipeline.from_pretrained(world_folder / "model").components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_conversation_whose_context_is_full_is_wrong_from_there_on(drawer, objects, monkeypatch):
    # Three images of 146 ids leave room for words, but not for a fourth image.
    monkeypatch.setattr(drawer.model.config.text_config, "max_position_embeddings", 550)
    steps = [
        Step("draw", "draw", "draw", "here is it:", wishes=(described(TWO),)),
        Step("ask", "colour", "what is this?", "it is blue.", image=TWO, about="shown"),
        Step("change", "style", "3d", "here is it:", wishes=(described(TWO),)),
        Step("talk", "talk", "hi", "hello!"),
    ]
    turns = converse(drawer, steps, objects, None, max_new_tokens=4, num_inference_steps=1, guidance_scale=1.0)
    assert [turn["faults"] for turn in turns] == [["number of images"], *[["context is full"]] * 3]
    assert [turn["said"] for turn in turns] == [""] * 4 and not any(turn["right"] for turn in turns)
    rows = {name: count for name, count, share in turn_rows(turns) if share == 0}
    assert rows["all"] == 4 and rows["ask, shown image"] == rows["change, as GenEval"] == rows["talk"] == 1


def test_the_context_is_full_where_the_pipeline_says_so(drawer, objects, monkeypatch):
    conversation, asked = drawer.start(), text("what is this?")
    message = {"role": "user", "content": [part(Image.fromarray(draw(TWO, objects))), asked]}
    as_tokens = {"role": "user", "content": [part(torch.zeros(12, 12, dtype=torch.int64)), asked]}
    config, length = drawer.model.config.text_config, len(drawer.token_ids([as_tokens]))
    monkeypatch.setattr(config, "max_position_embeddings", length + 1)
    assert has_room(drawer, conversation, message)
    drawer.check_length([message])
    monkeypatch.setattr(config, "max_position_embeddings", length)
    assert not has_room(drawer, conversation, message)
    with pytest.raises(ValueError, match="must take fewer positions than the model's"):
        conversation.send(message)
