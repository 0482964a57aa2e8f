import json
import math
from pathlib import Path

import pytest
import small_run
import tiny
import torch
from PIL import Image
from safetensors.torch import load

from showo_hf import ShowoT2IPipeline
from showo_hf.training.arguments import training_arguments
from showo_hf.training.callbacks import StopSignals
from showo_hf.training.data.examples import Example
from showo_hf.training.losses import part_losses
from showo_hf.training.results import PushResults
from showo_hf.training.rows import RowBuilder
from showo_hf.training.run import settings_of
from showo_hf.training.showo_training import build_trainer, load_pipeline, prepare_model
from showo_hf.training.trainer import named


def trainer_of(folder, resumed=None, **changes):
    """The trainer of a run, and its pipeline, before the first step."""
    config = small_run.config(folder, **changes)
    root = folder / "out-checkpoints"
    pipe = load_pipeline(config)
    prepare_model(config, pipe)
    args = training_arguments(config, root)
    return build_trainer(config, args, pipe, settings_of(config, args, root), resumed, StopSignals()), pipe


def write_conversations(folder):
    """Questions about the images, and texts, so that all losses have labels."""
    images = small_run.shared() / "images"
    rows = [
        {
            "id": str(number),
            "image": f"{number:02}.png",
            "conversations": [
                {"from": "human", "value": "<image>\nwhat is this?"},
                {"from": "gpt", "value": "a pear " * (1 + number % 3)},
            ],
        }
        for number in range(12)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "questions.json").write_text(json.dumps(rows))
    (folder / "texts.txt").write_text("".join("a red apple " * (1 + n % 4) + "\n" for n in range(9)))
    return {
        "t2i": {"path": str(images)},
        "mmu": {"path": str(folder / "questions.json"), "image_folder": str(images)},
        "lm": {"path": str(folder / "texts.txt")},
    }


def final(folder):
    return small_run.weights(folder / "out")


def largest_difference(first, second) -> float:
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory) -> str:
    """A model whose result does not depend on how rows are divided into batches."""
    return str(small_run.write_model(tmp_path_factory.mktemp("plain") / "model", dropout=0.0))


def test_accumulated_batches_equal_one_large_batch(tmp_path, without_dropout):
    """The rows have different numbers of labels, so a mean of the batches' means would differ."""
    data = write_conversations(tmp_path / "data")
    options = {
        "data": data,
        "model": without_dropout,
        "steps": 3,
        "ema_decay": None,
        "optim": "sgd",
        "weight_decay": 0.0,
    }
    options["learning_rate"] = 0.1
    large, accumulated = tmp_path / "large", tmp_path / "accumulated"
    small_run.run(large, **options, batch_size=8)
    small_run.run(accumulated, **options, batch_size=4, gradient_accumulation_steps=2)
    start = small_run.load_file(Path(without_dropout) / "model" / "model.safetensors")
    moved = largest_difference(start, final(large))
    assert moved > 1e-3
    assert largest_difference(final(large), final(accumulated)) < 1e-4 * moved
    for one, two in zip(small_run.log_rows(large)[1:], small_run.log_rows(accumulated)[1:], strict=True):
        for name in ("loss", "loss_t2i", "loss_lm", "loss_mmu", "grad_norm"):
            assert math.isclose(one[name], two[name], rel_tol=1e-5), name


def test_batches_with_different_numbers_of_labels_are_not_averaged_by_batch(tmp_path, without_dropout):
    """What the test above relies on."""
    trainer, pipe = trainer_of(
        tmp_path, model=without_dropout, data=write_conversations(tmp_path / "data"), batch_size=4
    )
    batches = iter(trainer.data)
    counts = [trainer.complete(next(batches)[0]["mmu"]).counts["mmu"] for _ in range(2)]
    assert counts[0] != counts[1]


