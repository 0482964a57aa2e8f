"""How well does the embedded model understand emoji? Prints the tables of docs/embedded_model.md. Run from the root:

    python -m recipes.emoji.emoji --output data/emoji --size 96
    python -m benchmarks.embedded_understanding --data data/emoji

The images are all held-out images and some training images, without skin tones. The questions about each image ask for
its name, caption and style, and for its kind and main colour if it has them. Two more questions per topic have the
answers yes and no. The model answers greedily. Two baselines see no image: the model with a white image, and the most
common right answer of the training set.

An answer names the emoji if the longest name or synonym in it belongs to that emoji.
"""

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import torch
from benchmarks.measuring import print_table
from PIL import Image
from tqdm.auto import tqdm

from recipes.colours import main_colour
from recipes.emoji.captions import CANONICAL_STYLE, canonical_caption, with_article
from recipes.emoji.conversations import (
    ALL_KINDS,
    ANSWERED_COLOURS,
    CAPTION_QUESTIONS,
    COLOUR_QUESTIONS,
    KIND_QUESTIONS,
    NAME_QUESTIONS,
    STYLE_QUESTIONS,
    STYLE_WORDS,
    YES_NO_QUESTIONS,
    Question,
    kinds_of,
)
from recipes.emoji.emoji import STYLES, EmojiDataset, EmojiRecord, load_emoji
from showo_hf import EMBEDDED_MODEL, ShowoMMUPipeline
from showo_hf.utils.argument_types import positive_integer, seed_number


MAX_NEW_TOKENS = 40  # the longest caption has 23 ids
#: The measures in the order of the table, with the target for held-out images in percent.
MEASURES: dict[str, float | None] = {
    "name, word for word": None,
    "name": 50,
    "caption names the emoji": 50,
    "caption has the right style": 70,
    "style": 70,
    "main colour": None,
    "kind": None,
    "yes or no": 80,
    "yes or no, name": None,
    "yes or no, style": None,
    "yes or no, kind": None,
    "yes or no, colour": None,
}
Phrases = Mapping[tuple[str, ...], str]


# Questions


def questions_about(
    record: EmojiRecord, colour: str | None, others: Sequence[EmojiRecord], rng: random.Random
) -> list[Question]:
    """All questions about an image. Only the wrong facts of questions with the answer "no" are random."""
    kinds = kinds_of(record)
    questions = [
        Question("name", NAME_QUESTIONS[0], f"{with_article(record.name)}."),
        Question("caption", CAPTION_QUESTIONS[0], f"{canonical_caption(record)}."),
        Question("style", STYLE_QUESTIONS[0], f"{CANONICAL_STYLE[record.style]}."),
    ]
    if colour:
        questions.append(Question("colour", COLOUR_QUESTIONS[0], f"{colour}."))
    if kinds:
        questions.append(Question("kind", KIND_QUESTIONS[0], f"{kinds[0]}."))
    return questions + list(yes_no_questions(record, colour, others, rng))


def yes_no_questions(
    record: EmojiRecord, colour: str | None, others: Sequence[EmojiRecord], rng: random.Random
) -> Iterator[Question]:
    """Two questions per topic, with the answers yes and no."""
    other = rng.choice([other for other in others if other.unified != record.unified])
    style = rng.choice([style for style in STYLES if style != record.style])
    pairs = {
        "name": (with_article(record.name), with_article(other.name)),
        "style": tuple(f"in {STYLE_WORDS[one]} style" for one in (record.style, style)),
    }
    if kinds := kinds_of(record):
        pairs["kind"] = (rng.choice(kinds), rng.choice([kind for kind in ALL_KINDS if kind not in kinds]))
    if colour:
        wrong = rng.choice([name for name in ANSWERED_COLOURS if name != colour])
        pairs["colour"] = (f"mostly {colour}", f"mostly {wrong}")
    for topic, asked in pairs.items():
        for text, answer in zip(asked, ("yes.", "no."), strict=True):
            yield Question(f"yes/no {topic}", YES_NO_QUESTIONS[0].format(text), answer)


