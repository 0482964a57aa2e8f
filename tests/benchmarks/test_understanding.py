"""The understanding benchmark: scores of known answers, files, and whole runs with a tiny model."""

import json
from fractions import Fraction

import pytest
import tiny
import understanding
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from understanding_scores import (
    binary_scores,
    choice_report,
    choose,
    mme_decision,
    mme_report,
    normalize_answer,
    pope_decision,
    pope_report,
    vqa_accuracy,
    vqa_report,
)

from showo_hf import ShowoMMUPipeline


# Scores


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The two dogs.", "2 dogs"),
        ("yes.\n", "yes"),
        ("A cat, sitting!", "cat sitting"),
        ("red/white", "red white"),
        ("t-shirt", "t shirt"),
        ("black - white", "black white"),
        ("1,000", "1000"),
        ("1,000 m/s", "1000 ms"),  # after a number with a comma, punctuation is removed without a space
        ("3.5", "3.5"),
        ("3.", "3"),
        ("p.m.", "pm"),
        ("None", "0"),
        ("ten O'Clock", "10 o'clock"),
        ("DONT know", "don't know"),
        ("she shouldnt've", "she shouldn't've"),
        ("theyd've", "they'd've"),
        ("its", "its"),
        ("a an the", ""),
        ("", ""),
    ],
)
def test_answers_are_normalized_as_vqav2_does(text, normalized):
    assert normalize_answer(text) == normalized