def test_logged_losses_are_those_of_the_model(tmp_path, without_dropout):
    """Of the rows of the first step, with the weights before it."""
    data = write_conversations(tmp_path / "data")
    options = {
        "model": without_dropout,
        "data": data,
        "batch_size": 4,
        "loss_weights": {"t2i": 2.0, "lm": 0.1, "mmu": 0.5},
    }
    trainer, pipe = trainer_of(tmp_path / "direct", **options)
    parts, _ = next(iter(trainer.data))
    expected = {}
    for task, part in parts.items():
        part = trainer.complete(part)
        with torch.no_grad():
            output = pipe.model(input_ids=part.input_ids, labels=part.labels)
        expected[f"loss_{task}"] = getattr(output, f"loss_{task}").item()
    small_run.run(tmp_path / "run", **options, steps=1)
    (row,) = (row for row in small_run.log_rows(tmp_path / "run") if "loss" in row)
    assert {name for name in row if name.startswith("loss_")} == set(expected)
    for name, value in expected.items():
        assert math.isclose(row[name], value, rel_tol=1e-5)
    assert math.isclose(
        row["loss"], 2 * expected["loss_t2i"] + 0.1 * expected["loss_lm"] + 0.5 * expected["loss_mmu"], rel_tol=1e-5
    )


def test_a_logged_loss_is_the_mean_over_the_labels_since_the_last_log(tmp_path):
    small_run.run(tmp_path / "each", steps=4)
    small_run.run(tmp_path / "seldom", steps=4, logging_steps=4)
    each = [row for row in small_run.log_rows(tmp_path / "each") if "loss" in row]
    (seldom,) = (row for row in small_run.log_rows(tmp_path / "seldom") if "loss" in row)
    assert seldom["step"] == 4
    assert math.isclose(seldom["loss"], sum(row["loss"] for row in each) / 4, rel_tol=1e-5)
    assert min(row["loss_t2i"] for row in each) <= seldom["loss_t2i"] <= max(row["loss_t2i"] for row in each)
    assert seldom["loss_t2i"] != each[-1]["loss_t2i"]


def test_names_of_losses():
    means = {("t2i", "t2i"): 1.0, ("lm", "lm"): 2.0, ("mixed", "t2i"): 3.0, ("mixed", "mmu"): 4.0}
    assert named(means) == {"loss_t2i": 1.0, "loss_lm": 2.0, "loss_mixed_t2i": 3.0, "loss_mixed_mmu": 4.0}


def test_validation_gives_the_same_number_each_time(tmp_path):
    trainer, pipe = trainer_of(tmp_path, **small_run.validated(keep_best=None))
    state = torch.get_rng_state()
    first = trainer.evaluate()
    torch.manual_seed(1)
    assert trainer.evaluate() == first
    assert trainer.best["since"] == 1
    again, _ = trainer_of(tmp_path, **small_run.validated(keep_best=None))
    assert again.evaluate() == first
    torch.set_rng_state(state)
    assert set(first) == {"eval_loss", "eval_loss_t2i"}
    assert trainer.model.training and not torch.is_inference_mode_enabled()


def test_validation_uses_the_averaged_weights_and_puts_the_others_back(tmp_path):
    trainer, pipe = trainer_of(tmp_path, **small_run.validated(keep_best=None))
    before = trainer.evaluate()["eval_loss"]
    with torch.no_grad():
        for value in trainer.ema.shadow_params:
            value.mul_(0.5)
    weights = {name: value.clone() for name, value in pipe.model.state_dict().items()}
    assert trainer.evaluate()["eval_loss"] != before
    assert small_run.same_weights(weights, pipe.model.state_dict())


def test_the_result_is_the_average_of_the_weights(tmp_path):
    small_run.run(tmp_path, save_steps=6)
    averaged = small_run.load_file(tmp_path / "out-checkpoints" / "checkpoint-6" / "ema.safetensors")
    trained = small_run.load_file(tmp_path / "out-checkpoints" / "checkpoint-6" / "model.safetensors")
    result = final(tmp_path)
    assert all(torch.equal(result[name], value) for name, value in averaged.items())
    assert any(not torch.equal(result[name], value) for name, value in trained.items())
    small_run.run(tmp_path / "plain", ema_decay=None)
    plain = final(tmp_path / "plain")
    assert all(torch.equal(plain[name], value) for name, value in trained.items())