# Judgement


def words(text: str) -> tuple[str, ...]:
    """The words of a text in lower case. "medium-light" is two words."""
    return tuple(re.findall(r"[^\s,.:;!?]+", text.lower().replace("-", " ")))


def known_phrases(records: Sequence[EmojiRecord]) -> Phrases:
    """Map every name and synonym to its emoji, as the code without skin tone."""
    return {words(phrase): record.unified for record in records for phrase in (record.name, *record.synonyms)}


def named_emoji(answer: str, phrases: Phrases) -> str | None:
    """The emoji of the longest known phrase in an answer, the first of equally long ones."""
    said = words(answer)
    spans = ((start, length) for length in range(len(said), 0, -1) for start in range(len(said) - length + 1))
    return next((phrases[said[s : s + n]] for s, n in spans if said[s : s + n] in phrases), None)


def named_style(answer: str) -> str | None:
    """The style that an answer names; None if it names none or several."""
    named = [style for style, name in CANONICAL_STYLE.items() if name in answer.lower()]
    return named[0] if len(named) == 1 else None


def judge(question: Question, record: EmojiRecord, answer: str, phrases: Phrases) -> dict[str, bool]:
    """Whether an answer is right, by measure."""
    same = answer.strip().lower().rstrip(".") == question.answer.rstrip(".")
    named = named_emoji(answer, phrases) == record.unified
    if question.kind == "name":
        return {"name, word for word": same, "name": named}
    if question.kind == "caption":
        return {"caption names the emoji": named, "caption has the right style": named_style(answer) == record.style}
    if question.kind.startswith("yes/no "):
        return {"yes or no": same, f"yes or no, {question.kind.removeprefix('yes/no ')}": same}
    return {{"colour": "main colour"}.get(question.kind, question.kind): same}


# Answers


@dataclass(frozen=True)
class Asked:
    """A question about an image, with the answers of the model and the baselines."""

    record: EmojiRecord
    question: Question
    answers: dict[str, str]


def commonest_answers(records: Sequence[EmojiRecord], colours: Sequence[str | None]) -> dict[str, str]:
    """The most common right answer by kind of question. Yes and no are equally common."""

    def most(values) -> str:
        return Counter(value for value in values if value).most_common(1)[0][0]

    name = with_article(most(record.name for record in records))
    style = CANONICAL_STYLE[most(record.style for record in records)]
    answers = {"name": f"{name}.", "caption": f"{name}, {style}.", "style": f"{style}."}
    if any(colours):
        answers["colour"] = f"{most(colours)}."
    if any(kinds_of(record) for record in records):
        answers["kind"] = f"{most((kinds_of(record) or (None,))[0] for record in records)}."
    return answers


def ask(pipe: ShowoMMUPipeline, image: Image.Image, questions: Sequence[str], batch_size: int) -> list[str]:
    """The answers of the model to questions about one image."""
    return pipe(image, list(questions), max_new_tokens=MAX_NEW_TOKENS, batch_size=batch_size).texts


def ask_about(
    pipe: ShowoMMUPipeline,
    data: EmojiDataset,
    rows: Sequence[int],
    others: Sequence[EmojiRecord],
    commonest: Mapping[str, str],
    seed: int,
    batch_size: int,
) -> list[Asked]:
    """All questions about all images, with all answers."""
    asked = []
    for row in tqdm(rows, desc="images", disable=not sys.stderr.isatty()):
        record = data.records[row]
        # Seeded by the image, so that its questions do not depend on the other images.
        rng = random.Random(f"{seed} {record.code} {record.style}")
        questions = questions_about(record, main_colour(data.images[row]), others, rng)
        texts = ask(pipe, Image.fromarray(data.images[row]), [q.text for q in questions], batch_size)
        for question, text in zip(questions, texts, strict=True):
            answers = {"model": text, "commonest answer": commonest.get(question.kind, "yes.")}
            asked.append(Asked(record, question, answers))
    different = list(dict.fromkeys(one.question.text for one in asked))
    height, width = data.images.shape[1:3]
    white = Image.new("RGB", (width, height), "white")
    blind = dict(zip(different, ask(pipe, white, different, batch_size), strict=True))
    return [Asked(one.record, one.question, one.answers | {"white image": blind[one.question.text]}) for one in asked]


