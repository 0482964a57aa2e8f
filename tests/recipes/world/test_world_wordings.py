"""More wordings of requests, questions, changes and small talk: complete, usable, and apart from the benchmark's own."""

import random
import re

import pytest
from benchmarks.world_wordings import CHANGES, QUESTIONS, SCENERY_CHANGES, TALK
from test_world_texts import APPLE, TWO

from recipes.world import captions, changes, conversations
from recipes.world.captions import caption
from recipes.world.change_wordings import change_wordings
from recipes.world.changes import change
from recipes.world.conversations import TALK as TRAINING_TALK
from recipes.world.conversations import small_talk
from recipes.world.more_wordings import MORE, Reworded
from recipes.world.questions import Asker
from recipes.world.request_wordings import request_wordings
from recipes.world.rows import RowMaker
from recipes.world.scene_maker import SceneMaker


def places(text):
    """The placeholders of a wording. Those without names are filled in their order."""
    return sorted(re.findall(r"{(.*?)}", text))


@pytest.mark.parametrize("training", MORE, ids=lambda training: training[0])
def test_more_wordings_have_the_places_of_the_first_ones(training):
    assert {tuple(places(text)) for text in MORE[training]} == {tuple(places(text)) for text in training}
    assert set(training) <= set(MORE[training]) and len(set(MORE[training])) >= 2 * len(training)


def test_all_that_is_said_has_more_wordings():
    said = {wordings for turns in TRAINING_TALK.values() for wordings, _ in turns}
    said |= {captions.REQUESTS, conversations.TWO_REQUESTS, conversations.THINGS_QUESTIONS, *QUESTIONS}
    named = {value for name, value in vars(changes).items() if name.isupper() and isinstance(value, tuple)}
    said |= {value for value in named if any("{" in str(text) or " " in str(text) for text in value)} - {
        changes.BACKGROUNDS
    }
    assert set(MORE) == said | set(changes.IN_SCENERY.values())


MOST = change_wordings()


@pytest.mark.parametrize("training", [one for one in MOST if MOST[one] != MORE[one]], ids=lambda training: training[0])
def test_most_wordings_have_the_places_of_the_first_ones(training):
    assert {tuple(places(text)) for text in MOST[training]} == {tuple(places(text)) for text in training}
    assert set(MORE[training]) <= set(MOST[training]) and len(set(MOST[training])) > 250
    assert all(text == text.lower().strip() and "  " not in text for text in MOST[training])
    assert change_wordings()[training] == MOST[training]


def test_changes_and_small_talk_have_most_wordings():
    talk = {wordings for turns in TRAINING_TALK.values() for wordings, _ in turns} | {conversations.THINGS_QUESTIONS}
    tuples = {value for name, value in vars(changes).items() if name.isupper() and isinstance(value, tuple)}
    kinds = tuples & MORE.keys()
    assert {one for one in MOST if MOST[one] != MORE[one]} == talk | kinds | set(changes.IN_SCENERY.values())
    assert MOST.keys() == MORE.keys()


def plain_words(text):
    """The words of a wording, without its stops. Every placeholder is the same word."""
    return re.sub(r"[^a-z_' ]", "", re.sub(r"{.*?}", "_", text)).split()


#: The benchmark's wordings by the training's for the same.
HELD_OUT = {
    **{getattr(changes, "PLAIN" if kind == "background" else kind.upper()): texts for kind, texts in CHANGES.items()},
    **{changes.IN_SCENERY[background]: texts for background, texts in SCENERY_CHANGES.items()},
    **{next(one for one in MOST if said in one): texts for said, texts in TALK.items()},
}


@pytest.mark.parametrize("training", HELD_OUT, ids=lambda training: training[0])
def test_most_wordings_are_not_those_of_the_benchmark(training):
    """None has one of the benchmark's in it, and those without an address or an end differ from it in two words and more."""
    added = {" ".join(plain_words(text)) for text in MOST[training]}
    added -= {" ".join(plain_words(text)) for text in MORE[training]}
    for words in map(plain_words, HELD_OUT[training]):
        assert not [text for text in added if f" {' '.join(words)} " in f" {text} "]
        same = [text.split() for text in added if len(text.split()) == len(words) > 1]
        close = [one for one in same if sum(a != b for a, b in zip(one, words, strict=True)) < 2]
        assert not close, f"{words} is close to {close}"


def test_requests_hold_one_caption_each():
    made = request_wordings(2000)
    assert made == request_wordings(2000) and len(set(made)) == 2000
    assert all(text.count("{}") == 1 and text == text.lower().strip() for text in made)


def test_texts_come_from_more_wordings(objects):
    rng = Reworded(0, MORE)
    requests = {caption(APPLE, rng, 1.0) for _ in range(200)}
    assert len(requests) > 190, "hardly one wording comes twice"
    questions = {Asker(TWO, rng).where().text for _ in range(300)}
    assert any(text.startswith("tell me where") for text in questions), "a wording that the first parts do not have"
    wishes = {change(TWO, SceneMaker(objects, rng), "remove").text for _ in range(100)}
    assert any("without" in text for text in wishes)
    assert {small_talk(rng, "goodbye").answer for _ in range(50)} == {"goodbye!"}


def test_without_more_wordings_nothing_else_is_drawn():
    plain, reworded = random.Random("a"), Reworded("a", {})
    assert [caption(TWO, plain) for _ in range(100)] == [caption(TWO, reworded) for _ in range(100)]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_checks_is_about_what_is_not_there(objects, share):
    maker = SceneMaker(objects, random.Random(0))
    asked = [Asker(maker.scene(), maker.rng).check(share) for _ in range(800)]
    there = [one for one in asked if one.kind != "is_there"]
    assert sum(one.answer == "there is none." for one in there) / len(there) == pytest.approx(share, abs=0.06)
    is_there = [one.answer == "no." for one in asked if one.kind == "is_there"]
    assert sum(is_there) / len(is_there) == pytest.approx(0.5, abs=0.1)


def test_the_share_of_requests_can_be_chosen(objects):
    maker = RowMaker(SceneMaker(objects, Reworded(0, {captions.REQUESTS: ("asked for: {}",)})), requests=0.8)
    drafts = [maker.t2i() for _ in range(100)]
    texts = [text for scenes, finish in drafts for text in finish(dict.fromkeys(scenes, 0))["text"]]
    assert sum(text.startswith("asked") for text in texts) / len(texts) == pytest.approx(0.8, abs=0.06)