def test_the_average_follows_the_weights(tmp_path):
    """Against the formula: average += (1 - decay) * (weights - average), with diffusers' smaller decay at first."""
    small_run.run(tmp_path, steps=4, save_steps=1, save_total_limit=10)
    read = lambda step, name: small_run.load_file(tmp_path / f"out-checkpoints/checkpoint-{step}/{name}.safetensors")  # noqa: E731
    name = "lm_head.weight"
    for step in (2, 3, 4):
        decay = min(0.9, step / (9 + step))
        expected = read(step - 1, "ema")[name]
        expected = expected + (1 - decay) * (read(step, "model")[name] - expected)
        torch.testing.assert_close(read(step, "ema")[name], expected)


def losses_of(folder) -> dict[int, float]:
    return {row["step"]: row["eval_loss"] for row in small_run.log_rows(folder) if "eval_loss" in row}


def test_the_best_weights_are_the_result(tmp_path):
    """With a learning rate that spoils the weights, the first validation is the best."""
    options = small_run.validated(eval_steps=1, learning_rate=1.0, ema_decay=None, bad_step="skip", warmup_steps=1)
    small_run.run(tmp_path, **options)
    losses = losses_of(tmp_path)
    best = min(losses, key=losses.get)
    assert best < 6
    saved = json.loads((tmp_path / "out-checkpoints" / "best" / "best.json").read_text())
    assert saved["step"] == best and saved["loss"] == losses[best]
    result = final(tmp_path)
    kept = small_run.load_file(tmp_path / "out-checkpoints" / "best" / "model.safetensors")
    last = small_run.load_file(tmp_path / "out-checkpoints" / "checkpoint-6" / "model.safetensors")
    assert all(torch.equal(result[name], value) for name, value in kept.items())
    assert any(not torch.equal(result[name], value) for name, value in last.items())


