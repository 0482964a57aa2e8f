"""The things of the small world: their names, plurals and synonyms, and the emoji that shows each of them.

Most synonyms are labels, tags and shortcodes of emojibase-data (MIT licence) that name the same thing and no other of this
table. The others are everyday words ("doggy", "fire truck") and spellings of the other side of the Atlantic. A phrase with
"~" in front takes no article and has no plural: "~cheese".
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    """
    One way to name a thing.

    Args:
        singular: such as "sheep", without an article.
        plural: such as "sheep"; None for what cannot be counted ("cheese").
    """

    singular: str
    plural: str | None

    @property
    def with_article(self) -> str:
        """ "a dog", "an apple", "cheese"."""
        return self.singular if self.plural is None else f"{article(self.singular)} {self.singular}"

    @property
    def is_many(self) -> bool:
        """Whether "are" follows it although it names one thing: "grapes", "scissors"."""
        return self.plural is None and self.singular.endswith("s")


@dataclass(frozen=True)
class Thing:
    """
    One thing of the world.

    Args:
        name: the noun that answers use.
        synonyms: other nouns for it.
        code: the code points of its emoji, without variation selectors.
        kind: "animal", "food", "vehicle", "plant", "sky" or "object".
        own_colour: its colour in every style; None if it has no clear one, or different ones.
        near_colours: other colours that one could call it in some style. It is neither painted nor asked for in them.
        recoloured: whether it also exists in colours other than its own.
    """

    name: Noun
    synonyms: tuple[Noun, ...]
    code: str
    kind: str
    own_colour: str | None
    near_colours: tuple[str, ...]
    recoloured: bool

    @property
    def nouns(self) -> tuple[Noun, ...]:
        """All nouns, the name first."""
        return (self.name, *self.synonyms)


#: What a kind is called in questions and answers: singular with an article, plural.
KINDS = {
    "animal": ("an animal", "animals"),
    "food": ("something to eat or drink", "things to eat or drink"),
    "vehicle": ("a vehicle", "vehicles"),
    "plant": ("a plant", "plants"),
    "sky": ("something of the sky or the weather", "things of the sky or the weather"),
    "object": ("an object", "objects"),
}

# Code, name, synonyms; "*" after the code: also in other colours. New things go to the end, because a trained judge
# (benchmarks.world_detector) numbers them in this order.
_TABLE = {
    "animal": """
        1F415* dog: doggy
        1F408* cat: kitty
        1F40E* horse
        1F404 cow
        1F416* pig: piggy
        1F411 sheep: ewe
        1F407* rabbit: bunny
        1F401* mouse
        1F418* elephant
        1F992 giraffe
        1F981 lion
        1F43B* bear: grizzly
        1F98A* fox
        1F43C panda
        1F438* frog
        1F412 monkey
        1F405 tiger
        1F993 zebra
        1F414 chicken: hen
        1F986 duck
        1F989 owl
        1F427 penguin
        1F9A9* flamingo
        1F426* bird
        1F422 turtle: tortoise
        1F40D* snake: serpent
        1F40A* crocodile
        1F995* dinosaur: brontosaurus
        1F433* whale
        1F42C* dolphin
        1F988* shark
        1F41F* fish
        1F419* octopus
        1F980* crab
        1F40C snail
        1F98B butterfly
        1F41D bee: honeybee, bumblebee
        1F41E* ladybird: ladybug
        1F577 spider
        1F984 unicorn
    """,
    "food": """
        1F34E* apple
        1F350* pear
        1F34C* banana
        1F34B* lemon
        1F349 watermelon
        1F347* bunch of grapes: ~grapes
        1F353* strawberry
        1F34D pineapple
        1F951 avocado
        1F345* tomato
        1F955 carrot
        1F966 piece of broccoli: ~broccoli
        1F344 mushroom: toadstool
        1F35E loaf of bread: ~bread
        1F9C0* piece of cheese: ~cheese
        1F95A* egg
        1F354 hamburger: burger
        1F355 slice of pizza: pizza
        1F35F portion of fries: ~french fries, ~fries
        1F369* doughnut: donut
        1F36A* cookie: biscuit
        1F382 birthday cake: cake
        1F9C1 cupcake
        1F366 ice cream: ice cream cone
        1F36B bar of chocolate: chocolate bar, ~chocolate
        2615 cup of coffee: coffee
    """,
    "vehicle": """
        1F697* car: automobile
        1F68C bus
        1F692* fire engine: fire truck
        1F691 ambulance
        1F69A truck: lorry, delivery truck
        1F69C* tractor
        1F6B2 bicycle: bike
        1F3CD motorcycle: motorbike
        1F682 train: steam locomotive, locomotive
        2708 aeroplane: airplane, plane
        1F681* helicopter
        1F680 rocket
        1F6A2 ship
        26F5 sailing boat: sailboat
        1F6F8 flying saucer: ufo
    """,
    "plant": """
        1F333* tree
        1F332* fir tree: evergreen tree, pine tree
        1F334 palm tree
        1F335* cactus
        1F33B sunflower
        1F339 rose
        1F337* tulip
        1F341* maple leaf: leaf
        1F340* clover: four leaf clover
    """,
    "sky": """
        2600* sun
        1F319* moon: crescent moon
        2B50* star
        2601* cloud
        1F308 rainbow
        2744* snowflake
        1F525* fire: flame
        1F4A7* drop of water: droplet
    """,
    "object": """
        26C4 snowman
        1F30B volcano
        1F30D globe: ~earth
        1F3E0 house: home
        1F3F0 castle
        26FA tent
        1FA91* chair: seat
        1F6CF bed
        1F6CB* sofa: couch
        1F4A1 light bulb: bulb
        1F6AA* door
        1F511* key
        23F0 alarm clock: clock
        1F4F1 mobile phone: cell phone, phone
        1F4BB laptop: computer
        1F4FA television: tv
        1F4F7 camera
        1F4D5* book
        270F pencil
        2702 pair of scissors: ~scissors
        2602* umbrella
        1F381* gift: present
        1F388* balloon
        26BD football: soccer ball
        1F3C0* basketball
        1F3B8 guitar
        1F451* crown
        1F45F shoe: sneaker, trainer
        1F455* shirt: t-shirt
        1F453 pair of glasses: ~glasses, ~eyeglasses
        1F514* bell
        1F47B* ghost
        2764* heart
        1F3C6* trophy
        1F48E* diamond: gem
        1FA81 kite
    """,
}
_OTHER_KINDS = {"fire": "object"}  # the table has it among those of the sky
# The colour of things that have the same one in every style.
_OWN_COLOURS = {
    "red": "apple, tomato, strawberry, heart, fire engine, ladybird, rose, book, balloon, car",
    "yellow": "banana, lemon, sun, star, moon, piece of cheese, crown, sunflower, bell",
    "green": "pear, frog, crocodile, snake, dinosaur, cactus, tree, fir tree, palm tree, clover, turtle, tractor, avocado, "
    "piece of broccoli",
    "blue": "whale, dolphin, fish, drop of water, diamond, snowflake",
    "purple": "bunch of grapes",
    "pink": "pig, flamingo, tulip",
    "orange": "fox, carrot, basketball, fire, tiger",
    "grey": "elephant, mouse",
    "brown": "bear, monkey, door, chair, horse",
    "white": "ghost, cloud",
}
# Colours that things nearly have in some style: the flat sun is (255, 171, 50), an orange by recipes.colours.
_NEAR_COLOURS = {
    "red": "fire, flamingo, basketball, gift, monkey",
    "orange": "sun, star, bell, crown, piece of cheese, sunflower, maple leaf, helicopter, trophy, gift, horse, door, "
    "chair, monkey, apple",
    "yellow": "pear, avocado, fire, helicopter, trophy, gift, key",
    "blue": "umbrella, piece of broccoli, turtle",
    "purple": "umbrella",
    "pink": "maple leaf, bird",
}
#: Things that also answer to the name of another one, or have it as a part. Where they are, nobody asks how many there are
#: of the name, and no question takes it for something that is not there.
ALSO_CALLED = {
    "bird": ("chicken", "duck", "owl", "penguin", "flamingo"),
    "cat": ("lion", "tiger"),
    "bear": ("panda",),
    "horse": ("zebra", "unicorn"),
    "fish": ("shark", "whale", "dolphin"),
    "tree": ("fir tree", "palm tree", "house"),
    "maple leaf": (
        "clover",
        "tree",
        "palm tree",
        "rose",
        "tulip",
        "sunflower",
        "apple",
        "pear",
        "strawberry",
        "tomato",
        "pineapple",
        "carrot",
    ),
    "truck": ("fire engine",),
    "bicycle": ("motorcycle",),
    "ship": ("sailing boat",),
    "birthday cake": ("cupcake",),
    "piece of cheese": ("slice of pizza", "hamburger"),
    "tomato": ("slice of pizza", "hamburger"),
    "loaf of bread": ("hamburger",),
    "bar of chocolate": ("cookie", "doughnut", "ice cream"),
    "strawberry": ("birthday cake", "cupcake"),
    "house": ("castle",),
    "door": ("house", "castle"),
    "fire": ("volcano", "rocket"),
    "cloud": ("rainbow", "volcano"),
    "snowflake": ("snowman",),
}
# Plurals that do not follow the rule of `plural_of`.
_PLURALS = {
    "sheep": "sheep", "mouse": "mice", "fish": "fish", "butterfly": "butterflies", "strawberry": "strawberries",
    "tomato": "tomatoes", "cactus": "cacti", "maple leaf": "maple leaves", "leaf": "leaves",
    "loaf of bread": "loaves of bread", "kitty": "kitties", "bunny": "bunnies", "snowman": "snowmen",
    "doggy": "doggies", "piggy": "piggies", "trophy": "trophies", "lorry": "lorries", "volcano": "volcanoes",
    "grizzly": "grizzlies",
}  # fmt: skip


def article(noun: str) -> str:
    """ "a" or "an", for a noun or an adjective in lower case."""
    vowel = noun[0] in "aeiou" and not noun.startswith(("uni", "ufo", "eu", "ewe", "one"))
    return "an" if vowel else "a"


def plural_of(noun: str) -> str:
    """The plural of a noun of this world: "foxes", "slices of pizza"."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    head, of, rest = noun.partition(" of ")
    return f"{head}{'es' if head.endswith(('ch', 'x', 's')) else 's'}{of}{rest}"


def _noun(text: str) -> Noun:
    return Noun(text[1:], None) if text.startswith("~") else Noun(text, plural_of(text))


def _read() -> dict[str, Thing]:
    own = {name: colour for colour, names in _OWN_COLOURS.items() for name in names.split(", ")}
    near = {colour: names.split(", ") for colour, names in _NEAR_COLOURS.items()}
    things = {}
    for kind, lines in _TABLE.items():
        for line in lines.strip().splitlines():
            code, _, words = line.strip().partition(" ")
            name, _, synonyms = words.partition(": ")
            others = tuple(map(_noun, filter(None, synonyms.split(", "))))
            things[name] = Thing(
                name=_noun(name),
                synonyms=others,
                code=code.rstrip("*"),
                kind=_OTHER_KINDS.get(name, kind),
                own_colour=own.get(name),
                near_colours=tuple(colour for colour, names in near.items() if name in names),
                recoloured=code.endswith("*"),
            )
    return things


#: Every thing by its name.
THINGS: dict[str, Thing] = _read()
