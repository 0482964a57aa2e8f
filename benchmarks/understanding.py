"""How well does a model understand images? Asks the questions of files, and reports the scores of VQAv2, POPE or MME.

Run as

    python benchmarks/understanding.py --model FOLDER --format pope --images val2014 --answers answers.jsonl \\
        --questions coco_pope_random.jsonl coco_pope_popular.jsonl coco_pope_adversarial.jsonl

Every line of a file is a JSON object with "question" (or "text"), "image" (a file below `--images`), and optionally
"question_id". Further fields by format:

- vqa: "answers" of ten people, as texts or as {"answer": text}; optionally "answer_type" and "question_type".
- pope: "label", "yes" or "no"; optionally "category" (default: taken from the file name).
- mme: "answer", "yes" or "no"; "category", the task. Every image has two questions per task.
- choice: "choices", a list of texts; "answer", one of them or its index from 0; optionally "category".

Answers are generated greedily. `--score` takes the likeliest of the given answers instead: "yes" or "no", or one of
"choices". Answers are written batch by batch, and the same command resumes an interrupted run.
"""

import argparse
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import print_table
from tqdm.auto import tqdm
from understanding_scores import Report, choice_report, choose, mme_report, pope_report, vqa_report

from showo_hf import EMBEDDED_MODEL, ShowoMMUPipeline
from showo_hf.processing.images import load_image
from showo_hf.utils.argument_types import DTYPES, positive_integer


REPORTS = {"vqa": vqa_report, "pope": pope_report, "mme": mme_report, "choice": choice_report}
#: With `--score`, the probability of yes or no is the sum over these texts as whole answers.
DECISIONS = {"yes": ("yes", "Yes", "yes.", "Yes."), "no": ("no", "No", "no.", "No.")}
LEAST_PEOPLE = 4  # with fewer human answers no accuracy reaches 1, because one answer is always left out
POPE_CATEGORIES = ("random", "popular", "adversarial")


class InputError(Exception):
    """An invalid file. The message names the file and the line."""


@dataclass(frozen=True)
class Question:
    """
    Args:
        source: file and line, for error messages.
        image: the image file.
        text: the question.
        line: the checked fields for the report: "answers", or "label", or "choices" and "answer"; "category", ...
    """

    source: str
    image: Path
    text: str
    line: dict[str, Any]


# Reading the questions


def read_questions(files: Sequence[Path], images: Path, kind: str, scored: bool) -> list[Question]:
    """
    Read the questions of all files.

    Raises:
        InputError: for the first invalid line, with the number of further ones.
    """
    questions, problems = [], []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").split("\n")  # not at other line ends of Unicode
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read: {error}.") from error
        for number, text in enumerate(lines, start=1):
            source = f"{file.name}, line {number}"
            try:
                if text.strip():
                    questions.append(read_question(text, source, file, images, kind, scored))
            except ValueError as error:
                problems.append(f"{source}: {error}")
    if not problems and kind == "mme":
        problems = unpaired(questions)
    raise_first(problems)
    if not questions:
        raise InputError(f"{', '.join(file.name for file in files)}: no questions in there.")
    return questions


def read_question(text: str, source: str, file: Path, images: Path, kind: str, scored: bool) -> Question:
    """Parse one line of a file. Raises `ValueError` with the name of an invalid field."""
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error}).") from error
    if not isinstance(raw, dict):
        raise ValueError(f"must be a JSON object, got {type(raw).__name__}.")
    asked = text_field(raw, "question" if "question" in raw else "text")
    line = {"image": text_field(raw, "image"), "question_id": raw.get("question_id")}
    line |= {name: text_field(raw, name) for name in ("category", "answer_type", "question_type") if name in raw}
    if kind == "vqa":
        line["answers"] = human_answers(raw)
        if scored:
            line["choices"] = choices(raw)
    elif kind == "choice":
        line["choices"] = choices(raw)
        line["answer"] = right_choice(raw, line["choices"])
    else:
        line["label"] = yes_or_no(raw, "label" if "label" in raw else "answer")
        line.setdefault("category", category_of(file) if kind == "pope" else text_field(raw, "category"))
    return Question(source, images / line["image"], asked, line)


def text_field(raw: dict, name: str) -> str:
    """A field that must be a non-empty text."""
    value = raw.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"`{name}` must be a text, got {value!r:.60}.")
    return value


def human_answers(raw: dict) -> list[str]:
    """The human "answers" as texts."""
    answers = raw.get("answers")
    found = (
        [one.get("answer") if isinstance(one, dict) else one for one in answers] if isinstance(answers, list) else []
    )
    if len(found) < LEAST_PEOPLE or not all(isinstance(one, str) for one in found):
        raise ValueError(f"`answers` must be the answers of at least {LEAST_PEOPLE} people, got {answers!r:.60}.")
    return found