# Results


def summarize(asked: Sequence[Asked], phrases: Phrases) -> dict[str, dict[str, float]]:
    """By measure: the number of questions, and the share of right answers of the model and the baselines."""
    found: dict[str, dict[str, list[bool]]] = {}
    for one in asked:
        for who, answer in one.answers.items():
            for measure, right in judge(one.question, one.record, answer, phrases).items():
                found.setdefault(measure, {}).setdefault(who, []).append(right)
    return {
        measure: {"questions": len(found[measure]["model"])} | {who: mean(r) for who, r in found[measure].items()}
        for measure in MEASURES
        if measure in found
    }


def without_tone(data: EmojiDataset, rows: Iterable[int]) -> list[int]:
    """The rows without skin tone. No question depends on the skin tone."""
    return [int(row) for row in rows if data.records[row].tone is None]


def choose(data: EmojiDataset, held_out: int | None, training: int, seed: int) -> dict[str, list[int]]:
    """The measured rows: random samples of the given sizes; None takes all rows."""
    sets = {"held out": (data.held_out_indices, held_out), "training": (data.train_indices, training)}
    chosen = {}
    for name, (indices, count) in sets.items():
        rows = without_tone(data, indices)
        chosen[name] = rows if count is None else random.Random(seed).sample(rows, min(count, len(rows)))
    return chosen


def print_result(name: str, images: int, summary: Mapping[str, Mapping[str, float]]):
    """Print the table of one set of images, in percent."""
    who = ("model", "white image", "commonest answer")
    rows = []
    for measure, row in summary.items():
        wanted = MEASURES[measure] if name == "held out" else None
        cells = [f"{row[one]:.1%}" for one in who]
        rows.append([measure, row["questions"], *cells, f"at least {wanted}%" if wanted else ""])
    print(f"{name}, {images} images\n")
    print_table(["right answers", "questions", *who, "wanted"], rows)


def write_answers(path: Path, sets: Mapping[str, Sequence[Asked]]):
    """Write every question with its answers as a JSON line."""
    with path.open("w", encoding="utf-8") as file:
        for name, asked in sets.items():
            for one in asked:
                about = {"set": name, "code": one.record.code, "style": one.record.style}
                file.write(json.dumps({**about, **asdict(one.question), "answers": one.answers}) + "\n")


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--data", required=True, help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument("--model", default=EMBEDDED_MODEL, help="a pipeline folder or Hub name")
    parser.add_argument("--captions", type=positive_integer, default=500, help="number of training images")
    parser.add_argument("--held-out", type=positive_integer, help="number of held-out images (default: all)")
    parser.add_argument("--batch-size", type=positive_integer, default=16, help="questions per batch")
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--answers", type=Path, help="JSON lines file for all questions and answers")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    options = parser.parse_args(arguments)

    data = load_emoji(options.data)
    pipe = ShowoMMUPipeline.from_pretrained(options.model, dtype=torch.float32)
    phrases = known_phrases(data.records)
    known = without_tone(data, data.train_indices)
    others = [data.records[row] for row in known]
    commonest = commonest_answers(others, [main_colour(data.images[row]) for row in known])
    chosen = choose(data, options.held_out, options.captions, options.seed)
    sets = {
        name: ask_about(pipe, data, rows, others, commonest, options.seed, options.batch_size)
        for name, rows in chosen.items()
    }
    if options.answers:
        write_answers(options.answers, sets)
    results = {name: summarize(asked, phrases) for name, asked in sets.items()}
    if options.json:
        print(json.dumps({name: {"images": len(chosen[name]), **summary} for name, summary in results.items()}))
        return
    for name, summary in results.items():
        print_result(name, len(chosen[name]), summary)


if __name__ == "__main__":
    main()
