"""The official scores of understanding benchmarks: VQAv2, POPE, MME, and multiple choice.

Pure functions on texts. A report is a table: a dictionary of rows, each a dictionary of columns. Shares are in percent.
The references of a report are the lines of the question files, as dictionaries.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import mean
from typing import Any


Report = dict[str, dict[str, float]]
Line = Mapping[str, Any]


# VQAv2 (arXiv:1612.00837, and arXiv:1505.00468 for the accuracy)

_PUNCTUATION = r';/[]"{}()=+\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")  # not a decimal point
_ARTICLES = {"a", "an", "the"}
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}

# The words that take each ending in the official list of contractions, such as "dont" for "don't".
_ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "'ve": "could might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'ll": "how it somebody someone something they what who why you",
    "'re": "there they what why you",
    "'s": "he how somebody someone that there what when where who why",
}
_DOUBLE_ENDINGS = {
    ("n't", "'ve"): "could had might should would",
    ("'d", "'ve"): "he it she somebody someone something there they we who y'all you",
}
_OTHER_CONTRACTIONS = {
    "maam": "ma'am",
    "oclock": "o'clock",
    "twas": "'twas",
    "yall": "y'all",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    "yall'd've": "y'all'd've",
    **dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at"),
    "somebody'd": "somebodyd",  # as in the official list
}


def _contractions() -> dict[str, str]:
    """Map words without their apostrophe to the contractions."""
    found = dict(_OTHER_CONTRACTIONS)
    for ending, words in _ENDINGS.items():
        found |= {word + ending.replace("'", ""): word + ending for word in words.split()}
    for (first, second), words in _DOUBLE_ENDINGS.items():
        for word in words.split():
            whole = word + first + second
            found[word + first.replace("'", "") + second] = whole
            found[word + first + second.replace("'", "")] = whole
    return found


_CONTRACTIONS = _contractions()


@lru_cache(maxsize=2**16)  # many answers are equal
def normalize_answer(text: str) -> str:
    """Normalize an answer as VQAv2 does: lower case, no punctuation and articles, numbers as digits."""
    text = text.replace("\n", " ").replace("\t", " ").strip()
    bare = text
    number = _COMMA_IN_NUMBER.search(text) is not None
    for sign in _PUNCTUATION:
        goes = number or f"{sign} " in text or f" {sign}" in text
        bare = bare.replace(sign, "" if goes else " ")
    words = [_DIGITS.get(word, word) for word in _FULL_STOP.sub("", bare).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """
    The mean over the people of `min(matches among the others / 3, 1)`, in [0, 1].

    Always normalizes both sides. The official script does not if all people give the same answer, so there "Yes." is
    wrong.
    """
    normalized = normalize_answer(answer)
    matches = [normalize_answer(human) == normalized for human in human_answers]
    return mean(min((sum(matches) - match) / 3, 1.0) for match in matches)


def vqa_report(answers: Sequence[str], lines: Sequence[Line]) -> Report:
    """Accuracy overall, by "answer_type" and by "question_type"; `lines` have "answers", one text a person."""
    accuracies = [vqa_accuracy(answer, line["answers"]) for answer, line in zip(answers, lines, strict=True)]
    report = {"overall": _mean_row(accuracies)}
    for field in ("answer_type", "question_type"):
        for name, rows in group_by(field, lines).items():
            report[f"{field.replace('_', ' ')}: {name}"] = _mean_row([accuracies[row] for row in rows])
    return report


# POPE (arXiv:2305.10355)


def pope_decision(answer: str) -> str:
    """ "no" if the first sentence has the word "no", "No" or "not", else "yes"."""
    words = answer.split(".")[0].replace(",", "").split()
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def binary_scores(decisions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """
    The accuracy of "yes" and "no", and the precision, recall and F1 of "yes". A quotient with denominator 0 is 0.
    """
    pairs = list(zip(decisions, labels, strict=True))
    hits = pairs.count(("yes", "yes"))
    said, right = decisions.count("yes"), labels.count("yes")
    return {
        "questions": len(pairs),
        "accuracy": percent(sum(decision == label for decision, label in pairs), len(pairs)),
        "precision": percent(hits, said),
        "recall": percent(hits, right),
        "f1": percent(2 * hits, said + right),
        "yes_ratio": percent(said, len(pairs)),
    }


def pope_report(answers: Sequence[str], lines: Sequence[Line]) -> Report:
    """A row per "category", their mean as in papers, and a row for all questions. `lines` have a "label"."""
    decisions = [pope_decision(answer) for answer in answers]
    labels = [line["label"] for line in lines]
    report = {
        name: binary_scores([decisions[row] for row in rows], [labels[row] for row in rows])
        for name, rows in group_by("category", lines).items()
    }
    if len(report) > 1:
        columns = ("accuracy", "precision", "recall", "f1", "yes_ratio")
        report["mean"] = {column: mean(row[column] for row in report.values()) for column in columns}
    return report | {"all": binary_scores(decisions, labels)}


# MME (arXiv:2306.13394)

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")


def mme_decision(answer: str) -> str:
    """ "yes" or "no" if the first four letters contain it, else "other", which is never right."""
    beginning = answer.strip().lower()[:4]
    return next((word for word in ("yes", "no") if word in beginning), "other")


def mme_report(answers: Sequence[str], lines: Sequence[Line]) -> Report:
    """
    The scores of each "category" (task), and their sums over the tasks of perception, cognition, and others.

    acc is the share of right answers, acc+ the share of images with two right answers. The score is acc + acc+.
    """
    right = [mme_decision(answer) == line["label"] for answer, line in zip(answers, lines, strict=True)]
    other = [mme_decision(answer) == "other" for answer in answers]
    report: Report = {}
    for task, rows in group_by("category", lines).items():
        images = group_by("image", lines, rows).values()
        acc = percent(sum(right[row] for row in rows), len(rows))
        acc_plus = percent(sum(all(right[row] for row in pair) for pair in images), len(images))
        report[task] = {
            "questions": len(rows),
            "acc": acc,
            "acc_plus": acc_plus,
            "score": acc + acc_plus,
            "neither_yes_nor_no": sum(other[row] for row in rows),
        }
    tasks = {"perception": PERCEPTION, "cognition": COGNITION}
    tasks["other tasks"] = tuple(task for task in report if task not in PERCEPTION + COGNITION)
    sums = {name: [report[task]["score"] for task in members if task in report] for name, members in tasks.items()}
    return report | {f"sum, {name}": {"score": sum(scores)} for name, scores in sums.items() if scores}


# Multiple choice


def choice_report(answers: Sequence[str], lines: Sequence[Line]) -> Report:
    """The share of right choices, overall and by "category". `lines` have the right choice as "answer"."""
    right = [float(answer == line["answer"]) for answer, line in zip(answers, lines, strict=True)]
    report = {"overall": _mean_row(right)}
    groups = group_by("category", lines)
    return report | {f"category: {name}": _mean_row([right[row] for row in rows]) for name, rows in groups.items()}


def choose(log_likelihoods: Sequence[float], lengths: Sequence[int], normalize: bool) -> int:
    """The index of the likeliest answer, by log-likelihood, or by mean log-likelihood per id with `normalize`."""
    scores = [score / length if normalize else score for score, length in zip(log_likelihoods, lengths, strict=True)]
    return scores.index(max(scores))


# Helpers


def group_by(field: str, lines: Sequence[Line], rows: Sequence[int] | None = None) -> dict[str, list[int]]:
    """Group rows by the value of a field, in order of appearance. Skips lines without the field."""
    groups: dict[str, list[int]] = {}
    for row in range(len(lines)) if rows is None else rows:
        if field in lines[row]:
            groups.setdefault(lines[row][field], []).append(row)
    return groups


def percent(part: float, whole: float) -> float:
    """100 part / whole; 0 if `whole` is 0."""
    return 100 * part / whole if whole else 0.0


def _mean_row(shares: Sequence[float]) -> dict[str, float]:
    return {"questions": len(shares), "accuracy": 100 * mean(shares)}
