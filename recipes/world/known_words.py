"""The words of the world by group, for the model's processor: prompts of images that have none get a warning."""

from recipes.world.phrases import SCENERY_PHRASES, STYLE_WORDS
from recipes.world.recolouring import PALETTE
from recipes.world.scenes import PLAIN_BACKGROUNDS
from recipes.world.words import KINDS, THINGS


def known_words() -> dict[str, list[str]]:
    """
    Names of the things by kind, then their other names and plurals, styles, colours, and sceneries.

    Numbers and places are left out: a prompt that names nothing else has nothing to draw.
    """
    groups = {
        plural: [name for name, thing in THINGS.items() if thing.kind == kind] for kind, (_, plural) in KINDS.items()
    }
    nouns = [noun for thing in THINGS.values() for noun in thing.nouns]
    forms = dict.fromkeys(
        form for noun in nouns for form in (noun.singular, noun.plural) if form and form not in THINGS
    )
    own_colours = [thing.own_colour for thing in THINGS.values() if thing.own_colour]
    return {
        **groups,
        "other names": list(forms),
        "styles": list(dict.fromkeys(word for words in STYLE_WORDS.values() for word in words)),
        "colours": list(dict.fromkeys([*PALETTE, *PLAIN_BACKGROUNDS, *own_colours, "gray"])),
        "backgrounds": [phrase for phrases in SCENERY_PHRASES.values() for phrase in dict.fromkeys(phrases)],
    }