def choices(raw: dict) -> list[str]:
    """The "choices": at least two different texts."""
    found = raw.get("choices")
    if not isinstance(found, list) or not all(isinstance(one, str) and one.strip() for one in found):
        raise ValueError(f"`choices` must be a list of texts, got {found!r:.60}.")
    if len(set(found)) < max(2, len(found)):
        raise ValueError(f"`choices` must be at least two different texts, got {found!r:.60}.")
    return found


def right_choice(raw: dict, texts: list[str]) -> str:
    """The "answer" as one of the choices."""
    answer = raw.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        return texts[answer]
    if answer not in texts:
        raise ValueError(f"`answer` must be one of `choices` or its index from 0, got {answer!r:.60}.")
    return answer


def yes_or_no(raw: dict, name: str) -> str:
    """A field that must be "yes" or "no", in upper or lower case."""
    value = raw.get(name)
    if not isinstance(value, str) or value.strip().lower() not in DECISIONS:
        raise ValueError(f"`{name}` must be 'yes' or 'no', got {value!r:.60}.")
    return value.strip().lower()


def category_of(file: Path) -> str:
    """The category in the name of a POPE file."""
    return next((name for name in POPE_CATEGORIES if name in file.stem), file.stem)


def unpaired(questions: Sequence[Question]) -> list[str]:
    """Errors for MME images that do not have two questions per task."""
    pairs = Counter((question.line["category"], question.image) for question in questions)
    return [
        f"{question.source}: an image must have 2 questions per task, but {question.line['image']} "
        f"has {pairs[question.line['category'], question.image]} of {question.line['category']!r}."
        for question in questions
        if pairs[question.line["category"], question.image] != 2
    ]


def check_images(questions: Sequence[Question]):
    """
    Open every image once.

    Raises:
        InputError: for the first image that cannot be read, with the number of further ones.
    """
    first: dict[Path, Question] = {}
    for question in questions:
        first.setdefault(question.image, question)
    problems = []
    for question in tqdm(first.values(), desc="images", disable=not sys.stderr.isatty()):
        try:
            if not question.image.is_file():
                raise ValueError("no such file.")
            load_image(question.image, "image")
        except ValueError as error:
            problems.append(f"{question.source}: image {question.line['image']!r}: {error}")
    raise_first(problems)


def raise_first(problems: Sequence[str]):
    """Raise `InputError` with the first problem, if any, and the number of further ones."""
    if problems:
        more = f" (And {len(problems) - 1} more.)" if len(problems) > 1 else ""
        raise InputError(problems[0] + more)


# Answers


class AnswerFile:
    """
    A JSON lines file of answers. A later run resumes from it.

    Args:
        path: the file; created if it is missing.
        run: identifies runs with the same questions, model and options.

    Raises:
        InputError: if the file has the answers of another run, or another format.
    """

    def __init__(self, path: Path, run: str):
        self.path, self.run = path, run
        self.answers: dict[int, str] = {}  # by the index of the question
        if path.exists():
            self.read()
        path.parent.mkdir(parents=True, exist_ok=True)

    def read(self):
        """Read the answers of the file, and remove an incomplete last line."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, text in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(text)
                run, index, answer = row["run"], row["index"], row["answer"]
            except (ValueError, TypeError, KeyError) as error:
                raise InputError(f"{self.path.name}, line {number}: is not an answer of this script.") from error
            if run != self.run:
                raise InputError(
                    f"{self.path.name}, line {number}: comes from a run with another model, other questions or other "
                    "options; use another file for `--answers`, or delete this one."
                )
            self.answers[index] = answer
        if whole != content:
            os.truncate(self.path, len(whole))

    def append(self, rows: Sequence[dict[str, Any]]):
        """Append rows with "index" and "answer" to the file."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"run": self.run, **row}, ensure_ascii=False) + "\n" for row in rows)
        self.answers |= {row["index"]: row["answer"] for row in rows}


def run_name(options: argparse.Namespace, questions: Sequence[Question]) -> str:
    """A hash of everything that the answers depend on."""
    named = ("model", "dtype", "format", "score", "normalize", "suffix", "max_new_tokens")
    settings = {name: getattr(options, name) for name in named}
    content = [[question.text, question.line["image"], question.line.get("choices")] for question in questions]
    return hashlib.sha256(json.dumps([settings, content]).encode()).hexdigest()[:16]


