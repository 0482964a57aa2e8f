"""English names and synonyms for emoji.

Neither the Unicode names of `emoji-datasource` ("FITZPATRICK TYPE-3") nor the terse CLDR names ("family man, woman,
boy", "locked") fit into sentences. These functions convert a CLDR name to a lower-case noun phrase, and select the
short names that are synonyms of it. Pure functions on strings.
"""

import re
import unicodedata
from collections.abc import Iterable


TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}

# Exceptions to the rules. The key is the CLDR name in lower case and ASCII.
_RENAMED = {
    "1st place medal": "first place medal",
    "2nd place medal": "second place medal",
    "3rd place medal": "third place medal",
    "badminton": "badminton racket and shuttlecock",
    "bowling": "bowling ball and pins",
    "breast-feeding": "woman breast-feeding a baby",
    "building construction": "building under construction",
    "camping": "camping tent under stars",
    "cinema": "cinema symbol",
    "collision": "collision burst",
    "construction": "construction barrier",
    "cooking": "frying pan with an egg",
    "copyright": "copyright sign",
    "cricket": "cricket insect",
    "customs": "customs sign",
    "dashing away": "dashing cloud",
    "dizzy": "dizzy star",
    "dna": "dna helix",
    "field hockey": "field hockey stick and ball",
    "fly": "house fly",
    "foggy": "foggy city",
    "high voltage": "high voltage bolt",
    "hourglass done": "hourglass",
    "hourglass not done": "hourglass with flowing sand",
    "ice": "ice cube",
    "ice hockey": "ice hockey stick and puck",
    "index pointing at the viewer": "index finger pointing at the viewer",
    "index pointing up": "index finger pointing up",
    "infinity": "infinity sign",
    "information": "information symbol",
    "input latin letters": "latin letters button",
    "input latin lowercase": "lowercase letters button",
    "input latin uppercase": "uppercase letters button",
    "input numbers": "numbers button",
    "input symbols": "symbols button",
    "kiss": "couple kissing",
    "lacrosse": "lacrosse stick and ball",
    "light rail": "light rail train",
    "locked": "closed padlock",
    "locked with key": "padlock with a key",
    "locked with pen": "padlock with a pen",
    "metro": "metro train",
    "milky way": "milky way galaxy",
    "mobile phone off": "mobile phone off sign",
    "mx claus": "gender-neutral santa",
    "om": "om symbol",
    "passport control": "passport control sign",
    "performing arts": "theatre masks",
    "person beard": "person with a beard",
    "man beard": "man with a beard",
    "woman beard": "woman with a beard",
    "ping pong": "ping pong paddle and ball",
    "play or pause button": "play and pause button",
    "radioactive": "radioactive sign",
    "registered": "registered sign",
    "restroom": "restroom sign",
    "rolling on the floor laughing": "face rolling on the floor laughing",
    "sparkle": "sparkle symbol",
    "speaker high volume": "speaker at high volume",
    "speaker low volume": "speaker at low volume",
    "speaker medium volume": "speaker at medium volume",
    "star-struck": "star-struck face",
    "tennis": "tennis ball",
    "thermometer": "weather thermometer",
    "trade mark": "trade mark sign",
    "unlocked": "open padlock",
    "vibration mode": "vibration mode sign",
    "water closet": "water closet sign",
    "wireless": "wireless symbol",
    "zzz": "sleeping zzz symbol",
}

# Subcategories with names such as "aries", "plus" or "baggage claim", which need a noun after them.
_KIND_OF_SUBCATEGORY = {"math": "sign", "zodiac": "zodiac sign", "warning": "sign", "transport-sign": "sign"}
_NAMED_KINDS = ("sign", "symbol", "room")

_COUNTED = {"boy boy": "two boys", "girl girl": "two girls", "child child": "two children"}
_COUPLES = {"woman, man": "woman and man", "man, man": "two men", "woman, woman": "two women"}
_THE_COUNTRIES = (
    "united ", "british ", "u.s. ", "european ", "bahamas", "comoros", "gambia", "maldives", "netherlands",
    "caribbean ", "philippines", "isle ", "central african", "dominican", "french southern", "palestinian ",
)  # fmt: skip
_COUNTRIES = {
    "hong kong sar china": "hong kong",
    "macao sar china": "macao",
    "myanmar (burma)": "myanmar",
    "cocos (keeling) islands": "cocos islands",
    "congo - kinshasa": "democratic republic of the congo",
    "congo - brazzaville": "republic of the congo",
}

