"""
Thousands of ways to ask for an image: "good morning, could you please paint {} for my sister? thank you".

Each is an address, a request and an end; the first and the last may be missing. "{}" is the caption.
"""

import random
from itertools import product


ADDRESSES = (
    "hello", "hello there", "hi", "hi there", "hey", "hey you", "good morning", "good evening", "good afternoon",
    "greetings", "dear model", "dear computer", "my friend", "excuse me", "sorry", "sorry to ask", "pardon me", "please",
    "ok", "okay", "alright", "well", "well then", "so", "now", "right", "next", "um", "hmm", "oh", "yes", "first of all",
    "once more", "if you can", "if possible", "if you like", "when you have time", "today", "for a change", "quick question",
    "i have a wish", "i have an idea", "one more thing", "listen", "tell you what", "let me think",
    "thank you for your help", "be so good", "only if you want", "without hurry", "as a gift", "for fun", "just for me",
    "for our wall", "it is my turn",
)  # fmt: skip
#: Verbs after "can you" or alone, and what they make.
_VERBS = (
    "draw", "draw", "paint", "make", "create", "show", "sketch", "design", "produce", "generate", "render", "illustrate",
    "prepare", "compose", "print", "invent",
)  # fmt: skip
_MEDIA = (
    "{}", "{}", "{}", "{}", "a picture of {}", "an image of {}", "a drawing of {}", "an illustration of {}",
    "a painting of {}", "a sketch of {}", "a nice picture of {}", "a small picture of {}", "a simple drawing of {}",
    "a scene with {}", "a little scene with {}", "an icon of {}", "an emoji of {}", "a cartoon of {}",
    "a picture that shows {}", "something with {}", "a card with {}", "a poster of {}",
)  # fmt: skip
ASKS = (
    "", "", "", "please ", "can you ", "could you ", "would you ", "will you ", "can you please ", "could you please ",
    "would you please ", "could you perhaps ", "can you quickly ", "would you be so nice as to ", "are you able to ",
    "is it possible to ", "do you know how to ", "i want you to ", "i would like you to ", "i'd like you to ",
    "i need you to ", "i ask you to ", "i beg you to ", "may i ask you to ", "try to ", "please try to ", "you should ",
    "you could ", "now you may ", "let us ", "let's ", "it would be nice to ", "it would be great if you could ",
    "i wonder if you could ", "i would be glad if you could ", "do you think you could ", "maybe you can ",
    "perhaps you could ", "go and ", "go ahead and ", "help me to ", "your task is to ", "your job is to ", "time to ",
    "how about you ", "why don't you ", "feel free to ", "be so nice and ", "use your skills and ",
)  # fmt: skip
_FOR = (
    "", "", "", "", " for me", " for us", " for my sister", " for my son", " for my daughter", " for a friend",
    " for my mother", " for the children", " for my class", " for school", " for a card", " for a book", " for the wall",
    " again",
)  # fmt: skip
#: Requests without a verb of making.
_WISHES = (
    "i want {}", "i need {}", "i wish for {}", "i would love {}", "i'd love {}", "i would love to see {}", "i'd like {}",
    "i would like to see {}", "i'd like to see {}", "i would like to have {}", "i want to look at {}", "i need to see {}",
    "i am looking for {}", "i'm looking for {}", "i am thinking of {}", "i dream of {}", "i have to have {}",
    "i came for {}", "i could use {}", "i am asking for {}", "i could do with {}", "i feel like seeing {}", "we want {}",
    "we need {}", "we would like {}", "we would like to see {}", "my wish is {}", "my son wants {}",
    "my daughter wants to see {}", "my friend would like {}", "everybody wants {}", "give me {}", "give us {}", "get me {}",
    "bring me {}", "hand me {}", "send me {}", "let me have {}", "let me look at {}", "let us see {}", "may i see {}",
    "may we have {}", "can i have {}", "can i see {}", "can i get {}", "could i have {}", "could i get {}",
    "could we see {}", "might i see {}", "what about {}", "how about {}", "what would be nice is {}", "what i want is {}",
    "what i need is {}", "what i would like to see is {}", "this time {}", "next comes {}", "now comes {}", "imagine {}",
    "think of {}", "picture this: {}", "the picture should show {}", "the image should have {}", "it should show {}",
    "let it be {}", "let there be {}", "nothing but {}", "i will take {}", "one picture of {}", "my order: {}",
    "the subject is {}", "the theme is {}", "the topic today is {}", "title: {}", "prompt: {}", "caption: {}", "image: {}",
    "a wish: {}", "here is what i want: {}", "here is my idea: {}", "as follows: {}", "ready for {}", "time for {}",
    "just {}", "simply {}", "maybe {}", "perhaps {}", "again {}", "that is, {}", "you know, {}",
)  # fmt: skip
ENDS = (
    "please", "please", "thanks", "thank you", "thank you very much", "thanks a lot", "many thanks", "if you can",
    "if possible", "if you like", "if you please", "if that is possible", "if that is ok", "if you do not mind",
    "if it is not too hard", "if you know how", "if you have a minute", "when you have time", "when you can", "will you",
    "would you", "can you", "ok", "okay", "right now", "now", "today", "soon", "as well as you can", "as you like",
    "that would be nice", "that would be lovely", "that would be great", "that would help me", "i would be happy",
    "i would be very glad", "it is for my sister", "it is for a friend", "it is for school", "it is a present",
    "i love that", "and that is all", "nothing else", "no hurry", "take your time", "you are great", "you can do it",
    "let me see it", "i cannot wait", "i will wait", "what do you say", "do you hear", "sorry to bother you",
    "i hope you can",
)  # fmt: skip
_ADDRESS_SHARE, _END_SHARE, _WISH_SHARE = 0.4, 0.35, 0.45
_STOPS, _STOP_WEIGHTS = ("", ".", "!", "?"), (5, 2, 1, 2)


def request_wordings(count: int = 6000) -> tuple[str, ...]:
    """`count` different wordings of requests, each with one "{}" for the caption. They are the same at every call."""
    rng = random.Random("requests")
    made = list(dict.fromkeys(_WISHES))
    made += [f"{ask}{verb} {{}}" for ask, verb in product(dict.fromkeys(ASKS), ("draw", "paint", "make", "show me"))]
    known = set(made)
    while len(made) < count:
        wording = _request(rng)
        if wording not in known:
            known.add(wording)
            made.append(wording)
    return tuple(made[:count])


def _request(rng: random.Random) -> str:
    """A random wording."""
    if rng.random() < _WISH_SHARE:
        text = rng.choice(_WISHES)
        if "picture" not in text and rng.random() < 0.3:
            text = text.format(rng.choice(_MEDIA))
    else:
        verb, what = rng.choice(_VERBS), rng.choice(_MEDIA)
        whom = rng.choice(_FOR)
        if verb in ("show", "draw", "paint", "make") and rng.random() < (1 if verb == "show" else 0.25):
            verb, whom = f"{verb} {rng.choice(('me', 'us'))}", ""
        text = f"{rng.choice(ASKS)}{verb} {what}{whom}"
    if rng.random() < _ADDRESS_SHARE:
        text = f"{rng.choice(ADDRESSES)}{rng.choice((', ', ', ', ', ', ' ', '! ', '. '))}{text}"
    if rng.random() < _END_SHARE:
        text = f"{text}{rng.choice((', ', ', ', ' ', '. ', ' - '))}{rng.choice(ENDS)}"
    return text + rng.choices(_STOPS, _STOP_WEIGHTS)[0]