def test_a_push_that_finds_the_disk_full_does_not_stop_the_training(tmp_path, hub_here, small_files, caplog):
    trainer, _ = trainer_of(tmp_path, push_to_hub="someone/new", push_steps=1)
    (pushes,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, PushResults))
    trainer.state.max_steps, trainer.state.global_step = 3, 1
    small_files((small_run.shared() / "model" / "model" / "model.safetensors").stat().st_size // 2)
    pushes.on_step_end(trainer.args, trainer.state, trainer.control)
    small_files(-1)
    assert "'Step 1' was not uploaded" in caplog.text and "too large" in caplog.text and not hub_here.commits
    trainer.state.global_step = 2
    pushes.on_step_end(trainer.args, trainer.state, trainer.control)
    assert pushes.publisher.close(20)
    assert [commit[0] for commit in hub_here.commits["someone/new"]] == ["Step 2"]
    assert not [path for path in tmp_path.iterdir() if ".new-" in path.name]


def test_a_periodic_push_has_the_dtype_of_the_result(tmp_path, hub_here):
    """The image tokenizer's weights stay as they are, and so do those that are trained."""
    trainer, pipe = trainer_of(tmp_path, push_to_hub="someone/new", push_steps=1, save_dtype="bfloat16")
    pipe.register_modules(image_decoder=tiny.image_decoder())
    (pushes,) = (one for one in trainer.callback_handler.callbacks if isinstance(one, PushResults))
    before = {name: weight.clone() for name, weight in pipe.model.state_dict().items()}
    trainer.state.max_steps, trainer.state.global_step = 3, 1
    pushes.on_step_end(trainer.args, trainer.state, trainer.control)
    assert pushes.publisher.close(20) and pushes.publisher.last_error is None
    files = hub_here.commits["someone/new"][0][2]
    pushed = load(files["model/model.safetensors"])
    for name, weight in pushed.items():
        own = torch.float32 if name.startswith("image_tokenizer.") else torch.bfloat16
        torch.testing.assert_close(weight, before[name].to(own), rtol=0, atol=0)
    decoder = load(files["image_decoder/model.safetensors"])
    assert {weight.dtype for weight in decoder.values()} == {torch.bfloat16}
    assert small_run.same_weights(before, pipe.model.state_dict())
    assert {weight.dtype for weight in pipe.image_decoder.parameters()} == {torch.float32}


def test_early_stop(tmp_path):
    options = small_run.validated(
        eval_steps=1, learning_rate=1.0, ema_decay=None, warmup_steps=1, steps=50, early_stop=3
    )
    small_run.run(tmp_path, **options)
    losses = losses_of(tmp_path)
    best = min(losses, key=losses.get)
    assert max(losses) == best + 3 < 50
    before = (tmp_path / "out-log.jsonl").read_bytes()
    weights = final(tmp_path)
    small_run.run(tmp_path, **options)  # trains nothing
    assert (tmp_path / "out-log.jsonl").read_bytes() == before
    assert small_run.same_weights(weights, final(tmp_path))


@pytest.mark.parametrize("keep_best", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_card_shows_samples_of_the_result(tmp_path, keep_best):
    """After an early stop, with the best weights, and when a finished run is repeated."""
    options = small_run.validated(eval_steps=1, learning_rate=1.0, ema_decay=None, warmup_steps=1, early_stop=1)
    options |= {"keep_best": keep_best, "steps": 50, "prompts": ["a red apple"], "sample_guidance": 1.0}
    for _ in range(2):
        small_run.run(tmp_path, **options)
        losses = losses_of(tmp_path)
        step = min(losses, key=losses.get) if keep_best else max(losses)
        assert step < 50
        file = tmp_path / "out-samples" / f"step-{step}-0.png"
        pipe = ShowoT2IPipeline.from_pretrained(tmp_path / "out")
        image = pipe("a red apple", guidance_scale=1.0, generator=torch.Generator().manual_seed(0)).images[0]
        with Image.open(file) as sample:
            assert sample.tobytes() == image.tobytes()
        assert (tmp_path / "out" / "assets" / "sample-1.png").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_is_never_the_best(tmp_path, loss):
    trainer, _ = trainer_of(tmp_path, **small_run.validated())
    trainer.keep_the_best(loss)
    assert trainer.best == {"loss": None, "step": None, "since": 1, "kept": False}
    trainer.keep_the_best(3.0)
    trainer.keep_the_best(loss)
    assert trainer.best["loss"] == 3.0 and trainer.best["since"] == 1


def test_a_part_without_rows_takes_part_in_the_backward_pass():
    """All its examples were broken."""
    processor = tiny.processor()
    model = tiny.showo("llama", text_ids=processor.pad_token_id)
    for task in ("t2i", "lm", "mmu", "mixed"):
        part = RowBuilder(processor).part(task, [])
        losses, zero = part_losses(model, part, torch.device("cpu"))
        assert losses == {} and zero.item() == 0.0
        zero.backward()
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
        assert model.lm_head.weight.grad is not None or model.model.embed_tokens.weight.grad is not None


def test_a_run_with_broken_images_skips_and_counts_them(tmp_path):
    images = small_run.write_images(tmp_path / "images")
    for number in range(0, 12, 2):
        (images / f"{number:02}.png").write_bytes(b"no image")
    small_run.run(tmp_path, data=str(images), batch_size=1, steps=8)
    steps = [row["step"] for row in small_run.log_rows(tmp_path) if "loss" in row]
    assert steps == list(range(1, 9))
    position = json.loads((tmp_path / "out-checkpoints/checkpoint-8/position.json").read_text())
    assert 0 < len(position[0]["broken"]) <= 6
    with pytest.raises(ValueError, match="`max_broken` allows 1 samples"):
        small_run.run(tmp_path / "strict", data=str(images), max_broken=1)


def test_images_become_tokens_in_the_trainer(tmp_path):
    trainer, pipe = trainer_of(tmp_path)
    builder = RowBuilder(pipe.processor)
    part = builder.part("t2i", [Example("a", 1, image=Image.new("RGB", (16, 16), "red"), text="a red apple")])
    assert not part.complete
    pixels = part.pixel_values
    done = trainer.complete(part)
    assert torch.equal(done.image_tokens[0], pipe.model.encode_images(pixels).flatten().cpu())
    assert trainer.complete(done) is done
