"""Training of image tokenizers on a folder of real files."""

import json
import math

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from showo_hf import ShowoLFQTokenizer, ShowoVQTokenizer
from showo_hf.models.configuration_showo_lfq import ShowoLFQTokenizerConfig
from showo_hf.processing.processing_showo import showo_image_processor
from showo_hf.training.data.examples import Example
from showo_hf.training.discriminator import PatchDiscriminator
from showo_hf.training.dry_run import plan_of
from showo_hf.training.image_batches import ImageBuilder, resized
from showo_hf.training.image_configs import ImageTokenizerConfig
from showo_hf.training.image_tokenizers import (
    load_image_tokenizer,
    load_matching_weights,
    tokenizer_config,
    tokenizer_losses,
)
from showo_hf.training.recipe_entries import RecipeError
from showo_hf.training.recipe_files import load_recipe
from showo_hf.training.run import TrainingError, Unfinished, run_recipe
from showo_hf.training.tokenizer_losses import TokenizerLosses


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


@pytest.mark.slow
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
        (["prompts=[a]"], "no key 'prompts'"),
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


def losses_of(config: ImageTokenizerConfig):
    return tokenizer_losses(config, torch.device("cpu"), learning_rate=1e-3)


def test_the_losses_are_those_of_the_tokenizer(images, tmp_path):
    config = recipe(images, tmp_path / "x", discriminator=None)
    model = load_image_tokenizer(config)
    pixels = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    made = losses_of(config).of(model, pixels)
    output = model(pixels, return_losses=True)
    assert set(made.losses) == {"reconstruction", "commitment", "entropy"}
    assert made.losses["commitment"] == output.commitment_loss and made.losses["entropy"] == output.entropy_loss
    assert made.losses["reconstruction"] == (output.sample - pixels).abs().mean()
    mse = (output.sample.clamp(-1, 1) - pixels).square().flatten(1).mean(1)
    assert made.measures["psnr"].item() == pytest.approx((10 * torch.log10(4 / mse)).mean().item(), rel=1e-5)


def test_the_shipped_recipes_have_the_published_weights():
    for name in ("lfq-tokenizer", "vq-tokenizer"):
        config = load_recipe(name, ["data=x", "output=y", "steps=1"])
        weights = {"l1": 1.0, "perceptual": 1.0, "generator": 0.1, "feature_matching": 1.0, "lecam": 0.05}
        assert {name: weight for name, weight in config.loss_weights.items() if weight} == weights
        assert tokenizer_config(config).commitment_weight == 0.25
        assert config.training["learning_rate"] == 1e-4 and config.training["lr_scheduler_type"] == "cosine"
    assert tokenizer_config(load_recipe("lfq-tokenizer", ["data=x", "output=y", "steps=1"])).entropy_weight == 0.1


