"""Training of image tokenizers on a folder of real files."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageDraw

from showo_hf import ShowoLFQTokenizer
from showo_hf.models.configuration_showo_lfq import ShowoLFQTokenizerConfig
from showo_hf.processing.processing_showo import showo_image_processor
from showo_hf.training.data.examples import Example
from showo_hf.training.dry_run import plan_of
from showo_hf.training.image_batches import ImageBuilder
from showo_hf.training.image_configs import ImageTokenizerConfig
from showo_hf.training.image_tokenizers import load_image_tokenizer, load_matching_weights, tokenizer_config
from showo_hf.training.recipe_files import RecipeError, load_recipe
from showo_hf.training.run import TrainingError, Unfinished, run_recipe


SIZE = 16
ARCHITECTURE = {
    "encoder_block_out_channels": [8, 16],
    "decoder_block_out_channels": [8, 16],
    "encoder_layers_per_block": [1, 1],
    "decoder_layers_per_block": [1, 1],
    "norm_num_groups": 4,
}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one precision per process, but every test here is a separate run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of discs, flat."""
    folder = tmp_path_factory.mktemp("images")
    for number, colour in enumerate(("red", "green", "blue", "orange") * 3):
        image = Image.new("RGB", (20, 24), "white")
        ImageDraw.Draw(image).ellipse((3, 4, 10 + number % 5, 15), fill=colour)
        image.save(folder / f"disc-{number}.png")
    return folder


def recipe(images, output, **changes) -> ImageTokenizerConfig:
    entries = {
        "data": images,
        "output": output,
        "steps": 4,
        "image_size": SIZE,
        "codebook_bits": 4,
        "batch_size": 3,
        "logging_steps": 1,
        "save_steps": 2,
        "warmup_steps": 0,
        "learning_rate": 0.001,
        "report_to": "none",
        **changes,
    }
    return load_recipe(
        "lfq-tokenizer",
        [
            f"{key}={json.dumps(str(v) if key in ('data', 'output', 'model', 'validation_data') else v)}"
            for key, v in {"architecture": ARCHITECTURE, **entries}.items()
        ],
    )


def log_of(output) -> list[dict]:
    return [json.loads(line) for line in output.with_name(output.name + "-log.jsonl").read_text().splitlines()]


def test_a_folder_of_images_becomes_an_image_tokenizer(images, tmp_path):
    output = tmp_path / "tokenizer"
    options = {"steps": 30, "learning_rate": 0.003, "validation_data": images, "eval_steps": 15, "shift": 2}
    run_recipe(recipe(images, output, **options))
    tokenizer = ShowoLFQTokenizer.from_pretrained(output)
    assert (tokenizer.config.codebook_size, tokenizer.config.sample_size, tokenizer.config.downsampling) == (
        16,
        SIZE,
        2,
    )
    rows = [row for row in log_of(output) if "loss_reconstruction" in row]
    assert [row["step"] for row in rows] == list(range(1, 31))
    names = {"loss", "loss_reconstruction", "loss_commitment", "loss_entropy", "psnr", "learning_rate", "grad_norm"}
    assert all(names <= row.keys() for row in rows)
    for row in rows:
        assert row["loss"] == pytest.approx(
            sum(row[f"loss_{name}"] for name in ("reconstruction", "commitment", "entropy")), abs=1e-5
        )
    first, last = (sum(row["loss_reconstruction"] for row in part) for part in (rows[:5], rows[-5:]))
    assert last < 0.9 * first
    checks = [row for row in log_of(output) if "eval_loss" in row]
    assert [row["step"] for row in checks] == [15, 30] and all("eval_psnr" in row for row in checks)


def test_a_stopped_run_goes_on_to_the_same_weights(images, tmp_path):
    run_recipe(recipe(images, tmp_path / "whole", muon=True))
    with pytest.raises(Unfinished):
        run_recipe(recipe(images, tmp_path / "stopped", muon=True, max_minutes=0.0))
    run_recipe(recipe(images, tmp_path / "stopped", muon=True))
    whole, resumed = (ShowoLFQTokenizer.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "stopped"))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    assert [row["step"] for row in log_of(tmp_path / "stopped") if "loss" in row] == [1, 2, 3, 4]
    with pytest.raises(TrainingError, match="`codebook_bits` was 4 and is 5"):
        run_recipe(recipe(images, tmp_path / "stopped", muon=True, codebook_bits=5))


def test_a_dry_run_prints_a_plan_and_writes_nothing(images, tmp_path):
    plan = plan_of(recipe(images, tmp_path / "out", steps=3600, muon=True))
    parameters = sum(weight.numel() for weight in load_image_tokenizer(recipe(images, tmp_path / "x")).parameters())
    assert f"{parameters:,}, all trained" in plan and "16 x 16 pixels as 8 x 8 tokens of 16 codes" in plan
    assert "images a step   3" in plan and "time of the run" in plan
    assert not list(tmp_path.iterdir())


