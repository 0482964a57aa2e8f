"""The benchmark of understanding runs, its implementations agree, and it prints one table. Its numbers are not tested."""

import contextlib
import io
import json

import measuring
import plain_understanding
import pytest
import t2i
import tiny
import torch
import understanding_speed as speed


@pytest.fixture(scope="module")
def pipeline():
    return t2i.build_pipeline(t2i.SMALL, "cpu")


def run_benchmark(*arguments: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        speed.main(["--small", "--repeats", "1", *arguments])
    return printed.getvalue().strip()


@pytest.mark.slow  # starts two processes to measure the memory
def test_it_prints_one_table():
    heading, empty, head, rule, *rows = run_benchmark().splitlines()
    assert heading.startswith("torch ") and empty == ""
    assert set(rule) == set("|- ")
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["measure", "device", "measured", "target"]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len({name for name, *_ in cells}) == len(cells) == 8
    assert all(any(letter.isdigit() for letter in measured) for _, _, measured, _ in cells), cells


@pytest.mark.slow
def test_json_output(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "PROCESS", tmp_path)  # memory cannot be measured, so there are no child processes
    found = json.loads(run_benchmark("--json"))
    assert found["device"] == "cpu" and found["repeats"] == 1
    measured, memory = found["measures"][:-2], found["measures"][-2:]
    assert [one["target"] for one in measured] == [
        "at least 10",
        "at most 1.5",
        "at most 1.1",
        "at most 0.5",
        "at most 1",
        "reported",
    ]
    assert all(one["value"] > 0 for one in measured)
    assert [one["value"] for one in memory] == [None, None]
    assert speed.Measure(**memory[0]).measured == "not measured here"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_plain_loop_and_generate_give_equal_ids(device):
    pipeline = t2i.build_pipeline(t2i.SMALL, device)
    ids = speed.prompt_ids(pipeline, speed.some_image(pipeline), "what is this")
    ours = speed.answer(pipeline.model, ids, 12)
    assert ours.shape == (1, 12)
    assert torch.equal(ours, plain_understanding.plain_answer(pipeline.model, ids, 12))


@pytest.mark.slow
def test_the_plain_loop_matches_the_recorded_ids(reference, reference_model):
    for case in range(2):
        ids, new_ids = (reference.tensors[f"mmu.{case}.{name}"] for name in ("ids_in", "new_ids"))
        assert torch.equal(plain_understanding.plain_answer(reference_model, ids, 8), new_ids[:, :8])


def test_a_grown_mask_equals_the_mask_of_the_longer_sequence():
    config = tiny.showo_config()
    ids = torch.tensor([[config.mmu_token_id, *tiny.image(config, tokens=3), 4, 5, 6]])
    masks = [
        plain_understanding.omni_mask(ids[:, :length], config.eoi_token_id, torch.float32) for length in (7, 8, 9)
    ]
    assert masks[0].shape == (1, 1, 7, 7)
    assert torch.equal(plain_understanding.with_one_more_id(masks[0]), masks[1])
    assert torch.equal(plain_understanding.with_one_more_id(masks[1]), masks[2])


@pytest.mark.parametrize("tied", [False, True])
def test_weights_of_a_token(tied):
    model = tiny.showo("llama", tie_word_embeddings=tied)
    layers = sum(weight.numel() for weight in model.model.layers.parameters())
    width, vocab_size = model.config.hidden_size, model.config.vocab_size
    assert speed.weights_of_a_token(model) == 4 * (layers + width + vocab_size * width)


def test_says_only_affects_its_block(pipeline):
    ids = speed.prompt_ids(pipeline, "what is this")
    before = speed.answer(pipeline.model, ids, 4)
    with speed.says(pipeline.model, [3, 2, 5, 2]):
        assert speed.answer(pipeline.model, ids, 4).tolist() == [[3, 2, 5, 2]]
    assert torch.equal(speed.answer(pipeline.model, ids, 4), before)


def test_different_results_are_refused():
    with pytest.raises(RuntimeError, match="Answers differ: 1 and 2"):
        speed.check_equal("Answers", 1, 2)


@pytest.mark.gpu
def test_it_runs_on_a_gpu():
    found = json.loads(run_benchmark("--device", "cuda", "--json"))
    assert found["device"] == "cuda"
    assert all(one["value"] is not None for one in found["measures"])