def answer(pipe: ShowoMMUPipeline, questions: Sequence[Question], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Answer a batch of questions: rows with "answer", and "log_likelihoods" with `--score`."""
    images = [str(question.image) for question in questions]
    prompts = [question.text + options.suffix for question in questions]
    if not options.score:
        texts = pipe(images, prompts, max_new_tokens=options.max_new_tokens, batch_size=options.batch_size).texts
        return [{"answer": text.strip()} for text in texts]
    if options.format in ("pope", "mme"):
        texts = [text for decision in DECISIONS.values() for text in decision]
        scores = pipe.score(images, prompts, texts, batch_size=options.batch_size).log_likelihoods
        return [decide(one) for one in scores]
    candidates = [question.line["choices"] for question in questions]
    scored = pipe.score(images, prompts, candidates, batch_size=options.batch_size)
    rows = []
    for texts, likelihoods, lengths in zip(candidates, scored.log_likelihoods, scored.lengths, strict=True):
        best = choose(likelihoods.tolist(), lengths.tolist(), options.normalize)
        rows.append({"answer": texts[best], "log_likelihoods": likelihoods.tolist()})
    return rows


def decide(log_likelihoods: torch.Tensor) -> dict[str, Any]:
    """The likelier of yes and no, from the log-likelihoods of all texts in `DECISIONS` in order."""
    parts = log_likelihoods.split([len(texts) for texts in DECISIONS.values()])
    totals = [part.logsumexp(0).item() for part in parts]
    return {"answer": list(DECISIONS)[totals.index(max(totals))], "log_likelihoods": totals}


def by_image(questions: Sequence[Question], rows: Sequence[int]) -> list[int]:
    """Sort rows so that the questions about an image are consecutive."""
    first: dict[Path, int] = {}
    for row in rows:
        first.setdefault(questions[row].image, row)
    return sorted(rows, key=lambda row: first[questions[row].image])


def answer_all(questions: Sequence[Question], answers: AnswerFile, options: argparse.Namespace):
    """Answer the open questions. The model is loaded after all images were checked."""
    open_rows = [row for row in range(len(questions)) if row not in answers.answers]
    check_images([questions[row] for row in open_rows])
    if not open_rows:
        return
    pipe = ShowoMMUPipeline.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).to(options.device)
    order = by_image(questions, open_rows)
    with tqdm(total=len(questions), initial=len(questions) - len(order), disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(order), options.batch_size):
            chunk = order[start : start + options.batch_size]
            try:
                found = answer(pipe, [questions[row] for row in chunk], options)
            except ValueError as error:
                raise InputError(f"{questions[chunk[0]].source}, or one of the next: {error}") from error
            ids = [{"index": row, "question_id": questions[row].line["question_id"]} for row in chunk]
            answers.append([known | new for known, new in zip(ids, found, strict=True)])
            bar.update(len(chunk))


# Report


def print_report(report: Report):
    """Print the report as one table, with shares in percent."""
    columns = list(dict.fromkeys(column for row in report.values() for column in row))
    cells = [
        [name, *(f"{row[c]:.2f}" if isinstance(row.get(c), float) else row.get(c, "") for c in columns)]
        for name, row in report.items()
    ]
    print_table(["", *(column.replace("_", " ") for column in columns)], cells)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--model", default=EMBEDDED_MODEL, help="pipeline folder or Hub name (default: the embedded model)"
    )
    parser.add_argument("--format", required=True, choices=tuple(REPORTS))
    parser.add_argument("--questions", required=True, nargs="+", type=Path, help="files with one JSON object a line")
    parser.add_argument("--images", required=True, type=Path, help="the folder of the images")
    parser.add_argument("--answers", required=True, type=Path, help="file for the answers; resumes an existing file")
    parser.add_argument(
        "--score", action="store_true", help="take the likeliest of the given answers; always on for `choice`"
    )
    parser.add_argument(
        "--normalize", action="store_true", help="divide the log-likelihood of choices by their length"
    )
    parser.add_argument("--suffix", default="", help="text after each question, such as ' Answer with one word.'")
    parser.add_argument("--max-new-tokens", type=positive_integer, default=32)
    parser.add_argument("--batch-size", type=positive_integer, default=8)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    options.score = options.score or options.format == "choice"
    if options.normalize and not (options.score and options.format in ("vqa", "choice")):
        parser.error("argument --normalize: needs choices: use --format choice, or --format vqa --score")
    return options


def main(arguments: Sequence[str] | None = None):
    options = parse(arguments)
    try:
        questions = read_questions(options.questions, options.images, options.format, options.score)
        answers = AnswerFile(options.answers, run_name(options, questions))
        answer_all(questions, answers, options)
    except InputError as error:
        raise SystemExit(f"error: {error}") from error
    found = [answers.answers[row] for row in range(len(questions))]
    report = REPORTS[options.format](found, [question.line for question in questions])
    if options.json:
        print(json.dumps(report))
    else:
        print_report(report)


if __name__ == "__main__":
    main()
