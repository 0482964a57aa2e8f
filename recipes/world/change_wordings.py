"""
Hundreds of ways to ask for a change, or to talk: "could you perhaps take the {} away? thank you".

Each is a sentence, or something to do after a phrase such as "could you". An address before it and an end after it may be
missing.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.world import changes, conversations
from recipes.world.more_wordings import MORE
from recipes.world.request_wordings import ADDRESSES, ASKS, ENDS


#: By training wordings: what one can ask somebody to do, and sentences that need no such phrase.
_SAYINGS: dict[tuple[Any, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {
    changes.RECOLOUR: (
        ("make {} {}", "paint {} {}", "colour {} {}", "color {} {}", "turn {} {}", "dye {} {}", "have {} painted {}",
         "change {} to {}", "change the colour of {} to {}", "set the colour of {} to {}", "recolour {} in {}",
         "repaint {} in {}", "paint {} all {}", "fill {} with {}", "cover {} in {}", "draw {} in {}",
         "switch {} to {}", "use for {} the colour {}", "make {} look {}", "make {} completely {}"),
        ("{} has to be {}", "{} would be nicer in {}", "{} would look better in {}", "i like {} better in {}",
         "i want {} in {}", "i prefer {} in {}", "i see {} in {}", "from now on {} is {}", "{} is {} now",
         "{} ought to be {}", "{} in {} now", "for {} i choose {}", "for {} take {}", "what if {} were {}",
         "what if {} was {}", "suppose {} is {}", "why is {} not {}", "{} in the colour {}", "i wish {} were {}",
         "my wish for {} is {}", "it would be good if {} was {}", "{} looks good in {}", "imagine {} in {}"),
    ),
    changes.ADD: (
        ("add {} {}", "put {} {}", "place {} {}", "set {} {}", "draw {} {}", "paint {} {}", "insert {} {}",
         "include {} {}", "append {} {}", "show {} {} too", "have {} {} as well", "bring {} {}", "let {} appear {}",
         "make {} appear {}", "also put {} {}", "also draw {} {}", "squeeze {} {}", "leave all as it is and add {} {}",
         "get {} {}", "make room for {} {}", "give me {} {}", "let me see {} {}", "add to it {} {}",
         "complete it with {} {}"),
        ("there must be {} {}", "there should be {} {}", "it would be nicer with {} {}",
         "it would be better with {} {}", "i wish there was {} {}", "i still want {} {}", "i would also like {} {}",
         "i also need {} {}", "it lacks {} {}", "{} has to be {}", "{} belongs {}", "{} should be {}",
         "{} would be good {}", "a new thing: {} {}", "together with {} {}", "plus {} {}", "but with {} {}",
         "but now with {} {}", "next, {} {}", "what if there was {} {}", "imagine {} {}", "the picture needs {} {}",
         "the picture should have {} {}"),
    ),
    changes.ADD_ANOTHER: (
        ("add another {}", "add one more {}", "add one {} more", "add an extra {}", "draw another {}",
         "put in one more {}", "give me one more {}", "show one more {}", "make one more {}", "include another {}",
         "insert another {}", "bring one more {}", "place another {} there", "let another {} appear", "add a new {}",
         "add yet another {}", "increase the number: one more {}", "let me see another {}", "make it one more {}",
         "join another {} to it", "get another {}"),
        ("i would love another {}", "we need another {}", "we need one more {}", "one {} is missing",
         "one more {} is needed", "there must be another {}", "there must be one more {}",
         "it should have one more {}", "with an additional {}", "with one more {}", "plus one {}", "plus another {}",
         "yet another {}", "not enough: one more {}", "an extra {}", "i still want another {}",
         "what if there was one more {}", "imagine one more {}"),
    ),
    changes.REMOVE: (
        ("remove the {}", "delete the {}", "erase the {}", "take away the {}", "take the {} away", "take the {} out",
         "take out the {}", "leave the {} out", "leave out the {}", "leave the {} away", "cut the {}",
         "cut out the {}", "cut the {} out", "drop the {}", "wipe out the {}", "rub out the {}", "throw away the {}",
         "throw the {} away", "clear away the {}", "clear the {}", "put the {} away", "send the {} away",
         "lose the {}", "eliminate the {}", "make the {} vanish", "make the {} go away", "make the {} disappear",
         "let the {} vanish", "let the {} go", "do without the {}", "draw it without the {}", "show it without the {}",
         "keep everything but the {}", "keep all except the {}", "undo the {}", "strike the {}", "paint over the {}",
         "skip the {}", "omit the {}"),
        ("no {}", "no more {}", "the {} is not needed", "the {} has to go", "the {} needs to go", "the {} is too much",
         "the {} is in the way", "the {} is wrong here", "the {} does not belong here", "i don't need the {}",
         "i am tired of the {}", "i have seen enough of the {}", "i do not like the {} here", "we do not need the {}",
         "nobody needs the {}", "nobody wants the {}", "everything but the {}", "all but the {}", "all except the {}",
         "minus the {}", "it should be without the {}", "it looks better without the {}", "there should be no {}",
         "goodbye to the {}", "off with the {}", "out with the {}", "i would like it without the {}",
         "why is the {} there?", "i want it without the {}", "what if there was no {}", "only the rest, not the {}"),
    ),
    changes.REPLACE: (
        ("replace the {old} with {new}", "replace the {old} by {new}", "change the {old} to {new}",
         "change the {old} into {new}", "change the {old} for {new}", "turn the {old} into {new}",
         "transform the {old} into {new}", "convert the {old} into {new}", "make the {old} into {new}",
         "make {new} of the {old}", "exchange the {old} for {new}", "exchange the {old} with {new}",
         "swap the {old} for {new}", "swap the {old} with {new}", "switch the {old} to {new}",
         "trade the {old} for {new}", "substitute the {old} with {new}", "put {new} where the {old} was",
         "put {new} there, not the {old}", "draw {new} where the {old} stands", "draw {new} and not the {old}",
         "take {new}, not the {old}", "take out the {old} and put in {new}", "delete the {old} and add {new}",
         "use {new} in place of the {old}", "show {new} in place of the {old}", "remove the {old}, add {new}",
         "paint {new} over the {old}", "give me {new} for the {old}"),
        ("{new} in place of the {old}", "{new} for the {old}", "{new} and no {old}", "{new} where the {old} is",
         "the {old} must be {new}", "the {old} ought to be {new}", "the {old} is {new} now",
         "the {old} turns into {new}", "i prefer {new} to the {old}", "i like {new} better than the {old}",
         "i wanted {new}, not the {old}", "not the {old}, i want {new}", "no {old} but {new}",
         "where the {old} is there should be {new}", "what if the {old} was {new}", "imagine {new} and not the {old}",
         "out with the {old}, in with {new}", "we need {new} instead of the {old}", "why the {old}? take {new}"),
    ),
    changes.SWAP: (
        ("swap them", "swap both", "swap the two", "swap the things", "swap the two things", "swap the sides",
         "swap positions", "swap their positions", "swap sides", "swap them around", "switch them", "switch the two",
         "switch them around", "switch sides", "switch the sides", "switch positions", "exchange them",
         "exchange the two", "exchange the things", "exchange both", "exchange the positions", "change them round",
         "change the order", "change their order", "change sides", "change the places of the two", "trade places",
         "interchange them", "interchange the two", "reverse them", "reverse the two", "reverse the order",
         "reverse the sides", "flip them", "flip the two", "flip the order", "turn them around", "turn it around",
         "put one where the other is", "put each of them where the other is",
         "put the first in the place of the second", "move each to the other side", "move them to the other side",
         "make them trade places", "make them switch sides", "make them swap positions", "let them swap",
         "let the two switch sides", "let each take the place of the other"),
        ("the other order", "in the other order", "in the opposite order", "the opposite order", "in reverse",
         "in reverse order", "the opposite way", "the other way", "other way round", "other way around",
         "the wrong way round", "it should be the other way round", "they should be the other way around",
         "they should stand the other way round", "they are in the wrong order", "they stand on the wrong sides",
         "each on the other side", "with the sides swapped", "with their places swapped", "with both swapped",
         "the two swapped", "the same, but swapped", "the same in the other order", "i want them swapped",
         "i want them in the other order", "i meant the other way round", "i would like them swapped",
         "what if they were swapped", "one in the place of the other"),
    ),
    changes.PLAIN: (
        ("make the background {}", "paint the background {}", "colour the background {}", "turn the background {}",
         "change the background to {}", "set the background to {}", "put it on a {} background", "put it on {}",
         "put {} behind it", "draw it on {}", "draw it on a {} background", "show it on {}", "use a {} background",
         "use {} as the background", "use {} for the background", "take a {} background",
         "fill the background with {}", "place it on {}", "place all of it on a {} background", "have a {} background",
         "move it to a {} background", "make everything behind it {}", "choose {} for the background",
         "give me a {} background"),
        ("the background must be {}", "the background is {} now", "the background in {} please", "{} behind it",
         "{} as the background", "{} for the background", "a {} background would be nice", "a {} background is better",
         "i prefer a {} background", "i prefer it on {}", "i want {} behind it", "i like it better on {}",
         "it would be nicer on {}", "it looks better on {}", "behind it should be {}", "everything on {}", "but on {}",
         "but on a {} background", "what if the background was {}", "imagine a {} background",
         "all the same, but on {}", "the same, but the background is {}", "on {} this time"),
    ),
    changes.IN_SCENERY["grass"]: (
        ("put it on grass", "put it in the grass", "put it on the lawn", "put it in a field", "place it on grass",
         "place it in a meadow", "draw it on grass", "draw it in the grass", "draw it on a lawn",
         "show it on the grass", "show it in a meadow", "move it to the grass", "move it onto the grass",
         "set it in a meadow", "bring it to a meadow", "take it to a meadow", "make it stand on the grass",
         "put grass under it", "put grass behind it", "add grass", "use grass as the background",
         "make the background a meadow", "make the background green grass", "change the background to a meadow",
         "change the scenery to grass", "let there be grass"),
        ("on a lawn", "on the lawn", "in the grass", "in a field", "on a meadow", "in the meadow",
         "outside on the grass", "it belongs on the grass", "it should stand on the grass",
         "it should stand in a meadow", "i want grass behind it", "i prefer it on grass", "i prefer a meadow",
         "the background should be grass", "the background is grass now", "but on grass", "but in a meadow",
         "grass as the background", "a meadow as the background", "what if it was on the grass",
         "imagine it on the grass", "the same, but in a meadow", "with green grass", "with grass under it"),
    ),
    changes.IN_SCENERY["sea"]: (
        ("put it on the sea", "put it in the water", "put it at the sea", "put it by the water", "place it at sea",
         "place it by the sea", "draw it by the sea", "draw it at the seaside", "show it at sea",
         "show it on the water", "move it to the water", "move it onto the water", "set it on the sea",
         "bring it to the sea", "take it to the sea", "put water under it", "put the sea behind it", "add the sea",
         "add water", "use the sea as the background", "make the background water", "make the background the ocean",
         "change the background to water", "change the scenery to the sea", "let there be water"),
        ("on the sea", "on the ocean", "at the ocean", "by the water", "in the water", "on water", "at the seaside",
         "out at sea", "it belongs on the water", "it should be on the sea", "it should swim on the sea",
         "i want the sea behind it", "i prefer it at sea", "i prefer the sea", "the background should be the sea",
         "the background is the sea now", "but at sea", "but on the water", "the sea as the background",
         "water as the background", "what if it was at sea", "imagine it at sea", "the same, but by the sea",
         "with water", "with water under it"),
    ),
    changes.IN_SCENERY["night"]: (
        ("make it night", "make it night time", "make it dark", "make the sky dark", "make it a night scene",
         "draw it by night", "draw it in the night", "show it at night", "show it in the dark", "put it in the night",
         "put it under a night sky", "place it in the dark", "place it under the stars", "set it at night",
         "move it to the night", "turn day into night", "turn it to night", "turn off the light",
         "switch off the light", "change the background to a night sky", "change the time to night", "use a night sky",
         "use the night as the background", "let it be night", "let it get dark", "let the sun go down",
         "add a night sky"),
        ("in the night", "in darkness", "at night time", "after dark", "under a dark sky", "under the night sky",
         "under the stars", "late at night", "at midnight", "it is night now", "it is dark now", "it gets dark",
         "it should be at night", "i want a night sky", "i prefer it at night", "i prefer the night",
         "the sky should be dark", "the background is night", "but at night", "but in the dark",
         "the night sky as the background", "what if it was night", "imagine it at night", "the same, but at night",
         "with a dark sky"),
    ),
    changes.STYLE: (
        ("draw it in {} style", "draw it in the style of {}", "paint it in {} style", "make it in {} style",
         "make it {} style", "make it look {} style", "show it in {} style", "show it in the style of {}",
         "change the style to {}", "change it to {} style", "switch to {} style", "switch the style to {}",
         "turn it into {} style", "set the style to {}", "use {} style", "use the style {}", "use {} as the style",
         "take {} style", "choose {} style", "try it in {} style", "repeat it in {} style", "redraw it in {} style",
         "convert it to {} style", "give me {} style", "have it in {} style"),
        ("{} style now", "{} style would be nice", "{} style is better", "i prefer {} style", "i want {} style",
         "i like {} style better", "i like it better in {} style", "it would be nicer in {} style",
         "it looks better in {} style", "it must be in {} style", "the style must be {}", "the style is {} now",
         "style: {}", "but in {} style", "but in the style of {}", "in {} style this time", "this time in {} style",
         "the same picture in {} style", "what if it was in {} style", "imagine it in {} style",
         "the same, but in {} style", "as {} style"),
    ),
}  # fmt: skip
#: What may stand before a question or a remark, and after it.
_TALK_ADDRESSES = (
    "", "", "", "so, ", "and ", "well, ", "ok, ", "hey, ", "hi, ", "excuse me, ", "sorry, ", "please, ", "now, ",
    "oh, ", "hmm, ", "my friend, ", "dear model, ",
)  # fmt: skip
_TALK_ENDS = ("", "", "", "", " please", ", friend", ", model", " then", ".", "!", "?")
#: Questions to the model that can follow "tell me": what one wants to know. By a training wording of the same kind.
_TO_KNOW = {
    "what can you do?": (
        "what you can do", "what you are able to do", "what you do", "how you work", "how this works",
        "what you are good at", "how to use you", "what you offer", "what i can do with you", "what your skills are",
        "what you are made for", "how you can help me", "what is possible here", "what i may ask you",
    ),
    "who are you?": (
        "what you are", "your name", "what your name is", "what you are called", "something about yourself",
        "what kind of thing you are", "whether you are a robot", "whether you are a computer", "who is there",
        "more about you",
    ),
    "which styles do you know?": (
        "which styles you know", "which styles there are", "your styles", "the styles", "the names of the styles",
        "what styles you can draw", "in which styles you draw", "in what style you can draw",
        "which style i can choose", "all styles", "what styles you offer",
    ),
    "which colours do you know?": (
        "which colours you know", "which colors you know", "which colours there are", "your colours", "the colours",
        "the names of the colours", "what colours you can draw", "in which colours you draw",
        "which colour i can choose", "all colours", "what colours you offer",
    ),
    "what can you draw?": (
        "what you can draw", "which things you know", "what you know", "what i should ask for",
        "what there is to draw", "some things you know", "something that you draw", "which objects you know",
        "what things you can paint", "an example of what you draw", "the names of some things", "what your things are",
    ),
}  # fmt: skip
_TELLING = (
    "tell me {}", "please tell me {}", "can you tell me {}", "could you tell me {}", "would you tell me {}",
    "will you tell me {}", "i want to know {}", "i would like to know {}", "i'd like to know {}", "may i know {}",
    "let me know {}", "say {}", "please say {}", "can you say {}", "explain {}", "please explain {}",
    "can you explain {}", "i wonder {}", "i am asking {}", "you could tell me {}", "i do not know {}",
    "i need to know {}", "teach me {}",
)  # fmt: skip
_ADDRESS_SHARE, _END_SHARE = 0.25, 0.25
_COUNT = 600  # wordings of a change, or of small talk


def change_wordings() -> Mapping[tuple[Any, ...], tuple[str, ...]]:
    """
    By training wordings: others, with the same placeholders.

    They are those of `MORE` and, for changes and small talk, many more. They are the same at every call.
    """
    made = dict(MORE)
    for training, (doings, sentences) in _SAYINGS.items():
        made[training] = MORE[training] + _varied(training, doings, sentences)
    # "it" has no "{} in {}", so it keeps its own wordings before the many.
    made[changes.RECOLOUR_IT] = MORE[changes.RECOLOUR_IT] + made[changes.RECOLOUR][len(MORE[changes.RECOLOUR]) :]
    talks = [wordings for turns in conversations.TALK.values() for wordings, _ in turns]
    for training in (*talks, conversations.THINGS_QUESTIONS):
        made[training] = MORE[training] + _talk(training)
    return made


def _varied(training: Sequence[str], doings: Sequence[str], sentences: Sequence[str]) -> tuple[str, ...]:
    """`_COUNT` wordings of a change."""
    rng, made = random.Random(f"changes {training[0]}"), dict.fromkeys((*doings, *sentences))
    while len(made) < _COUNT:
        text = rng.choice(ASKS) + rng.choice(doings) if rng.random() < 0.6 else rng.choice(sentences)
        if rng.random() < _ADDRESS_SHARE:
            text = f"{rng.choice(ADDRESSES)}{rng.choice((', ', ', ', ' '))}{text}"
        if rng.random() < _END_SHARE:
            text = f"{text}{rng.choice((', ', ' '))}{rng.choice(ENDS)}"
        made[text + rng.choice(("", "", "", ".", "!"))] = None
    return tuple(made)


def _talk(training: Sequence[str]) -> tuple[str, ...]:
    """Up to `_COUNT` wordings of small talk."""
    rng, made = random.Random(f"talk {training[0]}"), dict[str, None]()
    to_know = _TO_KNOW.get(training[0], ())
    for _ in range(_COUNT):
        if to_know and rng.random() < 0.6:
            text = rng.choice(_TELLING).format(rng.choice(to_know))
        else:
            text = rng.choice(MORE[tuple(training)]).rstrip("!.?")
        made[f"{rng.choice(_TALK_ADDRESSES)}{text}{rng.choice(_TALK_ENDS)}"] = None
    return tuple(made)
