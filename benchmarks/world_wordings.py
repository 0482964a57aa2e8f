"""
Wordings that no training text has, for the scripted conversations of benchmarks.world.

A test compares them with every text in recipes/world.
"""

import random

from recipes.world import questions
from recipes.world.conversations import Turn, small_talk
from recipes.world.more_wordings import Reworded
from recipes.world.phrases import RELATIONS, bare, one_of, style_word
from recipes.world.scenes import SCENERY, Scene, relation
from recipes.world.words import THINGS, article


#: Other wordings of a canonical prompt. The first is the prompt itself.
WORDINGS = {
    "canonical": "{}",
    "polite": "would you kindly sketch {} for me",
    "very polite": "good day, might i ask you for {}, if it is no trouble",
}
DRAW = (WORDINGS["polite"], WORDINGS["very polite"], "i was hoping for {}", "do me a favour and sketch {}")
DRAW_TWO = (
    "would you kindly sketch {}, and afterwards {}",
    "i need two sketches: one of {}, the other of {}",
)
#: By training wordings: others with the same placeholders.
QUESTIONS = {
    questions.WHAT: ("what have we got here?", "tell me which things stand in this image."),
    questions.WHAT_IS_THIS: ("could you tell me what that is?", "what would you call that?"),
    questions.DESCRIBE: ("how would you describe this scene?", "say in words what the image shows."),
    questions.HOW_MANY: ("how many {many} can be counted?", "tell me the number of {many}."),
    questions.HOW_MANY_ALL: ("how many things can be counted in all?", "tell me the number of all things."),
    questions.WHICH_COLOUR: ("tell me the colour of the {one}.", "in which colour is the {one} painted?"),
    questions.WHICH_COLOUR_MANY: ("tell me the colour of the {many}.", "in which colour are the {many} painted?"),
    questions.MAIN_COLOUR: ("tell me its colour.", "which colour was it given?"),
    questions.WHERE: ("in which place is the {one}?", "tell me where the {one} stands."),
    questions.WHAT_IS_BESIDE: ("tell me what is {phrase} the {one}.", "what can be seen {phrase} the {one}?"),
    questions.IS_THERE: ("does the picture show {a_one}?", "can {a_one} be seen here?"),
    questions.ARE_THERE: ("does the picture show {some}?", "can {some} be seen here?"),
    questions.IS_COLOUR: ("is {colour} the colour of the {one}?", "would you call the {one} {colour}?"),
    questions.IS_RELATED: (
        "can the {one} be seen {phrase} the {other}?",
        "would you say that the {one} is {phrase} the {other}?",
    ),
    questions.WHICH_KIND: ("to which kind does it belong?", "tell me which kind of thing that is."),
    questions.WHICH_KIND_MANY: ("to which kind do they belong?", "tell me which kind of things those are."),
    questions.IS_KIND: ("would you call it {kind}?", "could one say that it is {kind}?"),
    questions.ARE_KIND: ("would you call them {kind}?", "could one say that they are {kind}?"),
    questions.BACKGROUND: ("what can be seen behind it?", "tell me about the background."),
    questions.STYLE: ("tell me the style of the drawing.", "which way of drawing is that?"),
    questions.ODD: ("which of them stands out?", "which thing should not be with the others?"),
}
#: By kind of change; `{background}` stands for a plain colour.
CHANGES = {
    "recolour": (
        "let the {one} become {colour}",
        "give the {one} {a_colour} colour",
        "could the {one} turn {colour}?",
    ),
    "add": ("i miss {a_new} {side} it", "find a place for {a_new} {side} it"),
    "add_another": ("there should be one {one} more", "raise the number of {many} by one"),
    "remove": ("get rid of the {one}", "i do not need the {one} any more"),
    "replace": ("i would rather have {a_new} than the {one}", "let {a_new} take the place of the {one}"),
    "swap": ("let them change places", "exchange their places"),
    "background": ("give it {a_background} background", "let the background become {background}"),
    "style": ("could this be done in {style} style?", "let the style be {style}"),
}
SCENERY_CHANGES = {
    "grass": ("give it some grass to stand on", "let it stand in a meadow"),
    "sea": ("give it a sea to float on", "let it float on the water"),
    "night": ("give it a night sky", "let the night come"),
}
#: By one training wording of each kind of small talk.
TALK = {
    "hello": ("hello there, my friend", "a good day to you"),
    "what can you do?": ("tell me your abilities", "which jobs can i give you?"),
    "who are you?": ("may i ask who i am talking to?", "tell me who you are"),
    "which styles do you know?": (
        "tell me all the styles that you can use",
        "which ways of drawing have you learned?",
    ),
    "which colours do you know?": ("tell me all the colours that you can use", "which colours have you learned?"),
    "thank you": ("many thanks to you", "that was kind of you"),
    "well done": ("that is fine work", "what a fine picture"),
    "goodbye": ("farewell", "that is all for today"),
    "how are you?": ("are you feeling well?", "is everything fine with you?"),
    "what can you draw?": ("tell me some things that you can draw", "which things have you learned?"),
}


def reworded(seed: int | str) -> Reworded:
    """Draws as `random.Random(seed)` does; but where the training wordings of a question are offered, one of `QUESTIONS`."""
    return Reworded(seed, QUESTIONS)


def talk(rng: random.Random, *kinds: str) -> Turn:
    """
    Small talk: what the user says in other words, and the answer of training.

    Args:
        rng: draws the turn and its wording.
        kinds: keys of `recipes.world.conversations.TALK`, of which one is drawn; any of them by default.
    """
    while True:
        turn = small_talk(rng, *kinds)
        if turn.text in TALK:
            return Turn(turn.kind, rng.choice(TALK[turn.text]), turn.answer)


def change_text(kind: str, before: Scene, after: Scene, rng: random.Random) -> str:
    """
    The words that ask for a change.

    Args:
        kind: a key of `CHANGES`.
        before: the scene before it.
        after: the scene after it.
        rng: draws the wording.
    """
    words: dict[str, str] = {}
    gone = [thing for thing in before.counts if thing not in after.counts]
    new = [thing for thing in after.counts if thing not in before.counts]
    if kind == "recolour":
        item = next(item for item in after.items if item not in before.items)
        words = {
            "one": _name(item.thing, after),
            "colour": item.colour,
            "a_colour": f"{article(item.colour)} {item.colour}",
        }
    elif kind == "add":
        side = relation(after.item(new[0]), after.item(next(iter(before.counts))))
        words = {"a_new": one_of(new[0]), "side": RELATIONS[side][0]}
    elif kind == "add_another":
        name = THINGS[after.items[0].thing].name
        words = {"one": name.singular, "many": name.plural or name.singular}
    elif kind == "remove":
        words = {"one": _name(gone[0], before)}
    elif kind == "replace":
        words = {"one": bare(gone[0]), "a_new": one_of(new[0])}
    elif kind == "background":
        words = {"background": after.background, "a_background": f"a {after.background}"}
    elif kind == "style":
        words = {"style": style_word(after.style)}
    in_scenery = kind == "background" and after.background in SCENERY
    return rng.choice(SCENERY_CHANGES[after.background] if in_scenery else CHANGES[kind]).format(**words)


def _name(thing: str, scene: Scene) -> str:
    noun = THINGS[thing].name
    return noun.plural if scene.counts[thing] > 1 and noun.plural else noun.singular