def test_training_starts_from_the_weights_of_a_model(images, tmp_path):
    start = tmp_path / "start"
    load_image_tokenizer(recipe(images, tmp_path / "x")).save_pretrained(start)
    config = load_recipe(
        "lfq-tokenizer",
        [f"data={images}", f"output={tmp_path / 'y'}", "steps=1", f"model={start}", "entropy_weight=0.7"],
    )
    model = load_image_tokenizer(config)
    assert model.config.codebook_bits == 4 and model.config.sample_size == SIZE and model.config.entropy_weight == 0.7
    for name, value in ShowoLFQTokenizer.from_pretrained(start).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_another_number_of_bits_keeps_all_weights_but_those_at_the_quantizer(images, tmp_path):
    start = tmp_path / "start"
    load_image_tokenizer(recipe(images, tmp_path / "x")).save_pretrained(start)
    wider = load_image_tokenizer(recipe(images, tmp_path / "y", model=start, codebook_bits=5))
    assert wider.config.codebook_bits == 5
    missing = load_matching_weights(wider, str(start))
    changed = {
        name
        for name, value in ShowoLFQTokenizer.from_pretrained(start).state_dict().items()
        if wider.state_dict()[name].shape != value.shape
    }
    assert set(missing) == changed and 0 < len(changed) < 10


def test_the_published_architecture_is_the_default():
    config = tokenizer_config(load_recipe("lfq-tokenizer", ["data=x", "output=y", "steps=1"]))
    published = ShowoLFQTokenizerConfig()
    assert config.codebook_bits == 13 and config.encoder_block_out_channels == published.encoder_block_out_channels


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["architecture={norm_groups: 4}"], "did you mean 'norm_num_groups'"),
        (["architecture={codebook_bits: 4}"], "`architecture` must hold .* got 'codebook_bits'"),
        (["codebook_bits=99"], "`codebook_bits` must be from 1 to 24"),
        (["image_size=100"], "`image_size` must be a multiple of 16"),
    ],
)
def test_a_wrong_architecture_is_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_config(load_recipe("lfq-tokenizer", ["data=x", "output=y", "steps=1", *entries]))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["shift=-1"], "`shift`"),
        (["push_steps=5"], "`push_steps` has no effect"),
        (["keep_best=true"], "need `validation_data`"),
        (["prompts=[a]"], "no key `prompts`"),
        (["data={t2i: x}"], "`data` must be one of image"),
    ],
)
def test_a_wrong_recipe_is_refused(entries, message):
    given = [entry for entry in ("data=x",) if not any(one.startswith("data") for one in entries)]
    with pytest.raises(RecipeError, match=message):
        load_recipe("lfq-tokenizer", [*given, "output=y", "steps=1", *entries])


def test_a_folder_without_images_is_refused_before_work_starts(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        run_recipe(recipe(tmp_path / "empty", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def built(shift=0, mirror=False, seeds=range(300)):
    """Images of one black pixel row at the left, and white elsewhere."""
    image = Image.new("RGB", (SIZE, SIZE), "white")
    image.paste("black", (4, 0, 5, SIZE))
    rows = [Example(str(seed), seed, image=image) for seed in seeds]
    return ImageBuilder(showo_image_processor(SIZE), mirror, shift)({"image": rows})


def test_images_are_shifted_and_mirrored_by_their_own_seed():
    batch = built(shift=3, mirror=True)
    assert batch.pixel_values.shape == (300, 3, SIZE, SIZE) and set(batch.pixel_values.unique().tolist()) == {
        -1.0,
        1.0,
    }
    columns = [int((image[0, SIZE // 2] < 0).nonzero()[0]) for image in batch.pixel_values]
    assert set(columns) == {*range(1, 8), *range(8, 15)}, "4 or 11, by up to 3 in both directions"
    alone = built(shift=3, mirror=True, seeds=[17])
    assert torch.equal(alone.pixel_values[0], batch.pixel_values[17])
    assert (built().pixel_values == built().pixel_values[:1]).all()


def test_a_batch_of_broken_images_is_empty():
    assert built(seeds=[]).pixel_values.shape == (0, 3, SIZE, SIZE)


def test_the_reconstruction_loss_of_equal_images_is_zero():
    one = torch.rand(2, 3, 16, 16) * 2 - 1
    assert multi_scale_loss(one, one) == 0
    # 0.5 everywhere, at each resolution: the absolute difference, plus four times its square
    assert multi_scale_loss(one + 0.5, one).item() == pytest.approx(0.5 + 4 * 0.25)


def test_the_losses_are_those_of_the_tokenizer(images, tmp_path):
    model = load_image_tokenizer(recipe(images, tmp_path / "x"))
    pixels = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    losses, quality = reconstruction_losses(model, pixels)
    output = model(pixels, return_losses=True)
    assert set(losses) == {"reconstruction", "commitment", "entropy"}
    assert losses["commitment"] == output.commitment_loss and losses["entropy"] == output.entropy_loss
    mse = (output.sample.clamp(-1, 1) - pixels).square().flatten(1).mean(1)
    assert quality.item() == pytest.approx((10 * torch.log10(4 / mse)).mean().item(), rel=1e-5)
