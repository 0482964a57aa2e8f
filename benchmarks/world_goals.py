"""What a model of the world must reach ("at least") and shall reach ("goal"), for the tables of benchmarks.world."""

from typing import NamedTuple


class Goal(NamedTuple):
    """Two cells of a table."""

    at_least: str
    goal: str


HEAD = ("at least", "goal")
NONE = Goal("", "")
#: Images of unseen combinations, by kind.
IMAGES = {
    "single": Goal("90%", "98%"),
    "colours": Goal("80%", "90%"),
    "counting": Goal("75%", "88%"),
    "two_objects": Goal("75%", "88%"),
    "position": Goal("60%", "80%"),
    "binding": Goal("50%", "75%"),
}
#: Images of trained combinations, against unseen ones.
TRAINED_MINUS_UNSEEN = Goal("at most 8 points", "at most 5 points")
#: Every wording, against the canonical one.
WORDINGS = Goal("within 5 points", "within 2 points")
#: Of unseen combinations: the right object, and the rest unchanged.
INPAINTING = Goal("70%", "90%")
#: Questions about real scenes of unseen combinations, by the rows of the table.
QUESTIONS = {
    "what": Goal("75%", "90%"),
    "how many": Goal("90%", "98%"),
    "colour": Goal("90%", "97%"),
    "where": Goal("75%", "90%"),
    "yes/no": Goal("85%", "95%"),
}
#: All turns of the scripted conversations.
TURNS = Goal("60%", "85%")
