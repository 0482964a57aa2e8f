"""The tables of benchmarks.world: (title, head, rows), made of the results of its parts."""

import math
from collections.abc import Sequence
from typing import Any

from benchmarks import world_goals as goals
from benchmarks.world_scripts import turn_rows
from benchmarks.world_understanding import DETAIL_ROWS, MAIN_ROWS, Row, row_of


Table = tuple[str, list[str], list[list[str]]]
#: The settings of a part, and its tables.
Tables = tuple[dict[str, Any], list[Table]]


def percent(share: float, error: float | None = None) -> str:
    """ "93%", or "93% ± 3" with a standard error."""
    return f"{share:.0%}" if error is None else f"{share:.0%} ± {100 * error:.0f}"


def judge(made: dict[str, dict[str, Any]]) -> list[Table]:
    """
    The judge's own accuracy, the ceiling of the image tokenizer, and the nearest training scene by words.

    Args:
        made: by kind, the result of the part "judge".
    """
    head, rows = ["kind"], [[kind.replace("_", " ")] for kind in made]
    names = {"real": "real scenes", "tokenizer": "through the tokenizer"}
    for name, title in names.items():
        if not all(name in one for one in made.values()):
            continue
        head += [f"{title}: right", "as GenEval", "style", "background", "detail"]
        for row, one in zip(rows, made.values(), strict=True):
            row += [percent(one[name][key]) for key in ("right", "as_geneval", "style", "background")]
            row.append(f"{one[name]['detail']:.2f}")
    head += ["nearest by words (about 0 by construction)", "the same, trained"]
    for row, one in zip(rows, made.values(), strict=True):
        row += [percent(one[name]["right"]) for name in ("nearest", "nearest, trained")]
    return [("The judge on scenes of unseen combinations, and a baseline", head, rows)]


def images(made: dict[str, dict[str, Any]]) -> list[Table]:
    """
    Images of unseen combinations, and how long one takes, in a batch.

    Args:
        made: by kind, the result of the part "images".
    """
    head = ["kind", "right", *goals.HEAD, "as GenEval", "style", "background", "detail", "images of combinations"]
    rows = []
    for kind, one in made.items():
        right, as_geneval = shares_of(one)
        row = [kind.replace("_", " "), right, *goals.IMAGES[kind], as_geneval]
        row += [percent(one["style"]), percent(one["background"]), f"{one['detail']:.2f}", images_of_combinations(one)]
        rows.append([*row, f"{one['seconds'] / one['prompts']:.1f}"])
    return [("Images of unseen combinations", [*head, "seconds an image"], rows)]


def trained(made: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> list[Table]:
    """
    Images of trained combinations, against those of unseen ones.

    Args:
        made: by kind, the results of unseen and of trained combinations.
    """
    head = [
        "kind",
        "right",
        "as GenEval",
        "detail",
        "images of combinations",
        "right, minus unseen, points",
        *goals.HEAD,
    ]
    rows = []
    for kind, (unseen, one) in made.items():
        row = [kind.replace("_", " "), *shares_of(one), f"{one['detail']:.2f}", images_of_combinations(one)]
        rows.append([*row, difference(one, unseen), *goals.TRAINED_MINUS_UNSEEN])
    return [("Images of trained combinations, against unseen ones", head, rows)]


def shares_of(one: dict[str, Any]) -> tuple[str, str]:
    """The cells "right" and "as GenEval" of a result of images."""
    right = percent(one["right"], one["standard_error"])
    return right, percent(one["as_geneval"], one["standard_error_as_geneval"])


def images_of_combinations(one: dict[str, Any]) -> str:
    """How many images of how many combinations a result is about."""
    return f"{one['prompts']} of {one['combinations']}"


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    """By how many points more images are right in a result than in one of other prompts: "+3 ± 4"."""
    errors = [result["standard_error"] for result in (one, other)]
    return points(one["right"] - other["right"], None if None in errors else math.hypot(*errors))


def points(share: float, error: float | None) -> str:
    """ "+3", or "+3 ± 4" with a standard error."""
    return f"{100 * share:+.0f}" + ("" if error is None else f" ± {100 * error:.0f}")


def wordings(made: dict[str, dict[str, Any]]) -> list[Table]:
    """
    The same prompts in other words, with the difference from the canonical ones and its standard error.

    Args:
        made: by kind, the result of the part "wordings".
    """
    names = list(next(iter(made.values())))

    def cell(name: str, one: dict[str, Any]) -> str:
        if name == "canonical":
            return percent(one["right"])
        if one["same_ids"]:
            return f"{percent(one['right'])} (same ids)"
        return f"{percent(one['right'])} ({points(one['difference'], one['standard_error'])})"

    rows = [
        [kind.replace("_", " "), *(cell(name, one[name]) for name in names), *goals.WORDINGS]
        for kind, one in made.items()
    ]
    return [("Images of unseen combinations by wording, right", ["kind", *names, *goals.HEAD], rows)]


def inpainting(made: dict[str, dict[str, Any]]) -> list[Table]:
    """
    Painting over, and not changing the image at all.

    Args:
        made: by "unseen" and "trained", the result of the part "inpainting".
    """
    rows = [
        [
            *(combinations, who, percent(values["object"]), percent(values["rest"])),
            percent(values["right"], values["standard_error"]),
            *(goals.INPAINTING if (combinations, who) == ("unseen", "model") else goals.NONE),
        ]
        for combinations, one in made.items()
        for who, values in (("model", one["model"]), ("nothing changed", one["copy"]))
    ]
    head = ["combinations", "", "right object", "rest unchanged", "both", *goals.HEAD]
    return [("Painting one thing over with another", head, rows)]


def understanding(made: dict[str, dict[str, Any]]) -> list[Table]:
    """
    Right answers: in the rows that the goals are about, and in detail.

    Args:
        made: by kind, the result of the part "understanding".
    """

    def rows_of(some: Sequence[Row]) -> list[list[str]]:
        rows = []
        for row in some:
            found = row_of(row, made)
            if found is not None:
                count, shares = found
                rows.append([row.name, str(count), *(percent(share) for share in shares.values())])
        return rows

    head = ["question", "number", "model", "blind guess", "nearest question"]
    main = [[*row, *goals.QUESTIONS[row[0]]] for row in rows_of(MAIN_ROWS)]
    return [
        ("Questions about real scenes of unseen combinations", [*head, *goals.HEAD], main),
        ("Questions in detail", head, rows_of(DETAIL_ROWS)),
    ]


def conversations(turns: list[dict[str, Any]]) -> list[Table]:
    """
    Right turns by kind.

    Args:
        turns: the turns of all conversations.
    """
    rows = [
        [name, str(count), percent(share), *(goals.TURNS if name == "all" else goals.NONE)]
        for name, count, share in turn_rows(turns)
    ]
    return [("Turns of scripted conversations", ["turn", "number", "right", *goals.HEAD], rows)]