# Subcategories in which short names are usually synonyms.
_NOUN_CATEGORIES = {"Animals & Nature", "Food & Drink", "Objects", "Activities", "Travel & Places"}
_NOUN_SUBCATEGORIES = {"person", "person-role", "person-fantasy", "person-sport"}

# Short names that are not noun phrases, or that name something else than the image shows.
_BAD_SYNONYMS_TEXT = """
    airplane arriving; art; bamboo; bank note; barber; barely sunny; bath; beers; birthday; blue car; boat; boom;
    boot; bowling; breast feeding; bricks; bride with veil; bullettrain front; bullettrain side; busstop; bust in
    silhouette; calling; camel; camping; chart; city sunrise; city sunset; closed lock with key; cloud; clubs;
    compression; construction; cooking; cricket; cyclone; dagger knife; dark sunglasses; dart; date; deciduous
    tree; derelict house building; diamonds; dollar; dolls; dumpling tray; earth africa; earth americas; earth
    asia; email; euro; feet; fishing pole and fish; flags; flipper; foggy; fondue; football; frame with picture;
    fuelpump; golf; gun; handball; handshake; hatched chick; headphones; hearts; helmet with white cross; hocho;
    hotdog; hotsprings; hourglass flowing sand; house buildings; icecream; iphone; izakaya lantern; japan;
    juggling; kiwifruit; knife fork plate; lacrosse; leaves; lightning; lightning cloud; lock with ink pen; loud
    sound; mag; mag right; mailbox; mailbox closed; mailbox with mail; mailbox with no mail; man with gua pi mao;
    man with turban; man wrestling; mate drink; medal; mega; milky way; moneybag; moon; mortar board; mostly sunny;
    mute; no bell; notes; ocean; octagonal sign; office; one; partly sunny; partly sunny rain; person with
    headscarf; post office; pouch; pound; probing cane; put litter in its place; rain cloud; rice scene; rotating
    light; rowboat; running shirt with sash; sandal; school satchel; shoe; ski; sleeping accommodation; sleuth or
    spy; smoking; snow cloud; soccer; sound; spades; sparkles; speaker; spiral calendar pad; stars; steam
    locomotive; stew; sun; sun behind cloud; sun small cloud; sunny; tada; tennis; thermometer; three button mouse;
    tophat; tornado cloud; train; unlock; water polo; wind blowing face; woman wrestling; womans flat shoe;
    wrestlers; yen; zap
"""
_BAD_SYNONYMS = set(" ".join(_BAD_SYNONYMS_TEXT.split()).split("; "))

_SYNONYMS = {
    "angry face": ["mad face"],
    "automobile": ["red car"],
    "cloud with lightning": ["thunder cloud"],
    "cloud with rain": ["rain cloud"],
    "cloud with snow": ["snow cloud"],
    "clapping hands": ["applause"],
    "crying face": ["sad face"],
    "disappointed face": ["unhappy face"],
    "face with medical mask": ["masked face"],
    "face with tears of joy": ["laughing face"],
    "flexed biceps": ["strong arm"],
    "folded hands": ["praying hands"],
    "ghost": ["friendly ghost"],
    "globe showing americas": ["earth globe"],
    "grinning face": ["happy face"],
    "high voltage bolt": ["lightning bolt"],
    "hot beverage": ["cup of coffee"],
    "loudly crying face": ["sobbing face"],
    "nerd face": ["face with glasses"],
    "pile of poo": ["poop"],
    "red heart": ["heart"],
    "smiling cat with heart-eyes": ["cat in love"],
    "smiling face with halo": ["angel face"],
    "smiling face with heart-eyes": ["face in love"],
    "smiling face with horns": ["smiling devil"],
    "smiling face with sunglasses": ["cool face"],
    "soccer ball": ["football"],
    "steaming bowl": ["bowl of ramen"],
    "sweat droplets": ["water drops"],
    "water wave": ["ocean wave"],
    "weary cat": ["screaming cat"],
}


def plain_ascii(text: str) -> str:
    """`text` in lower case, with straight quotes and without accents ("Piñata" becomes "pinata")."""
    text = text.replace("’", "'").replace("“", "").replace("”", "").replace("&", "and")
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(char for char in decomposed if not unicodedata.combining(char)).lower()


def _country_flag(country: str) -> str:
    country = _COUNTRIES.get(country, country)
    definite = country.endswith((" islands", "republic of the congo")) and not country.startswith("south georgia")
    return f"flag of {'the ' if definite or country.startswith(_THE_COUNTRIES) else ''}{country}"


