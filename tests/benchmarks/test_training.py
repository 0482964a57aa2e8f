"""The training benchmark runs, its two loops train alike, and it prints one table. Its numbers are not tested."""

import contextlib
import io
import json

import measuring
import pytest
import torch
import training
from plain_training import dense_mask
from t2i import SMALL


ROWS = {"t2i": 2, "lm": 1, "mmu": 2}


def steps(dtype=torch.float32, full_rows=False) -> list[training.Step]:
    return [training.Step(way, SMALL, dtype, ROWS, full_rows, "cpu") for way in ("plain", "ours")]


def run_benchmark(*arguments: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        training.main(["--small", "--repeats", "1", "--rows-scale", "0.1", "--memory-rows-scale", "0.1", *arguments])
    return printed.getvalue().strip()


@pytest.mark.parametrize("full_rows", [False, True])
def test_both_loops_update_the_weights_alike(full_rows):
    plain, ours = steps(full_rows=full_rows)
    for _ in range(2):
        training.check_equal_losses(plain.run(), ours.run(), 1e-4)
    start = training.build_model(SMALL, "cpu").state_dict()
    changed = {name: weight - start[name] for name, weight in plain.model.state_dict().items()}
    for name, weight in ours.model.state_dict().items():
        # Two steps of Adam move every weight by 1e-4 each, in the direction of the gradient's sign.
        assert (weight - start[name] - changed[name]).abs().mean() < 2e-5, name
    assert max(difference.abs().max() for difference in changed.values()) > 1e-4


def test_the_mask_of_the_plain_loop_is_the_models():
    plain, _ = steps()
    ids, _ = plain.batch
    model = plain.model
    mask = model.omni_attention_mask(model.get_input_embeddings()(ids), ids, model.padding_mask(ids, None))
    used = (ids != model.config.pad_token_id)[:, None, :, None]  # what pads attend to does not matter
    assert torch.equal((dense_mask(ids, model.config) == 0) & used, mask & used)


def test_rows_are_those_of_the_paper():
    config = steps()[0].model.config
    parts = training.mixed_batch(config, training.ROWS, False, "cpu")
    length = 129 + SMALL.image_tokens + 2
    assert {name: tuple(ids.shape) for name, (ids, _) in parts.items()} == {
        "t2i": (15, length),
        "lm": (4, length),
        "mmu": (10, length),
    }
    short = {name: training.part_of(name, *part, config).input_ids.shape[1] for name, part in parts.items()}
    assert short["t2i"] <= 11 + SMALL.image_tokens + 2 and short["lm"] == length and short["mmu"] < length
    full = training.mixed_batch(config, training.ROWS, True, "cpu")
    assert not any((ids == config.pad_token_id).any() for ids, _ in full.values())


def test_operations_are_counted_from_the_shapes():
    step = steps()[1]
    shapes = [part.input_ids.shape for part in step.parts.values()]
    hidden, tokens = 32, sum(rows * length for rows, length in shapes)
    layer = 4 * hidden**2 + 2 * 4 * hidden**2  # four projections of the attention, and the two of the MLP
    attention = 2 * hidden * sum(rows * length**2 for rows, length in shapes)
    head = step.model.config.vocab_size * hidden * sum(sum(part.counts.values()) for part in step.parts.values())
    assert step.operations() == 6 * (layer * tokens + attention + head)


@pytest.mark.slow
def test_json_output(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "PROCESS", tmp_path)  # memory cannot be measured, so there are no child processes
    found = json.loads(run_benchmark("--json", "--waiting-steps", "2"))
    assert found["rows"] == {"t2i": 2, "lm": 1, "mmu": 1} and not found["full_rows"]
    targets = ["at least 1.35", "at least 0.6", "at most 0.33", "reported"]
    assert [one["target"] for one in found["measures"]] == [*2 * targets, "at most 0.02"]
    assert [one["value"] is None for one in found["measures"]] == [*2 * [False, False, True, True], False]
    assert 0.0 < found["measures"][-1]["value"] < 1.0


@pytest.mark.slow  # starts four processes to measure the memory
def test_it_prints_one_table():
    heading, empty, head, rule, *rows = run_benchmark().splitlines()
    assert heading.startswith("torch ") and empty == ""
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert len({name for name, *_ in cells}) == len(cells) == 9
    assert all(any(letter.isdigit() for letter in measured) for _, _, measured, _ in cells), cells


def test_different_losses_are_refused():
    with pytest.raises(RuntimeError, match="Losses differ"):
        training.check_equal_losses({"t2i": 1.0}, {"t2i": 1.1}, 0.02)
