"""Changes and conversations: a change does what it says, and turns stand where people say them."""

import random
import re
from collections import Counter

import pytest

from recipes.world.changes import KINDS_OF_CHANGE, change
from recipes.world.conversations import TALK, Talker, drawn_twice, small_talk, to_messages
from recipes.world.scene_maker import SceneMaker
from recipes.world.scenes import Item, Scene


TWO = Scene((Item("dog", "blue", 0, 3), Item("fox", None, 7, 3)), "3d", "night")
APPLE = Scene((Item("apple", None, 0, 7),), "flat")


# Changes


@pytest.mark.parametrize("kind", KINDS_OF_CHANGE)
def test_changes_change_what_they_say_and_nothing_else(objects, kind):
    maker = SceneMaker(objects, random.Random(7))
    made = 0
    for _ in range(150):
        scene = maker.scene()
        changed = change(scene, maker, kind)
        if changed is None:
            continue
        made += 1
        before, after = scene.counts, changed.scene.counts
        assert changed.scene.split == "train" and changed.scene != scene
        assert (changed.scene.style != scene.style) == (kind == "style")
        assert (changed.scene.background != scene.background) == (kind == "background")
        if kind in ("recolour", "swap", "background", "style"):
            assert Counter(before) == Counter(after)
        expected = {"add": 1, "add_another": 1, "replace": 0}
        if kind in expected:
            assert sum(after.values()) == sum(before.values()) + expected[kind]
        if kind == "remove":
            assert len(after) == len(before) - 1 and set(changed.scene.items) < set(scene.items)
        if kind == "swap":
            assert {(item.column, item.row) for item in scene.items} == {
                (i.column, i.row) for i in changed.scene.items
            }
    assert made > 10


def test_an_added_thing_stands_where_it_was_asked(objects):
    maker = SceneMaker(objects, random.Random(8))
    seen = set()
    for _ in range(200):
        scene = maker.scene("train", "single")
        changed = change(scene, maker, "add")
        if changed is None:
            continue
        old = changed.scene.item(scene.items[0].thing)
        new = next(item for item in changed.scene.items if item is not old)
        side = next(
            side for side, words in (("left", "left"), ("right", "right"), ("above", r"above|\btop"),
                                ("below", "below|bottom"))
            if re.search(words, changed.text)
        )  # fmt: skip
        place = {"left": new.column < old.column, "right": new.column > old.column, "above": new.row < old.row,
                 "below": new.row > old.row}  # fmt: skip
        assert place[side], (changed.text, changed.scene)
        seen.add(side)
    assert len(seen) == 4


# Conversations


def test_conversations_have_many_turns_and_few_images(objects):
    talker = Talker(SceneMaker(objects, random.Random(9)))
    kinds: Counter = Counter()
    for _ in range(60):
        turns = talker.conversation(7, images=3)
        assert len(turns) == 7
        assert sum(len(turn.scenes) for turn in turns) <= 3
        kinds.update(turn.kind for turn in turns)
    assert set(kinds) == {"draw", "change", "ask", "talk"} and min(kinds.values()) > 10


def test_small_talk_says_what_the_model_can_do():
    rng = random.Random(10)
    turns = [small_talk(rng) for _ in range(1500)]
    answers = {turn.text: turn.answer for turn in turns}
    assert "draw" in answers["what can you do?"]
    assert {answer for one in TALK.values() for _, answer in one} < set(answers.values())
    assert {small_talk(rng, "goodbye").answer for _ in range(20)} == {"goodbye!"}
    assert not any(turn.scenes for turn in turns)
    assert any(answer.startswith("many things, such as ") for answer in answers.values())


def test_small_talk_stands_where_people_say_it(objects):
    talker = Talker(SceneMaker(objects, random.Random(14)))
    seen: Counter = Counter()
    for _ in range(800):
        turns = talker.conversation(5)
        for at, turn in enumerate(turns):
            if turn.answer.startswith(("hello", "i am fine")):
                seen["greeting"] += 1
                assert at == 0
            elif turn.answer in ("you are welcome.", "i am glad you like it."):
                seen["praise"] += 1
                assert turns[at - 1].made and at > 0
            elif turn.answer == "goodbye!":
                seen["goodbye"] += 1
                assert at == len(turns) - 1
    assert len(seen) == 3 and min(seen.values()) > 15


def test_conversations_may_ask_for_changes_and_talk_more_often(objects):
    kinds = {}
    for options in ({}, {"changes": 0.7, "talk": 0.2}):
        talker = Talker(SceneMaker(objects, random.Random(16)), **options)
        kinds[len(options)] = Counter(turn.kind for _ in range(300) for turn in talker.conversation(4, 3))
    assert kinds[2]["change"] > 1.3 * kinds[0]["change"] and kinds[2]["talk"] > 1.5 * kinds[0]["talk"]


def test_no_question_about_an_image_is_asked_twice(objects):
    talker = Talker(SceneMaker(objects, random.Random(15)))
    for _ in range(300):
        asked: list[str] = []
        for turn in talker.conversation(7):
            asked = [] if turn.scenes else asked
            assert turn.asks not in asked and (turn.asks is not None) == (turn.kind == "ask")
            asked += [turn.asks] if turn.asks else []


def test_two_images_in_one_answer_have_words_of_their_own(objects):
    rng = random.Random(12)
    turns = [drawn_twice(TWO, APPLE, rng) for _ in range(50)]
    assert {turn.answer for turn in turns} == {"here is a blue dog to the left of a fox at night:"}
    assert all("apple" in turn.text and re.search("3d style|fluent 3d", turn.text) for turn in turns)
    (_, answer) = to_messages(turns[:1], {TWO: [[1]], APPLE: [[2]]})
    kinds = [part.get("text", part.get("image_tokens")) for part in answer["content"]]
    assert kinds == [turns[0].answer, [[1]], "and here is an apple in the bottom left corner:", [[2]]]
    talker = Talker(SceneMaker(objects, rng))
    made = [turn for _ in range(120) for turn in talker.conversation(5) if len(turn.made) == 2]
    assert len(made) > 5


def test_messages_hold_images_where_they_belong(objects):
    talker = Talker(SceneMaker(objects, random.Random(11)))
    for _ in range(20):
        turns = talker.conversation(5)
        images = {scene: [[number]] for number, turn in enumerate(turns) for scene in turn.scenes}
        messages = to_messages(turns, images)
        assert [message["role"] for message in messages] == ["user", "assistant"] * 5
        for turn, user, assistant in zip(turns, messages[::2], messages[1::2], strict=True):
            shown = [part["image_tokens"] for part in user["content"] if part["type"] == "image"]
            made = [part["image_tokens"] for part in assistant["content"] if part["type"] == "image"]
            assert shown == ([images[turn.shown]] if turn.shown else [])
            assert made == [images[scene] for scene in turn.made]