def _clock(time: str) -> str:
    if time.endswith("-thirty"):
        return f"clock showing half past {time.removesuffix('-thirty')}"
    return f"clock showing {time}"


def _family(members: str) -> str:
    text = members.replace(",", "")
    for repeated, counted in _COUNTED.items():
        text = text.replace(repeated, counted)
    text = re.sub(r"^(man man|woman woman|adult adult)", lambda m: f"two {_plural(m.group().split()[0])}", text)
    words = re.findall(r"two \w+|\w+", text)
    phrases = [word if word.startswith("two ") else f"{'an' if word[0] in 'aeiou' else 'a'} {word}" for word in words]
    return "family of " + " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def _plural(noun: str) -> str:
    return noun[:-3] + "men" if noun.endswith("man") else noun + "s"


def readable_name(cldr_name: str, subcategory: str, person_roles: Iterable[str] = ()) -> str:
    """A lower-case English noun phrase for an emoji.

    Args:
        cldr_name: its CLDR short name, like "family man, woman, boy".
        subcategory: its sub-category in `emoji-datasource`, like "family".
        person_roles: CLDR names for a person of any sex: "man judge" becomes "male judge" if "judge" is one.
    """
    name = plain_ascii(cldr_name)
    if name in _RENAMED:
        return _RENAMED[name]
    if subcategory in ("country-flag", "subdivision-flag"):
        return _country_flag(name.removeprefix("flag "))
    if subcategory == "time" and ("o'clock" in name or name.endswith("-thirty")):
        return _clock(name)
    if subcategory == "keycap":
        return {"keycap #": "keycap hash", "keycap *": "keycap star"}.get(name, name)
    if name.startswith("family "):
        return _family(name.removeprefix("family "))
    if name.removeprefix("kiss ") in _COUPLES:
        return f"{_COUPLES[name.removeprefix('kiss ')]} kissing"
    if name.removeprefix("couple with heart ") in _COUPLES:
        return f"{_COUPLES[name.removeprefix('couple with heart ')]} with a heart"
    if subcategory in _KIND_OF_SUBCATEGORY and not name.endswith(_NAMED_KINDS):
        return f"{name} {_KIND_OF_SUBCATEGORY[subcategory]}"
    return _person(_button(name), set(person_roles))


def _button(name: str) -> str:
    name = re.sub(r"^(\w+) button \(blood type\)$", r"blood type \1 button", name)
    return re.sub(r"^(up|on)! ", r"\1 ", name)


def _person(name: str, person_roles: set[str]) -> str:
    name = re.sub(r"^(person|man|woman) bald$", r"bald \1", name)
    name = re.sub(r"^(person|man|woman) (\w+ hair)$", r"\1 with \2", name)
    sex, _, role = name.partition(" ")
    if sex in ("man", "woman") and role in person_roles:
        return f"{'male' if sex == 'man' else 'female'} {role}"
    return name


def readable_synonyms(name: str, short_names: Iterable[str], category: str, subcategory: str) -> list[str]:
    """The short names that are synonyms of `name`, as words. `name` itself is excluded."""
    found = list(_SYNONYMS.get(name, ()))
    if category in _NOUN_CATEGORIES or subcategory in _NOUN_SUBCATEGORIES:
        found += [_words(short_name) for short_name in short_names]
    letters = re.sub(r"\W", "", name)
    usable = [text for text in found if text not in _BAD_SYNONYMS and re.fullmatch(r"[a-z][a-z' -]+", text)]
    different = [text for text in usable if re.sub(r"\W", "", text) != letters]
    return list(dict.fromkeys(different))


def _words(short_name: str) -> str:
    words = plain_ascii(short_name).replace("_", " ").replace("-", " ")
    words = words.removeprefix("lower left ").removeprefix("large ")
    return re.sub(r"\b(\w+) haired\b", r"\1-haired", words)


def readable_tone(variation: str) -> str | None:
    """The words for a key of `skin_variations`: "1F3FD" is "medium", "1F3FB-1F3FF" is "light and dark".

    Raises:
        ValueError: if a part of `variation` is not one of the five skin tone modifiers.
    """
    parts = variation.split("-")
    unknown = [part for part in parts if part not in TONES]
    if unknown:
        raise ValueError(f"`variation` must be made of {', '.join(TONES)} joined by '-', got {variation!r}")
    return " and ".join(dict.fromkeys(TONES[part] for part in parts))