@pytest.mark.parametrize(
    ("entries", "weight"),
    [
        ([], 1.0),
        (["loss_weights.perceptual=0.5"], 0.5),
        (["loss_weights.feature_matching=0"], 0.0),
        (["loss_weights={feature_matching: 2}"], 2.0),
        (["perceptual=a-classifier"], 0.0),
        (["discriminator=null"], 0.0),
    ],
)
def test_the_discriminators_features_stand_in_for_a_perceptual_model(entries, weight):
    config = load_recipe("lfq-tokenizer", ["data=x", "output=y", "steps=1", *entries])
    assert config.loss_weights["feature_matching"] == weight


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            ["discriminator=null", "loss_weights.generator=0.1"],
            "`loss_weights.generator` needs a `discriminator`, got 0.1",
        ),
        (["discriminator=null", "loss_weights.feature_matching=1"], "`loss_weights.feature_matching` needs"),
        (
            ["discriminator=null", "loss_weights.perceptual=1"],
            "`loss_weights.perceptual` needs `perceptual`, or a `disc",
        ),
        (["loss_weights={perceptual: 0.5, feature_matching: 2}"], "`loss_weights.perceptual` needs .*, got 0.5"),
        (["discriminator=null", "loss_weights.lecam=0.1"], "`loss_weights.lecam` needs a `discriminator`"),
        (["discriminator.adaptive=true", "torch_compile=true"], "`torch_compile` cannot be given"),
        (["loss_weights={l3: 1}"], "`loss_weights` must be one of l1, mse"),
        (["loss_weights.l1=-1"], "`loss_weights.l1`"),
        (["discriminator.widths=3"], "`discriminator` must be one of channels"),
        (["discriminator.channels=12"], "multiples of 8 for group norm"),
        (["discriminator.norm=batch"], "`discriminator.norm` must be one of group, spectral, none"),
        (["discriminator.beta1=1.5"], "`discriminator.beta1`"),
        (["discriminator.start=-1"], "`discriminator.start`"),
        (["image_size={10: 32}"], "from step 0 on"),
        (["image_size={0: 0}"], "`image_size.0`"),
        (["image_size=a"], "`image_size`"),
        (["trained='('"], "`trained` must be a regular expression"),
        (["pixel_scales=0"], "`pixel_scales`"),
        (["image_size=16", "pixel_scales=6"], "`pixel_scales` must be at most 5 for an `image_size` of 16, got 6"),
        (["image_size={0: 64, 10: 8}", "pixel_scales=5"], "`pixel_scales` must be at most 4 for an `image_size` of 8"),
        (["image_size=8", "discriminator.halvings=4"], "`discriminator.halvings` must be at most 3 for .* 8, got 4"),
        (
            ["image_size={0: 8, 6: 64}", "discriminator.halvings=4", "discriminator.start=5"],
            "`discriminator.halvings` must be at most 3",
        ),
        (
            ["discriminator.adaptive=true", "loss_weights={l1: 0}"],
            "`discriminator.adaptive` .* one of `loss_weights.l1`, .* or `perceptual`",
        ),
        (
            ["discriminator.adaptive=true", "loss_weights={l1: 0, perceptual: 0}", "perceptual=a-classifier"],
            "`discriminator.adaptive` compares",
        ),
        (["codebook_size=5"], "no key 'codebook_size'"),
    ],
)
def test_wrong_losses_are_refused(entries, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("lfq-tokenizer", ["data=x", "output=y", "steps=1", *entries])


@pytest.mark.parametrize(
    "entries",
    [
        ["image_size=16", "pixel_scales=5", "discriminator.halvings=4"],
        ["image_size={0: 8, 5: 64}", "discriminator.halvings=4", "discriminator.start=5"],
        ["discriminator.adaptive=true", "loss_weights={l1: 0, log_cosh: 1}"],
        ["discriminator.adaptive=true", "loss_weights={l1: 0}", "perceptual=a-classifier"],
    ],
)
def test_losses_at_their_limits_are_taken(entries):
    load_recipe("lfq-tokenizer", ["data=x", "output=y", "steps=1", *entries])


def test_the_size_of_the_model_limits_the_losses_where_the_recipe_has_none():
    config = load_recipe("lfq-tokenizer", ["data=x", "output=y", "steps=1", "discriminator.halvings=9"])
    with pytest.raises(
        ValueError, match="`discriminator.halvings` must be at most 8 for an `image_size` of 256, got 9"
    ):
        tokenizer_config(config)


def test_a_size_of_the_schedule_that_the_tokenizer_cannot_halve_is_refused():
    config = load_recipe("vq-tokenizer", ["data=x", "output=y", "steps=1", "image_size={0: 40, 10: 64}"])
    with pytest.raises(ValueError, match="`image_size` must be a multiple of 16, got 40"):
        tokenizer_config(config)


@pytest.mark.slow
def test_images_have_the_size_of_the_step(images, tmp_path, monkeypatch):
    seen = []
    original = TokenizerLosses.of

    def of(objective, model, pixels):
        seen.append((torch.is_grad_enabled(), pixels.shape[-1]))
        return original(objective, model, pixels)

    monkeypatch.setattr(TokenizerLosses, "of", of)
    output = tmp_path / "tokenizer"
    run_recipe(recipe(images, output, image_size={2: 8, 0: 16, 3: 12}, validation_data=images, eval_steps=4))
    assert [size for training, size in seen if training] == [16, 16, 8, 12]
    assert {size for training, size in seen if not training} == {12}
    assert ShowoLFQTokenizer.from_pretrained(output).config.sample_size == 12


def test_resizing_leaves_out_what_does_not_fit():
    stripes = torch.ones(1, 3, 16, 16)
    stripes[..., ::2] = -1.0
    assert resized(stripes, 16) is stripes and resized(stripes, None) is stripes
    assert resized(stripes, 8)[..., 2:-2].abs().max() < 0.15
    assert resized(torch.full((1, 3, 16, 16), 0.5), 8).sub(0.5).abs().max() < 1e-6


def test_only_what_is_named_is_trained(images, tmp_path):
    start = tmp_path / "start"
    load_image_tokenizer(recipe(images, tmp_path / "x")).save_pretrained(start)
    run_recipe(
        recipe(images, tmp_path / "out", model=start, trained="decoder", discriminator={"start": 0, "channels": 8})
    )
    before, after = (ShowoLFQTokenizer.from_pretrained(path) for path in (start, tmp_path / "out"))
    for name, value in before.named_parameters():
        assert torch.equal(value, after.get_parameter(name)) == (not name.startswith("decoder.")), name
    with pytest.raises(ValueError, match="`trained` must match the name of a parameter"):
        load_image_tokenizer(recipe(images, tmp_path / "y", trained="nothing"))


def test_a_codebook_of_averages_alone_cannot_be_trained_by_gradients(images, tmp_path):
    with pytest.raises(ValueError, match="`trained` must match the name of a parameter that gradients change"):
        load_image_tokenizer(vq_recipe(images, tmp_path / "out", trained="quantizer"))


def vq_recipe(images, output, **changes):
    entries = {
        "data": str(images), "output": str(output), "steps": 4, "image_size": SIZE, "batch_size": 3, "save_steps": 2,
        "codebook_size": 32, "codebook_dim": 4, "logging_steps": 1, "warmup_steps": 0, "report_to": "none",
        "architecture": {
            **ARCHITECTURE, "latent_channels": 8,
            "encoder_block_attention": [False, False], "decoder_block_attention": [False, False],
        },
        **changes,
    }  # fmt: skip
    return load_recipe("vq-tokenizer", [f"{key}={json.dumps(value)}" for key, value in entries.items()])


@pytest.mark.parametrize("learning", ["ema", pytest.param("gradient", marks=pytest.mark.slow)])
def test_a_folder_of_images_becomes_a_tokenizer_with_a_codebook(images, tmp_path, learning):
    output = tmp_path / "tokenizer"
    run_recipe(vq_recipe(images, output, codebook_learning=learning, steps=40, learning_rate=0.003))
    tokenizer = ShowoVQTokenizer.from_pretrained(output)
    fresh = load_image_tokenizer(vq_recipe(images, tmp_path / "x", codebook_learning=learning))
    assert tokenizer.config.codebook_learning == learning and tokenizer.config.codebook_size == 32
    rows = [row for row in log_of(output) if "loss_reconstruction" in row]
    assert rows[0]["restarted_codes"] > 20, "all codes are dead at first"
    assert sum(row["loss_reconstruction"] for row in rows[-5:]) < 0.9 * sum(
        row["loss_reconstruction"] for row in rows[:5]
    )
    assert ("loss_codebook" in rows[0]) == (learning == "gradient")
    assert all(row["images_per_second"] == pytest.approx(3 / row["seconds_per_step"]) for row in rows)
    moved = (tokenizer.quantizer.codebook - fresh.quantizer.codebook).abs().amax(1)
    assert (moved > 1e-3).all()


def test_the_average_of_a_restarted_code_starts_at_its_new_place(images, tmp_path):
    config = vq_recipe(images, tmp_path / "out", codebook_learning="gradient", ema_decay=0.999, steps=1)
    run_recipe(config)
    root = tmp_path / "out-checkpoints" / "checkpoint-1"
    trained, averaged = (load_file(root / f"{name}.safetensors")["quantizer.codebook"] for name in ("model", "ema"))
    fresh = load_image_tokenizer(config).quantizer.codebook
    restarted = (trained - fresh).abs().amax(1) > 0.01
    assert restarted.sum() > 20 and torch.equal(trained[restarted], averaged[restarted])


def test_a_frozen_codebook_is_not_restarted(images, tmp_path):
    start = tmp_path / "start"
    model = load_image_tokenizer(vq_recipe(images, tmp_path / "x"))
    model.save_pretrained(start)
    run_recipe(vq_recipe(images, tmp_path / "out", model=str(start), trained="decoder"))
    assert torch.equal(ShowoVQTokenizer.from_pretrained(tmp_path / "out").quantizer.codebook, model.quantizer.codebook)


def test_a_codebook_of_another_size_starts_anew(images, tmp_path):
    model = load_image_tokenizer(vq_recipe(images, tmp_path / "x"))
    model.quantizer.code_usage.fill_(1.0)
    model.save_pretrained(tmp_path / "start")
    same, other = (
        load_image_tokenizer(vq_recipe(images, tmp_path / "y", model=str(tmp_path / "start"), codebook_size=size))
        for size in (32, 64)
    )
    assert (same.quantizer.code_usage == 1).all() and (other.quantizer.code_usage == 0).all()
    assert torch.equal(same.decoder.conv_out.weight, other.decoder.conv_out.weight)


def test_the_adaptive_weight_needs_the_last_layer(images, tmp_path):
    discriminator = {"channels": 8, "adaptive": True}
    message = "`discriminator.adaptive` needs .*decoder.conv_out.weight.* `trained`, got .encoder"
    with pytest.raises(RecipeError, match=message):
        recipe(images, tmp_path / "out", trained="encoder", discriminator=discriminator)
    for trained in (None, "decoder", "conv_out"):
        assert recipe(images, tmp_path / "out", trained=trained, discriminator=discriminator).discriminator["adaptive"]
    assert recipe(images, tmp_path / "out", trained="encoder", discriminator={"channels": 8}).trained == "encoder"


@pytest.mark.parametrize("norm", ["group", pytest.param("spectral", marks=pytest.mark.slow)])
def test_the_discriminator_computes_in_mixed_precision(images, tmp_path, monkeypatch, norm):
    seen = []
    original = PatchDiscriminator.forward

    def forward(discriminator, pixels):
        judged = original(discriminator, pixels)
        seen.append((judged.logits.requires_grad, discriminator.first.weight.dtype, judged.logits.dtype))
        return judged

    monkeypatch.setattr(PatchDiscriminator, "forward", forward)
    options = {"start": 0, "channels": 8, "halvings": 2, "adaptive": True, "norm": norm}
    run_recipe(recipe(images, tmp_path / "out", steps=1, use_cpu=True, bf16=True, discriminator=options))
    kinds = [True, False, True]  # the made images, the real ones for their features, both when it learns
    assert seen == [(gradient, torch.float32, torch.bfloat16) for gradient in kinds]
    (row,) = (row for row in log_of(tmp_path / "out") if "loss" in row)
    assert math.isfinite(row["grad_norm"]) and row["loss_feature_matching"] > 0 and row["discriminator"] > 0


def test_a_missing_perceptual_model_is_refused_before_work_starts(images, tmp_path):
    with pytest.raises(ValueError, match="`perceptual` must be"):
        run_recipe(recipe(images, tmp_path / "out", perceptual=str(tmp_path / "lpips.safetensors")))
    assert not (tmp_path / "out").exists()
