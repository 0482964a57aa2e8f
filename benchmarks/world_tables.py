"""The tables of benchmarks.world: (title, head, rows), made of the results of its parts."""

from collections.abc import Sequence
from typing import Any

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


def images(made: dict[str, tuple[dict[str, Any], dict[str, Any]]]) -> list[Table]:
    """
    Images of unseen and of trained combinations.

    Args:
        made: by kind, the results of both.
    """
    head = ["kind", "right", "as GenEval", "style", "background", "detail", "images of combinations"]
    head += ["trained: right", "as GenEval", "detail", "images of combinations"]
    rows = []
    for kind, (unseen, trained) in made.items():
        right = percent(unseen["right"], unseen["standard_error"])
        as_geneval = percent(unseen["as_geneval"], unseen["standard_error_as_geneval"])
        row = [kind.replace("_", " "), right, as_geneval, percent(unseen["style"]), percent(unseen["background"])]
        row += [f"{unseen['detail']:.2f}", f"{unseen['prompts']} of {unseen['combinations']}"]
        row += [percent(trained["right"], trained["standard_error"])]
        row += [percent(trained["as_geneval"], trained["standard_error_as_geneval"])]
        rows.append([*row, f"{trained['detail']:.2f}", f"{trained['prompts']} of {trained['combinations']}"])
    return [("Images of unseen and of trained combinations", head, rows)]


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
        error = "" if one["standard_error"] is None else f" ± {100 * one['standard_error']:.0f}"
        return f"{percent(one['right'])} ({100 * one['difference']:+.0f}{error})"

    rows = [[kind.replace("_", " "), *(cell(name, one[name]) for name in names)] for kind, one in made.items()]
    return [("Images of unseen combinations by wording, right", ["kind", *names], rows)]


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
        ]
        for combinations, one in made.items()
        for who, values in (("model", one["model"]), ("nothing changed", one["copy"]))
    ]
    return [
        ("Painting one thing over with another", ["combinations", "", "right object", "rest unchanged", "both"], rows)
    ]


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
    return [
        ("Questions about real scenes of unseen combinations", head, rows_of(MAIN_ROWS)),
        ("Questions in detail", head, rows_of(DETAIL_ROWS)),
    ]


def conversations(turns: list[dict[str, Any]]) -> list[Table]:
    """
    Right turns by kind.

    Args:
        turns: the turns of all conversations.
    """
    rows = [[name, str(count), percent(share)] for name, count, share in turn_rows(turns)]
    return [("Turns of scripted conversations", ["turn", "number", "right"], rows)]