@pytest.mark.parametrize(("people", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_by_the_number_of_matches_of_ten(people, accuracy):
    # For three matches: three people have two others, 2/3; seven people have three others, 1. (3 * 2/3 + 7) / 10.
    humans = ["two red cars"] * people + ["blue"] * (10 - people)
    assert vqa_accuracy("2 red cars.", humans) == pytest.approx(accuracy)


@given(people=st.integers(1, 12), others=st.integers(1, 12), order=st.randoms(use_true_random=False))
def test_vqa_accuracy_follows_its_formula_in_any_order(people, others, order):
    humans = ["yes"] * people + ["no"] * others
    order.shuffle(humans)
    one = [Fraction(min(humans[:i].count("yes") + humans[i + 1 :].count("yes"), 3), 3) for i in range(len(humans))]
    assert vqa_accuracy("Yes", humans) == pytest.approx(float(sum(one) / len(one)))


def test_vqa_report():
    ten = {name: [name] * 10 for name in ("yes", "2", "cat")}
    lines = [
        {"answers": ten["yes"], "answer_type": "yes/no", "question_type": "is the"},
        {"answers": ten["yes"], "answer_type": "yes/no", "question_type": "is the"},
        {"answers": ten["2"], "answer_type": "number", "question_type": "how many"},
        {"answers": ["cat"] * 3 + ["kitten"] * 7, "answer_type": "other", "question_type": "what is the"},
    ]
    report = vqa_report(["Yes.", "no", "two", "a cat"], lines)
    accuracies = {name: row["accuracy"] for name, row in report.items()}
    assert accuracies == pytest.approx(
        {
            "overall": 72.5,
            "answer type: yes/no": 50,
            "answer type: number": 100,
            "answer type: other": 90,
            "question type: is the": 50,
            "question type: how many": 100,
            "question type: what is the": 90,
        }
    )
    assert report["overall"]["questions"] == 4 and report["answer type: yes/no"]["questions"] == 2


@pytest.mark.parametrize(
    ("text", "decision"),
    [
        ("Yes, there is a dog.", "yes"),
        ("No, there is not.", "no"),
        ("There is not a dog", "no"),
        ("no.", "no"),
        ("Yes. No doubt about it.", "yes"),  # only the first sentence counts
        ("Nothing to see", "yes"),  # "no" must be a whole word
        ("", "yes"),
    ],
)
def test_pope_decision(text, decision):
    assert pope_decision(text) == decision


def test_binary_scores_of_known_answers():
    # 3 hits, 1 false alarm, 2 misses, 4 rightly refused.
    decisions = ["yes"] * 4 + ["no"] * 6
    labels = ["yes"] * 3 + ["no"] + ["yes"] * 2 + ["no"] * 4
    assert binary_scores(decisions, labels) == pytest.approx(
        {"questions": 10, "accuracy": 70, "precision": 75, "recall": 60, "f1": 200 / 3, "yes_ratio": 40}
    )


@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no"])), min_size=1), st.randoms())
def test_binary_scores_are_shares_and_f1_is_the_harmonic_mean(pairs, order):
    scores = binary_scores(*zip(*pairs, strict=True))
    assert all(0 <= value <= 100 for name, value in scores.items() if name != "questions")
    precision, recall = scores["precision"], scores["recall"]
    harmonic = 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert scores["f1"] == pytest.approx(harmonic)
    shuffled = order.sample(pairs, len(pairs))
    assert binary_scores(*zip(*shuffled, strict=True)) == scores


def test_pope_report_has_categories_and_their_mean():
    lines = [{"label": label, "category": name} for name in ("random", "popular") for label in ("yes", "no")]
    report = pope_report(["Yes.", "No.", "yes", "yes"], lines)
    assert list(report) == ["random", "popular", "mean", "all"]
    assert [row["accuracy"] for row in report.values()] == [100, 50, 75, 75]
    assert [row["f1"] for row in report.values()] == pytest.approx([100, 200 / 3, 500 / 6, 80])
    assert list(pope_report(["yes"], lines[:1])) == ["random", "all"]


@pytest.mark.parametrize(
    ("text", "decision"),
    [
        ("Yes", "yes"),
        ("yes, it is.", "yes"),
        ("NO", "no"),
        (" no\n", "no"),
        ("Not at all", "no"),
        ("It is.", "other"),
        ("The answer is yes", "other"),  # only the first four letters count
        ("", "other"),
    ],
)
def test_mme_decision(text, decision):
    assert mme_decision(text) == decision


def test_mme_report_of_known_answers():
    def pair(task, image):
        return [{"category": task, "image": image, "label": label} for label in ("yes", "no")]

    lines = [
        *pair("existence", "a.png"),
        *pair("existence", "b.png"),
        *pair("count", "a.png"),
        *pair("code_reasoning", "c.png"),
        *pair("style", "a.png"),
    ]
    answers = ["Yes", "No", "yes.", "yes.", "no", "perhaps", "yes", "no", "no", "no"]
    report = mme_report(answers, lines)
    found = {name: (row["acc"], row["acc_plus"], row["score"]) for name, row in report.items() if "acc" in row}
    assert found == {
        "existence": (75, 50, 125),
        "count": (0, 0, 0),
        "code_reasoning": (100, 100, 200),
        "style": (50, 0, 50),
    }
    assert [row["neither_yes_nor_no"] for row in report.values() if "acc" in row] == [0, 1, 0, 0]
    sums = {name: row["score"] for name, row in report.items() if name.startswith("sum")}
    assert sums == {"sum, perception": 125, "sum, cognition": 200, "sum, other tasks": 50}


@given(st.lists(st.tuples(st.sampled_from(["yes", "no", "hm"]), st.sampled_from(["yes", "no", "hm"])), min_size=1))
def test_mme_bounds(pairs):
    answers = [answer for pair in pairs for answer in pair]
    lines = [
        {"category": "count", "image": f"{i}.png", "label": label}
        for i in range(len(pairs))
        for label in ("yes", "no")
    ]
    row = mme_report(answers, lines)["count"]
    assert 0 <= row["acc_plus"] <= row["acc"] <= 100 and row["score"] == row["acc"] + row["acc_plus"]
    assert (
        row["acc_plus"] >= 2 * row["acc"] - 100 - 1e-9
    )  # an image that is not fully right has at least one wrong answer


def test_choices():
    # The long answer has the smallest likelihood, but the largest per id.
    assert choose([-4.0, -6.0, -9.0], [2, 2, 6], normalize=False) == 0
    assert choose([-4.0, -6.0, -9.0], [2, 2, 6], normalize=True) == 2
    lines = [{"answer": "cat", "category": "what"}, {"answer": "dog", "category": "what"}, {"answer": "3"}]
    report = choice_report(["cat", "cat", "3"], lines)
    assert report["overall"] == pytest.approx({"questions": 3, "accuracy": 200 / 3})
    assert report["category: what"] == {"questions": 2, "accuracy": 50}


# Files


COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny.pipeline(tiny.processor()).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for colour in COLOURS:
        Image.new("RGB", (20, 16), colour).save(folder / f"{colour}.png")
    return folder


def write_lines(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


HUMANS = [{"answer": "a cat", "answer_id": i} for i in range(10)]
LINES = {
    "vqa": {"question": "what?", "image": "red.png", "answers": HUMANS, "answer_type": "other"},
    "pope": {"text": "Is there a dog?", "image": "red.png", "label": "no"},
    "mme": {"question": "A dog?", "image": "red.png", "answer": "No", "category": "existence"},
    "choice": {"question": "what?", "image": "red.png", "choices": ["a cat", "a dog"], "answer": 1},
}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("vqa", {"question": " "}, "line 2: `question` must be a text, got ' '"),
        ("vqa", {"image": None}, "line 2: `image` must be a text, got None"),
        ("vqa", {"answers": ["cat"] * 3}, "line 2: `answers` must be the answers of at least 4 people"),
        ("vqa", {"answers": [{"text": "cat"}] * 10}, "line 2: `answers` must be the answers"),
        ("vqa", {"answer_type": 3}, "line 2: `answer_type` must be a text, got 3"),
        ("pope", {"label": "maybe"}, "line 2: `label` must be 'yes' or 'no', got 'maybe'"),
        ("mme", {"answer": None}, "line 2: `answer` must be 'yes' or 'no', got None"),
        ("mme", {"category": None}, "line 2: `category` must be a text, got None"),
        ("choice", {"choices": ["a cat"]}, "line 2: `choices` must be at least two different texts"),
        ("choice", {"choices": "a cat"}, "line 2: `choices` must be a list of texts"),
        ("choice", {"answer": 2}, "line 2: `answer` must be one of `choices` or its index from 0, got 2"),
        ("choice", {"answer": ["a cat"]}, "line 2: `answer` must be one of `choices`"),
    ],
)
def test_an_invalid_field_is_named_with_file_and_line(tmp_path, images, kind, change, message):
    file = write_lines(tmp_path / "questions.jsonl", [LINES[kind], LINES[kind] | change])
    with pytest.raises(understanding.InputError) as error:
        understanding.read_questions([file], images, kind, scored=False)
    assert str(error.value).startswith(f"questions.jsonl, {message}")


def test_the_first_problem_is_reported_with_the_number_of_further_ones(tmp_path, images):
    file = write_lines(tmp_path / "q.jsonl", [LINES["pope"], "{", "[1]", "", LINES["pope"] | {"label": 1}])
    with pytest.raises(understanding.InputError, match=r"q.jsonl, line 2: is not JSON .* \(And 2 more.\)"):
        understanding.read_questions([file], images, "pope", scored=False)


def test_vqa_with_score_needs_choices(tmp_path, images):
    file = write_lines(tmp_path / "q.jsonl", [LINES["vqa"]])
    assert len(understanding.read_questions([file], images, "vqa", scored=False)) == 1
    with pytest.raises(understanding.InputError, match="line 1: `choices` must be a list of texts, got None"):
        understanding.read_questions([file], images, "vqa", scored=True)


def test_files_without_questions(tmp_path, images):
    with pytest.raises(understanding.InputError, match="no questions in there"):
        understanding.read_questions([write_lines(tmp_path / "empty.jsonl", [""])], images, "pope", False)
    with pytest.raises(understanding.InputError, match="missing.jsonl cannot be read"):
        understanding.read_questions([tmp_path / "missing.jsonl"], images, "pope", False)


def test_mme_needs_two_questions_per_image_and_task(tmp_path, images):
    pair = [LINES["mme"], LINES["mme"] | {"answer": "Yes"}]
    file = write_lines(tmp_path / "q.jsonl", [*pair, *(line | {"category": "count"} for line in pair)])
    assert len(understanding.read_questions([file], images, "mme", False)) == 4
    write_lines(file, [*pair, LINES["mme"] | {"category": "count"}])
    with pytest.raises(
        understanding.InputError, match=r"line 3: .* must have 2 questions .* red.png has 1 of 'count'"
    ):
        understanding.read_questions([file], images, "mme", False)


def test_the_category_of_pope_is_in_the_line_or_in_the_file_name(tmp_path, images):
    files = [
        write_lines(tmp_path / "coco_pope_popular.json", [LINES["pope"]]),
        write_lines(tmp_path / "own.jsonl", [LINES["pope"], LINES["pope"] | {"category": "random"}]),
    ]
    questions = understanding.read_questions(files, images, "pope", False)
    assert [question.line["category"] for question in questions] == ["popular", "own", "random"]


def test_every_image_is_opened_before_the_model_is_loaded(tmp_path, images):
    content = (images / "green.png").read_bytes()
    (images / "cut.png").write_bytes(content[: len(content) // 2])
    lines = [LINES["pope"] | {"image": name} for name in ("red.png", "none.png", "cut.png", "none.png")]
    arguments = ["--format", "pope", "--images", str(images), "--answers", str(tmp_path / "a.jsonl")]
    arguments += ["--model", str(tmp_path / "no such model")]
    file = write_lines(tmp_path / "q.jsonl", lines)
    with pytest.raises(SystemExit, match=r"q.jsonl, line 2: image 'none.png': no such file. \(And 1 more.\)"):
        understanding.main([*arguments, "--questions", str(file)])
    write_lines(file, [lines[0], lines[2]])
    with pytest.raises(SystemExit, match="q.jsonl, line 2: image 'cut.png': .* cannot be read"):
        understanding.main([*arguments, "--questions", str(file)])
    assert not (tmp_path / "a.jsonl").exists()


def test_normalized_scores_need_choices(capsys):
    with pytest.raises(SystemExit):
        understanding.parse(
            ["--format", "pope", "--score", "--normalize", "--questions", "q", "--images", "i", "--answers", "a"]
        )
    assert "--normalize: needs choices" in capsys.readouterr().err


# Whole runs


def run(capsys, model, kind, file, images, answers, *more) -> dict:
    """The report of a run, as `--json` prints it."""
    command = ["--model", model, "--format", kind, "--questions", str(file), "--images", str(images)]
    understanding.main([*command, "--answers", str(answers), "--json", "--max-new-tokens", "4", *more])
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def questions_of(kind) -> list[dict]:
    """Two questions about each image, in an order that goes through the images twice."""
    return [
        LINES[kind] | {"question_id": i, "image": f"{colour}.png", **({"answer": right} if kind == "mme" else {})}
        for i, (right, colour) in enumerate((right, colour) for right in ("yes", "no") for colour in COLOURS)
    ]


def test_generated_answers_match_the_pipeline_and_a_rerun_resumes(capsys, tmp_path, model, images):
    lines = [line | {"text": text} for line, text in zip(questions_of("pope"), "abcdef", strict=True)]
    file = write_lines(tmp_path / "coco_pope_random.jsonl", lines)
    answers = tmp_path / "new folder" / "answers.jsonl"
    report = run(capsys, model, "pope", file, images, answers, "--batch-size", "4")
    assert set(report) == {"random", "all"} and report["all"]["questions"] == 6

    rows = sorted(rows_of(answers), key=lambda row: row["index"])
    assert [row["question_id"] for row in rows] == list(range(6))
    pipe = ShowoMMUPipeline.from_pretrained(model)
    alone = [pipe(images / line["image"], line["text"], max_new_tokens=4).texts[0] for line in lines]
    assert [row["answer"] for row in rows] == alone

    # Cut the file in the middle of its fourth line, as an interrupted run does.
    content = answers.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == ord("\n")]
    answers.write_bytes(content[: ends[2] + 9])
    assert run(capsys, model, "pope", file, images, answers) == report
    assert sorted(rows_of(answers), key=lambda row: row["index"]) == rows
    assert answers.read_bytes()[: ends[2] + 1] == content[: ends[2] + 1]


def test_a_finished_run_reports_without_the_model(capsys, tmp_path, model, images):
    file, answers = write_lines(tmp_path / "q.jsonl", [LINES["vqa"]]), tmp_path / "a.jsonl"
    report = run(capsys, model, "vqa", file, images, answers)
    (images / "red.png").unlink()
    assert run(capsys, model, "vqa", file, images, answers) == report


def test_answers_of_another_run_are_refused(capsys, tmp_path, model, images):
    file, answers = write_lines(tmp_path / "q.jsonl", [LINES["vqa"]]), tmp_path / "a.jsonl"
    run(capsys, model, "vqa", file, images, answers)
    content = answers.read_bytes()
    with pytest.raises(SystemExit, match="a.jsonl, line 1: comes from a run with another model, other questions"):
        run(capsys, model, "vqa", file, images, answers, "--suffix", " Answer with one word.")
    write_lines(file, [LINES["vqa"] | {"question": "who?"}])
    with pytest.raises(SystemExit, match="comes from a run with another"):
        run(capsys, model, "vqa", file, images, answers)
    assert answers.read_bytes() == content
    answers.write_text("an answer\n")
    with pytest.raises(SystemExit, match="a.jsonl, line 1: is not an answer of this script"):
        run(capsys, model, "vqa", file, images, answers)


def test_the_likelier_of_yes_and_no(capsys, tmp_path, model, images):
    file = write_lines(tmp_path / "q.jsonl", questions_of("mme"))
    report = run(capsys, model, "mme", file, images, tmp_path / "a.jsonl", "--score")
    assert report["existence"]["questions"] == 6 and report["existence"]["neither_yes_nor_no"] == 0
    assert report["sum, perception"]["score"] == report["existence"]["score"]

    pipe = ShowoMMUPipeline.from_pretrained(model)
    for row, line in zip(
        sorted(rows_of(tmp_path / "a.jsonl"), key=lambda row: row["index"]), questions_of("mme"), strict=True
    ):
        texts = ["yes", "Yes", "yes.", "Yes.", "no", "No", "no.", "No."]
        probabilities = pipe.score(images / line["image"], line["question"], [texts]).log_likelihoods[0].exp()
        yes, no = probabilities[:4].sum().log().item(), probabilities[4:].sum().log().item()
        assert row["log_likelihoods"] == pytest.approx([yes, no], abs=1e-3)
        assert row["answer"] == ("yes" if yes > no else "no")


@pytest.mark.parametrize("kind", ["choice", "vqa"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_likeliest_choice(capsys, tmp_path, model, images, kind, normalize):
    texts = ["a cat", "a green pear on a table", "owl"]
    lines = [line | {"choices": texts} for line in questions_of(kind)]
    file = write_lines(tmp_path / "q.jsonl", lines)
    options = ["--score", *(["--normalize"] if normalize else [])]
    report = run(capsys, model, kind, file, images, tmp_path / "a.jsonl", *options)

    pipe = ShowoMMUPipeline.from_pretrained(model)
    scored = pipe.score([images / line["image"] for line in lines], ["what?"] * 6, [texts] * 6)
    scores = [
        likelihoods / lengths if normalize else likelihoods
        for likelihoods, lengths in zip(scored.log_likelihoods, scored.lengths, strict=True)
    ]
    best = [texts[one.argmax()] for one in scores]
    rows = sorted(rows_of(tmp_path / "a.jsonl"), key=lambda row: row["index"])
    assert [row["answer"] for row in rows] == best
    right = texts[1] if kind == "choice" else texts[0]
    assert report["overall"]["accuracy"] == pytest.approx(100 * best.count(right) / 6)


def test_a_question_that_is_too_long_is_named(capsys, tmp_path, model, images):
    file = write_lines(tmp_path / "q.jsonl", [LINES["vqa"] | {"question": "what is this? " * 100}])
    with pytest.raises(SystemExit, match="q.jsonl, line 1, or one of the next: `prompts` with an image"):
        run(capsys, model, "vqa", file, images, tmp_path / "a.jsonl")


def test_it_prints_one_table(capsys, tmp_path, model, images):
    file = write_lines(tmp_path / "q.jsonl", questions_of("mme"))
    command = ["--model", model, "--format", "mme", "--questions", str(file), "--images", str(images)]
    understanding.main([*command, "--answers", str(tmp_path / "a.jsonl"), "--score"])
    head, rule, *rows = capsys.readouterr().out.strip().splitlines()
    assert set(rule) == set("|- ")
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *rows)]
    assert cells[0] == ["", "questions", "acc", "acc plus", "score", "neither yes nor no"]
    assert [row[0] for row in cells[1:]] == ["existence", "sum, perception"]
