"""
More wordings of what the user says: for each tuple of wordings in this folder, others that mean the same.

The rows of the training have them from the sixth part on (`--wordings` of recipes.world.rows), those before do not.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from recipes.world import captions, changes, conversations, questions
from recipes.world.request_wordings import request_wordings


Choice = TypeVar("Choice")
Wordings = Mapping[tuple[Any, ...], tuple[str, ...]]


class Reworded(random.Random):
    """
    Draws as `random.Random` does; but where one of certain wordings is drawn, it draws one of others.

    Args:
        seed: the seed.
        wordings: others by the wordings that are offered.
    """

    def __init__(self, seed: int | str, wordings: Wordings):
        super().__init__(seed)
        self.wordings = wordings

    def choice(self, seq: Sequence[Choice]) -> Choice:
        return super().choice(self.wordings.get(seq, seq) if isinstance(seq, tuple) else seq)


_MORE: dict[tuple[Any, ...], tuple[str, ...]] = {
    captions.REQUESTS: request_wordings(),
    conversations.TWO_REQUESTS: (
        "paint {}, then {}", "i want {}, and after it {}", "first paint {}, then paint {}", "make {} and also {}",
        "i need two pictures, {} and {}", "make two images: {}, {}", "could you draw {}, and after that {}?",
        "one picture of {}, and one of {}", "please show me {}, and then {}", "i would like two pictures: {}; {}",
        "draw {}, and in another picture {}", "paint {} first, and {} second", "show {}, next show {}",
        "two drawings please: {}, and {}", "create {}, followed by {}", "let me see {}, and then let me see {}",
    ),
    # Questions
    questions.WHAT: (
        "what is here?", "what is on the picture?", "what is shown?", "what does it show?", "what does the image show?",
        "what is in this picture?", "what is in this image?", "what is in the image?", "what can be seen?",
        "what is to be seen here?", "what is that in the picture?", "what do you see in the picture?", "what do you find?",
        "what do you see here?", "what is drawn here?", "what can you find in the picture?", "tell me what is there.",
        "tell me what is in the picture.", "tell me what you can see.", "say what is there.", "list everything.",
        "list the things.", "list all things in the picture.", "name the things.", "name all you see.",
        "which things do you see?", "which objects are there?", "which objects can you see?", "what things are there?",
        "what objects do you see?", "can you tell me what is in the picture?", "do you know what is in the picture?",
        "please tell me what you see.", "what is in it?", "what's there?", "what's in it?", "what's in the picture?",
        "what's here?", "so what do you see?", "look, what is there?",
    ),
    questions.WHAT_IS_THIS: (
        "what is that?", "what's that?", "what might this be?", "what could this be?", "do you know what this is?",
        "can you tell me what this is?", "tell me what this is.", "what am i looking at?", "what have i got here?",
        "what do you call this?", "name this.", "what is it that you see?", "what's it?", "please tell me what it is.",
    ),
    questions.DESCRIBE: (
        "describe what you see.", "describe this picture.", "describe this image.", "describe the scene.", "caption this.",
        "please describe it.", "please describe the picture.", "can you describe it?", "can you describe the picture?",
        "could you describe the image?", "give me a caption.", "give it a caption.", "give me a description.",
        "write a description.", "write a caption for the picture.", "tell me about the picture.",
        "tell me about this image.", "tell me all about it.", "what does it look like?", "put it in words.",
        "describe the whole picture.", "say where things are.", "describe everything you see.", "explain the picture.",
        "please write a caption.",
    ),
    questions.HOW_MANY: (
        "how many {many} can you find?", "how many {many} can you count?", "how many {many} are here?",
        "how many {many} are shown?", "how many {many} are in the picture?", "how many {many} are in the image?",
        "how many {many} does it have?", "how many {many} does the picture have?", "how many {many} does the image show?",
        "please count the {many}.", "can you count the {many}?", "count all {many}.", "count {many}.", "number of {many}?",
        "tell me how many {many} there are.", "tell me how many {many} you see.", "say how many {many} there are.",
        "do you know how many {many} there are?", "give me the number of {many}.", "what number of {many} do you see?",
        "i wonder how many {many} there are.", "and how many {many}?",
    ),
    questions.HOW_MANY_ALL: (
        "how many things do you see?", "how many things can you see?", "how many objects are there?", "count the things.",
        "how many objects are in the picture?", "count all things.", "count the objects.", "count everything.",
        "what is the number of things?", "how many things are here?", "how many things are there in total?",
        "how many things are there together?", "tell me how many things there are.", "how many things does it show?",
    ),
    questions.WHICH_COLOUR: (
        "which color is the {one}?", "which color does the {one} have?", "what colour has the {one}?",
        "what is the color of the {one}?", "what color does the {one} have?", "what colour does the {one} have?",
        "what's the colour of the {one}?", "the {one} has which colour?", "the colour of the {one}?",
        "what colour do you see on the {one}?", "tell me which colour the {one} is.", "tell me which colour the {one} has.",
        "do you know the colour of the {one}?", "name the colour of the {one}.", "say which color the {one} has.",
        "can you tell me the colour of the {one}?", "can you see which colour the {one} is?", "how is the {one} coloured?",
        "i wonder what colour the {one} is.", "of what colour is the {one}?", "and what colour is the {one}?",
    ),
    questions.WHICH_COLOUR_MANY: (
        "which colour are the {many}?", "what color are the {many}?", "what colour do the {many} have?",
        "which color do the {many} have?", "what is the color of the {many}?", "tell me which colour the {many} are.",
        "name the colour of the {many}.", "what colour have the {many}?", "do you know the colour of the {many}?",
        "can you tell me the colour of the {many}?", "what's the colour of the {many}?", "the colour of the {many}?",
        "of what colour are the {many}?", "how are the {many} coloured?",
    ),
    questions.MAIN_COLOUR: (
        "what color does it have?", "which color is it?", "what colour is it?", "what is the colour?", "what's its color?",
        "what is the main colour?", "which colour does it have?", "name its colour.", "can you tell me its colour?",
        "tell me which colour it is.", "of what colour is it?", "do you know its colour?",
    ),
    questions.WHERE: (
        "where is that {one}?", "where does the {one} stand?", "where does the {one} appear?",
        "where can you see the {one}?", "where in the picture is the {one}?", "where can the {one} be found?",
        "on which side is the {one}?", "at which place do you see the {one}?", "can you tell me where the {one} is?",
        "tell me where the {one} is.", "say where the {one} is.", "please tell me where the {one} is.",
        "do you know where the {one} is?", "what is the place of the {one}?", "what is the position of the {one}?",
        "find the {one}.", "show me where the {one} is.", "can you find the {one}?",
        "i am looking for the {one}. where is it?", "and where is the {one}?", "where is the {one} in the picture?",
        "i cannot find the {one}. where is it?", "describe where the {one} is.",
    ),
    questions.WHAT_IS_BESIDE: (
        "what's {phrase} the {one}?", "what stands {phrase} the {one}?", "what thing is {phrase} the {one}?",
        "which thing do you see {phrase} the {one}?", "what can you see {phrase} the {one}?",
        "what is there {phrase} the {one}?", "what is drawn {phrase} the {one}?", "what appears {phrase} the {one}?",
        "can you tell me what is {phrase} the {one}?", "do you know what is {phrase} the {one}?",
        "what can you find {phrase} the {one}?", "{phrase} the {one}, what do you see?", "and {phrase} the {one}?",
        "say what is {phrase} the {one}.", "which object is {phrase} the {one}?",
    ),
    questions.IS_THERE: (
        "{are} there {a_one} here?", "{are} there {a_one} in the image?", "{are} there {a_one} in it?",
        "{are} there {a_one} to be seen?", "can you find {a_one}?", "can you find {a_one} in the picture?",
        "do you see {a_one} here?", "do you see {a_one} in the picture?", "is it true that there {are} {a_one}?",
        "can you tell me whether there {are} {a_one}?", "tell me whether there {are} {a_one}.", "does it show {a_one}?",
        "does it have {a_one}?", "does the image have {a_one}?", "has the picture {a_one} in it?", "{a_one}?",
        "i wonder whether there {are} {a_one}.", "{are} {a_one} in the picture?", "{are} there {a_one} somewhere?",
        "do you notice {a_one}?", "and {are} there {a_one}?", "could there be {a_one}?",
    ),
    questions.ARE_THERE: (
        "are there {some} here?", "are there {some} in the image?", "can you see {some}?", "can you find {some}?",
        "is it true that there are {some}?", "tell me whether there are {some}.", "does it show {some}?",
        "does the image have {some}?", "do you see {some} here?", "do you see {some} in the picture?",
        "do you count {some}?", "i think there are {some}. is that right?", "does the image show {some}?",
        "can you tell me whether there are {some}?",
    ),
    questions.IS_COLOUR: (
        "is that {one} {colour}?", "is the {one} a {colour} one?", "is it true that the {one} is {colour}?",
        "do you see that the {one} is {colour}?", "does the {one} have the colour {colour}?",
        "is the {one} really {colour}?", "is the color of the {one} {colour}?", "tell me whether the {one} is {colour}.",
        "the {one} is {colour}, right?", "can you tell me whether the {one} is {colour}?",
        "has the {one} the colour {colour}?", "is the {one} painted {colour}?", "do you think the {one} is {colour}?",
        "i think the {one} is {colour}. is that right?",
    ),
    questions.IS_RELATED: (
        "is the {one} {phrase} that {other}?", "is it true that the {one} is {phrase} the {other}?",
        "do you see the {one} {phrase} the {other}?", "can you see the {one} {phrase} the {other}?",
        "does the {one} appear {phrase} the {other}?", "tell me whether the {one} is {phrase} the {other}.",
        "is the {one} drawn {phrase} the {other}?", "the {one} is {phrase} the {other}, right?",
        "can you tell me whether the {one} is {phrase} the {other}?",
        "i think the {one} is {phrase} the {other}. is that right?", "do you think the {one} is {phrase} the {other}?",
    ),
    questions.WHICH_KIND: (
        "what kind of thing is that?", "which kind of thing is it?", "what sort of thing is this?", "of which kind is it?",
        "what type of thing is it?", "which type of thing is this?", "what kind is it?", "which group does it belong to?",
        "what does it belong to?", "can you tell me what kind of thing it is?", "what sort of thing might that be?",
    ),
    questions.WHICH_KIND_MANY: (
        "what kind of things are those?", "which kind of things are they?", "what sort of things are these?",
        "of which kind are they?", "what type of things are they?", "which type of things are these?",
        "which group do they belong to?", "can you tell me what kind of things they are?", "what kind are they?",
    ),
    questions.IS_KIND: (
        "is that {kind}?", "is it true that it is {kind}?", "do you think it is {kind}?", "can you say it is {kind}?",
        "would you say it is {kind}?", "does it count as {kind}?", "is this thing {kind}?", "tell me whether it is {kind}.",
        "could it be {kind}?", "it is {kind}, right?",
    ),
    questions.ARE_KIND: (
        "are those {kind}?", "is it true that they are {kind}?", "do you think they are {kind}?",
        "can you say they are {kind}?", "would you say they are {kind}?", "do they count as {kind}?",
        "tell me whether they are {kind}.", "could they be {kind}?", "they are {kind}, right?",
    ),
    questions.BACKGROUND: (
        "what background is it?", "what is behind?", "what is behind the things?", "what background do you see?",
        "which background is that?", "what does the background look like?", "what colour is the background?",
        "tell me what the background is.", "name the background.", "on what background is it?",
        "how does the background look?", "what is it drawn on?", "can you describe the background?",
        "what's the background?", "what kind of background is it?",
    ),
    questions.STYLE: (
        "what style is this?", "which style is it?", "in what style is it?", "in what style is the picture?",
        "what's the style?", "what is the style?", "what style is it drawn in?", "name the style.",
        "which style does the picture have?", "can you tell me the style?", "what style do you see?",
        "tell me which style it is.", "what kind of drawing is it?", "do you know the style?",
    ),
    questions.ODD: (
        "which one does not fit?", "which thing does not fit?", "what does not belong here?", "which one does not belong?",
        "find the odd one out.", "name the odd one out.", "which is the odd one?", "which one is different?",
        "what is different from the others?", "which of them is different?", "which thing is unlike the others?",
        "one is not like the others. which?", "which one would you take away?", "what does not fit with the others?",
    ),
    # Changes
    changes.RECOLOUR: (
        "{} should be {}", "{} must be {}", "colour {} {}", "color {} {}", "please make {} {}", "please paint {} {}",
        "could you make {} {}?", "could you paint {} {}?", "turn {} {}", "i would like {} to be {}", "i'd like {} to be {}",
        "now make {} {}", "now paint {} {}", "i want {} {}", "draw {} in {}", "i would like {} in {}", "have {} in {}",
        "change {} to {}", "change the colour of {} to {}", "the colour of {} should be {}", "paint {} in {}",
        "{} in {} please", "let {} be {}", "let us make {} {}", "can {} be {}?", "could {} be {}?", "can we have {} in {}?",
        "try {} in {}", "it would be nicer with {} in {}", "same picture, but {} in {}", "the same with {} in {}",
        "what about {} in {}?", "how about {} in {}?", "i think {} should be {}", "would you make {} {}, please?",
    ),
    changes.RECOLOUR_IT: (
        "{} should be {}", "{} must be {}", "colour {} {}", "color {} {}", "please make {} {}", "please paint {} {}",
        "could you make {} {}?", "could you paint {} {}?", "turn {} {}", "i would like {} to be {}", "i'd like {} to be {}",
        "now make {} {}", "now paint {} {}", "i want {} {}", "draw {} in {}", "i would like {} in {}", "have {} in {}",
        "change {} to {}", "paint {} in {}", "let {} be {}", "can {} be {}?",
        "could {} be {}?", "can we have {} in {}?", "try {} in {}", "how about {} in {}?", "i think {} should be {}",
        "would you make {} {}, please?",
    ),
    changes.ADD: (
        "i want {} {}", "i would like {} {}", "i'd like {} {}", "draw {} {}", "draw also {} {}", "paint {} {}",
        "paint in {} {}", "now put {} {}", "please put {} {}", "please draw {} {}", "could you add {} {}?",
        "could you put {} {}?", "and {} {}", "and now {} {}", "now {} {}", "also {} {}", "also add {} {}", "with {} {}",
        "the same with {} {}", "place {} {}", "please place {} {}", "set {} {}", "there should also be {} {}",
        "it needs {} {}", "what about {} {}?", "how about {} {}?", "can we have {} {}?", "can i have {} {}?",
        "let there also be {} {}", "bring in {} {}", "would you add {} {}, please?", "insert {} {}", "include {} {}",
        "{} {}, please", "same picture, but with {} {}", "i would like to see {} {} as well", "have {} {}",
        "i think it needs {} {}", "something is missing: {} {}",
    ),
    changes.ADD_ANOTHER: (
        "i want one more {}", "i want another {}", "i would like one more {}", "i'd like another {}", "draw another {}",
        "draw one more {}", "paint another {}", "paint one more {}", "and another {}", "and one more {}", "another {}",
        "another {} please", "one more {} please", "please add one more {}", "can you add another {}?", "one {} more",
        "can you draw one more {}?", "could you add one more {}?", "can i have one more {}?", "can we have another {}?",
        "put in another {}", "put one more {} there", "now one more {}", "also another {}", "it needs one more {}",
        "make it one {} more", "the same with one more {}", "same picture, but with another {}", "add a further {}",
        "let me see one more {}", "how about another {}?", "what about one more {}?", "would you add another {}, please?",
    ),
    changes.REMOVE: (
        "i want no {}", "i do not want the {}", "i don't want the {}", "i do not like the {}", "i don't like the {}",
        "without the {}", "without the {} please", "the same without the {}", "same picture, but without the {}",
        "take the {} away", "take the {} out", "take out the {}", "leave out the {}", "leave the {} out", "erase the {}",
        "wipe away the {}", "drop the {}", "now without the {}", "now remove the {}", "please take away the {}",
        "please delete the {}", "can you remove the {}?", "could you remove the {}?", "can you take away the {}?",
        "could you take the {} away?", "throw out the {}", "away with the {}", "the {} should go", "the {} must go",
        "the {} can go", "let the {} disappear", "make the {} disappear", "hide the {}", "cut out the {}",
        "would you remove the {}, please?", "it is better without the {}",
    ),
    changes.REPLACE: (
        "exchange the {old} for {new}", "swap the {old} for {new}", "draw {new} instead of the {old}",
        "put {new} where the {old} is", "put {new} in place of the {old}", "make the {old} {new}", "{new}, not the {old}",
        "i want {new} instead of the {old}", "i would like {new} instead of the {old}", "instead of the {old}, {new}",
        "instead of the {old}, i want {new}", "please replace the {old} with {new}", "can you replace the {old} with {new}?",
        "could you replace the {old} by {new}?", "can you turn the {old} into {new}?",
        "could you change the {old} to {new}?", "change the {old} into {new}", "make {new} out of the {old}",
        "the {old} should be {new}", "not the {old} but {new}", "take away the {old} and add {new}",
        "remove the {old} and put {new} there", "now replace the {old} with {new}", "use {new} instead of the {old}",
        "let us have {new} instead of the {old}", "can we have {new} instead of the {old}?",
        "substitute {new} for the {old}", "the {old} becomes {new}", "would you replace the {old} with {new}, please?",
    ),
    changes.SWAP: (
        "swap both", "swap their places", "swap places", "swap the two things", "change them over", "please swap them",
        "can you swap them?", "could you swap them?", "can you swap the two?", "now swap them", "now swap the two",
        "make them swap places", "switch them", "switch the two", "please switch them", "switch places",
        "put each where the other is", "reverse them", "reverse the order", "the other way around",
        "the other way round please", "i want them the other way round", "each in the place of the other",
        "would you swap them, please?",
    ),
    changes.PLAIN: (
        "i want a {} background", "i would like a {} background", "i'd like a {} background", "with a {} background",
        "the same with a {} background", "a {} background please", "a {} background", "draw it on a {} background",
        "put it on a {} background", "now with a {} background", "now a {} background", "paint the background {}",
        "please make the background {}", "can you make the background {}?", "could you make the background {}?",
        "turn the background {}", "change the background to {}", "the background should be {}", "colour the background {}",
        "all on {}", "the same on {}", "the background in {}", "use a {} background", "can we have a {} background?",
        "how about a {} background?", "have it on a {} background", "same picture, but on {}", "it should be on {}",
        "would you make the background {}, please?",
    ),
    changes.IN_SCENERY["grass"]: (
        "on the grass", "on grass please", "now on the grass", "now on grass", "the same in a meadow", "put it in a meadow",
        "draw it on the grass", "draw it in a meadow", "i want it on the grass", "i would like it on the grass",
        "can you put it on the grass?", "could you put it in a meadow?", "place it on the grass",
        "make the background grass", "with grass", "with a meadow behind it", "set it on the grass",
        "same picture, but on the grass", "how about on the grass?", "move it to a meadow", "it should be on the grass",
        "change the background to grass", "would you put it on the grass?",
    ),
    changes.IN_SCENERY["sea"]: (
        "at sea", "at sea please", "now at sea", "now on the water", "the same by the sea", "the same on the water",
        "put it at sea", "put it by the sea", "draw it at sea", "draw it on the water", "i want it at sea",
        "i would like it by the sea", "can you put it on the water?", "could you put it at sea?", "place it on the water",
        "make the background the sea", "with the sea", "with the sea behind it", "set it at sea", "same picture, but at sea",
        "how about at sea?", "move it to the sea", "it should be at sea", "change the background to the sea",
    ),
    changes.IN_SCENERY["night"]: (
        "at night", "at night please", "the same in the night", "the same in the dark", "draw it at night",
        "draw it in the dark", "put it in the dark", "i want it at night", "i would like it at night",
        "can you make it night?", "could you make it night?", "turn it into night", "make it dark",
        "make the background the night sky", "by night", "with a night sky", "with the night sky behind it",
        "same picture, but at night", "how about at night?", "it should be night", "it should be dark",
        "change the background to night", "now it is night", "would you make it night?",
    ),
    changes.STYLE: (
        "i want it in {} style", "i would like it in {} style", "i'd like it in {} style", "{} style", "{} style please",
        "now {} style", "make it {} style", "make it in {} style", "please draw it in {} style", "draw it again in {} style",
        "draw this in {} style", "can you draw it in {} style?", "could you draw it in {} style?", "paint it in {} style",
        "change the style to {}", "use {} style", "use the {} style", "try {} style", "the style should be {}",
        "in {} style", "in the style of {}", "the same in the style of {}", "how about {} style?", "what about {} style?",
        "show it in {} style", "same picture, but in {} style", "turn it into {} style", "redo it in {} style",
        "would you draw it in {} style, please?", "can we have it in {} style?",
    ),
    # Small talk
    ("hello!", "hello", "hi", "hi there", "hey", "good morning"): (
        "hello!", "good evening", "good afternoon", "hello there", "hey there", "hi!", "hey!", "greetings", "hello you",
        "hello model", "good morning to you", "hi friend", "nice to meet you", "hello again", "hi, i am new here",
    ),
    ("how are you?", "how do you do?"): (
        "how are you doing?", "how are you today?", "how is it going?", "how do you feel?", "are you well?", "are you ok?",
        "how are things?", "is all well?", "what's up?", "everything ok?",
    ),
    ("what can you do?", "what are you able to do?", "help", "how does this work?", "what do you do?"): (
        "what do you know how to do?", "what are you good at?", "what are your skills?", "what are you for?", "help me",
        "help please", "how can you help me?", "how can you help?", "how do i use this?", "what should i do?",
        "what may i ask?", "tell me what you can do", "what can i do here?", "explain this to me", "can you do anything?",
        "what is possible?", "what is your job?", "show me what you can do", "what can i ask you to do?",
    ),
    ("who are you?", "what are you?", "what is your name?"): (
        "what's your name?", "do you have a name?", "tell me your name", "tell me about yourself", "are you a robot?",
        "are you a human?", "are you a computer?", "what kind of model are you?", "which model are you?",
        "introduce yourself", "what should i call you?",
    ),
    ("which styles do you know?", "what styles can you draw?", "which styles are there?"): (
        "what styles are there?", "what styles do you know?", "which styles can you draw?", "in which styles can you draw?",
        "tell me the styles", "name the styles", "list your styles", "list the styles", "what styles can i choose?",
        "which styles do you have?",
    ),
    ("which colours do you know?", "what colors can you draw?"): (
        "which colors do you know?", "what colours do you know?", "which colours can you draw?", "what colours are there?",
        "which colours are there?", "name the colours", "tell me the colours", "list the colours", "list your colors",
        "what colours can i choose?", "which colours do you have?", "in which colours can you draw?",
        "what colors do you have?",
    ),
    ("thank you", "thanks", "thank you very much", "thanks a lot"): (
        "thank you!", "thanks!", "many thanks", "thank you so much", "thanks so much", "thank you a lot", "thank you, model",
        "thanks for that", "thank you for the picture", "thanks for the picture", "i thank you", "thanks again", "cheers",
        "you are very kind", "that helps me", "thank you for your help",
    ),
    ("nice", "very nice", "great", "i like it", "well done", "lovely"): (
        "nice!", "great!", "good", "very good", "very well done", "good job", "good work", "nice work", "wonderful",
        "beautiful", "how lovely", "how nice", "i love it", "i like that", "that is nice", "that is great",
        "that looks good", "looks nice", "perfect", "just right", "what a nice picture", "pretty", "cool", "super",
        "excellent", "this is good", "you did well",
    ),
    ("goodbye", "bye", "see you"): (
        "goodbye!", "bye!", "bye bye", "see you later", "see you soon", "see you tomorrow", "good night", "until next time",
        "i have to go", "i must go", "that's it, bye", "so long", "take care", "goodbye for now",
    ),
    conversations.THINGS_QUESTIONS: (
        "what things can you draw?", "which things can you draw?", "what things do you know?", "what can i ask for?",
        "name some things you can draw", "what is there to draw?", "what could you draw?", "give me some ideas",
        "give me an idea", "i do not know what to ask for", "what else can you draw?", "tell me what you can draw",
        "which objects do you know?",
    ),
}  # fmt: skip
#: By the wordings of this folder: these and more.
MORE: dict[tuple[Any, ...], tuple[str, ...]] = {one: one + others for one, others in _MORE.items()}
