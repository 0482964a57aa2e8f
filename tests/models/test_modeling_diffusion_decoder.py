"""The diffusion decoder: schedulers, steps, seeds, tiles, folders."""

import json

import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from showo_hf import ShowoDiffusionDecoder, ShowoDiffusionDecoderConfig
from showo_hf.models.configuration_diffusion_decoder import default_scheduler
from showo_hf.models.modeling_diffusion_decoder import gaussian_blur
from showo_hf.schedulers.gaussian_diffusion import flow_sample, q_sample, target_of


PIXELS = tiny.SIDE * tiny.FACTOR
KINDS = ["epsilon", "v_prediction", "flow_prediction"]
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
#: For each prediction type, schedulers and what they need beside the config of the decoder's own.
SCHEDULERS = {
    "flow_prediction": [
        (FlowMatchEulerDiscreteScheduler, {}),
        (FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": True}),
        (DPMSolverMultistepScheduler, FLOW),
    ],
    **{
        kind: [(DDPMScheduler, {}), (DDIMScheduler, {}), (DPMSolverMultistepScheduler, {})]
        for kind in ("epsilon", "v_prediction")
    },
}
EVERY = [(kind, *swapped) for kind, listed in SCHEDULERS.items() for swapped in listed]


def named(value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "-".join(value)
    return getattr(value, "__name__", type(value).__name__)


def with_scheduler(decoder: ShowoDiffusionDecoder, scheduler, options) -> ShowoDiffusionDecoder:
    """The decoder with another scheduler."""
    decoder.set_scheduler(scheduler.from_config(decoder.scheduler.config, **options))
    assert type(decoder.scheduler) is scheduler
    return decoder


def inputs(batch=2, side=tiny.SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (batch, 6, h, w) and smooth images (batch, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(batch, tiny.BITS, side, side, generator=generator).sign()
    small = torch.rand(batch, 3, side, side, generator=generator) * 1.6 - 0.8
    return codes, F.interpolate(small, scale_factor=tiny.FACTOR, mode="bilinear")


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Knows(ShowoDiffusionDecoder):
    """Predicts exactly, from the image that it is told."""

    pixels: torch.Tensor

    def forward(self, sample, timestep, codes, image):
        clean = self.to_denoised(self.pixels, image)
        time = torch.as_tensor(timestep, dtype=torch.float32)
        if self.config.prediction_type == "flow_prediction":
            return (sample - clean) / (time / 1000)
        signal = self.scheduler.alphas_cumprod[time.long()]
        noise = (sample - signal.sqrt() * clean) / (1 - signal).sqrt()
        return target_of(clean, noise, signal, self.config.prediction_type)


def slightly_changed(image: torch.Tensor) -> torch.Tensor:
    """Images (batch, 3, H, W) with some noise, in [-1, 1]."""
    return (image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)


@pytest.mark.parametrize(("kind", "scheduler", "options"), EVERY, ids=named)
@pytest.mark.parametrize("start", ["image", "noise"])
def test_every_scheduler_reaches_what_an_exact_network_knows(kind, scheduler, options, start):
    codes, image = inputs()
    config = tiny.image_decoder(prediction_type=kind, start=start, residual_scale=0.2).config
    decoder = with_scheduler(Knows(config), scheduler, options)
    decoder.pixels = slightly_changed(image)
    found = decoder.decode(codes, image, 8, generators(1, 2)).sample
    torch.testing.assert_close(found, decoder.pixels, rtol=0, atol=2e-2)
    assert (found - decoder.pixels).abs().max() < 0.2 * (image - decoder.pixels).abs().max()


@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler])
def test_a_timestep_below_zero_that_rounding_makes_is_left_out(scheduler):
    """diffusers' spacing "trailing" ends 61 steps with -1, which would mean the last noise level."""
    codes, image = inputs()
    decoder = Knows(tiny.image_decoder(prediction_type="epsilon", residual_scale=0.2).config)
    decoder.set_scheduler(scheduler.from_config(decoder.scheduler.config))
    decoder.pixels = slightly_changed(image)
    seen, forward = [], decoder.forward

    def watched(sample, timestep, codes, image):
        seen.append(int(timestep))
        return forward(sample, timestep, codes, image)

    decoder.forward = watched
    found = decoder.decode(codes, image, 61, generators(1, 2)).sample
    assert len(seen) == 61 and min(seen) >= 0
    torch.testing.assert_close(found, decoder.pixels, rtol=0, atol=2e-2)


def test_more_steps_than_noise_levels_are_refused():
    message = "`num_inference_steps` must be at most 1,000, got 1001"
    with pytest.raises(ValueError, match=message):
        tiny.image_decoder(prediction_type="epsilon").decode(*inputs(), 1001)
    with pytest.raises(ValueError, match=message):
        tiny.image_decoder(prediction_type="epsilon", num_inference_steps=1001)


def test_epsilon_needs_some_signal_at_its_last_noise_level():
    scheduler = default_scheduler("epsilon") | {"rescale_betas_zero_snr": True}
    with pytest.raises(ValueError, match="`scheduler` must leave some of the image in its last noise level"):
        tiny.image_decoder(prediction_type="epsilon", scheduler=scheduler)


@pytest.mark.parametrize("start", ["image", "noise"])
def test_in_pixels_a_flow_is_the_straight_line_from_its_start(start):
    """From the tokenizer's image D with noise, D + s eps, or from noise alone, to the image."""
    codes, image = inputs()
    decoder = Knows(tiny.image_decoder(start=start, residual_scale=0.2).config)
    decoder.pixels = slightly_changed(image)
    noise = torch.cat([torch.randn(1, *image.shape[1:], generator=generator) for generator in generators(1, 2)])
    first = (image if start == "image" else 0) + 0.2 * noise
    seen, forward = [], decoder.forward

    def watched(sample, timestep, codes, image):
        seen.append((float(timestep) / 1000, decoder.to_pixels(sample, image)))
        return forward(sample, timestep, codes, image)

    decoder.forward = watched
    decoder.decode(codes, image, 4, generators(1, 2))
    assert [time for time, _ in seen] == [1.0, 0.75, 0.5, 0.25]
    for time, pixels in seen:
        torch.testing.assert_close(pixels, time * first + (1 - time) * decoder.pixels, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "scheduler", "options"), EVERY, ids=named)
def test_an_image_of_a_batch_is_the_one_that_its_generator_gives_alone(kind, scheduler, options):
    codes, image = inputs(3)
    decoder = with_scheduler(tiny.image_decoder(prediction_type=kind), scheduler, options)
    together = decoder.decode(codes, image, 3, generators(4, 5, 6)).sample
    alone = decoder.decode(codes[1:2], image[1:2], 3, generators(5)).sample
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    assert torch.equal(together, decoder.decode(codes, image, 3, generators(4, 5, 6)).sample)
    other = decoder.decode(codes, image, 3, generators(4, 7, 6)).sample
    assert not torch.equal(other[1], together[1])
    torch.testing.assert_close(other[0], together[0], rtol=0, atol=1e-4)


def test_pixels_are_in_range_and_differ_from_the_tokenizers():
    codes, image = inputs()
    found = tiny.image_decoder(residual_scale=2.0).decode(codes, image, generator=generators(1, 2)).sample
    assert found.shape == image.shape and found.dtype == image.dtype
    assert found.min() >= -1 and found.max() <= 1
    assert (found - image).abs().mean() > 0.1


def test_steps_by_default_are_the_configs_and_none_return_the_image():
    codes, image = inputs()
    decoder = tiny.image_decoder(num_inference_steps=3)
    seen = []
    decoder.decode(codes, image, generator=generators(1, 2), callback=lambda number, _: seen.append(number))
    assert seen == [0, 1, 2]
    assert decoder.decode(codes, image, 0).sample is image


def test_steps_of_a_flow_are_equally_long(monkeypatch):
    codes, image = inputs(1)
    decoder = tiny.image_decoder()
    times, forward = [], decoder.forward

    def watched(sample, timestep, codes, image):
        times.append(float(timestep))
        return forward(sample, timestep, codes, image)

    monkeypatch.setattr(decoder, "forward", watched)
    decoder.decode(codes, image, 4, generators(1))
    assert times == [1000.0, 750.0, 500.0, 250.0]


def test_one_step_with_its_own_low_band_is_the_expectation():
    """After one step of a flow nothing is left but the expectation, so both bands are the same."""
    codes, image = inputs()
    whole = tiny.image_decoder().decode(codes, image, 1, generators(1, 2)).sample
    banded = tiny.image_decoder(low_band_sigma=1.5).decode(codes, image, 1, generators(1, 2)).sample
    torch.testing.assert_close(banded, whole, rtol=0, atol=1e-5)


def test_the_low_band_comes_from_the_first_step():
    codes, image = inputs(1)
    decoder = tiny.image_decoder(low_band_sigma=1.0, residual_scale=0.1)
    plain = tiny.image_decoder(residual_scale=0.1)
    first = plain.decode(codes, image, 1, generators(1)).sample
    chain = plain.decode(codes, image, 4, generators(1)).sample
    found = decoder.decode(codes, image, 4, generators(1)).sample
    torch.testing.assert_close(found, chain + gaussian_blur(first - chain, 1.0), rtol=0, atol=1e-5)
    assert (found - chain).abs().max() > 1e-3


def test_blur_keeps_flat_images_and_is_a_gaussian():
    flat = torch.full((1, 2, 9, 9), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, 2.0), flat)
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    blurred = gaussian_blur(point, 1.5)
    torch.testing.assert_close(blurred.sum(), torch.ones(()))
    ratio = (blurred[0, 0, 10, 12] / blurred[0, 0, 10, 10]).log()
    torch.testing.assert_close(ratio, torch.tensor(-(2**2) / (2 * 1.5**2)))


@pytest.mark.parametrize(("kind", "last"), [("epsilon", 999), ("v_prediction", 999), ("flow_prediction", 1000)])
@torch.no_grad()
def test_the_last_timestep_is_that_of_the_most_noise(kind, last):
    decoder = tiny.image_decoder(prediction_type=kind)
    sample, codes, image = torch.zeros(1, 3, 16, 16), torch.zeros(1, tiny.BITS, 4, 4), torch.zeros(1, 3, 16, 16)
    assert decoder(sample, float(last), codes, image).isfinite().all() and decoder.last_timestep == last
    with pytest.raises(ValueError, match=f"`timestep` must be at most {last:,}, got {last + 1}.0"):
        decoder(sample, last + 1.0, codes, image)


@pytest.mark.parametrize("kind", KINDS)
def test_the_expectation_of_an_exact_prediction_is_exact(kind):
    decoder = tiny.image_decoder(prediction_type=kind)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    if kind == "flow_prediction":
        timestep, signal = torch.tensor([300.0, 900.0]), torch.ones(())
        noised = flow_sample(clean, noise, timestep / 1000)
    else:
        timestep = torch.tensor([300, 900])
        noised = q_sample(clean, noise, timestep, decoder.scheduler.alphas_cumprod)
        signal = decoder.scheduler.alphas_cumprod[timestep].view(-1, 1, 1, 1)
    found = decoder.expectation(target_of(clean, noise, signal, kind), noised, timestep.view(-1, 1, 1, 1))
    torch.testing.assert_close(found, clean, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("kind", "factor"), [("epsilon", 14.6), ("v_prediction", 1.0), ("flow_prediction", 1.0)])
def test_the_default_scheduler_forgives_an_error_of_the_first_prediction(kind, factor):
    """Sampling starts where hardly anything of z is left, so an error of the noise is a larger one of z."""
    decoder = tiny.image_decoder(prediction_type=kind)
    decoder.scheduler.set_timesteps(4)
    first = decoder.scheduler.timesteps[0]
    sample = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    right, wrong = (decoder.expectation(torch.full_like(sample, value), sample, first) for value in (0.0, 1.0))
    assert (right - wrong).abs().max().item() == pytest.approx(factor, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_zeros_predicts_the_best_linear_estimate(kind):
    """The regression of the target on z_t, for z and noise of unit variance; what is left is the network's, times c_out."""
    decoder = tiny.image_decoder(prediction_type=kind)
    torch.nn.init.zeros_(decoder.unet.conv_out.weight)
    torch.nn.init.zeros_(decoder.unet.conv_out.bias)
    codes, image = inputs(8, side=16)
    clean, noise = torch.randn(2, *image.shape, generator=torch.Generator().manual_seed(0))
    for timestep in (100, 500, 800):
        times = torch.full((8,), timestep)
        if kind == "flow_prediction":
            share = timestep / 1000
            noised, signal, variance = flow_sample(clean, noise, times / 1000), None, 1 / (share**2 + (1 - share) ** 2)
        else:
            signal = decoder.scheduler.alphas_cumprod[timestep]
            noised = q_sample(clean, noise, times, decoder.scheduler.alphas_cumprod)
            variance = signal if kind == "epsilon" else 1.0
        target = target_of(clean, noise, signal, kind)
        with torch.no_grad():
            found = decoder(noised, torch.tensor(float(timestep)), codes, image)
        slope = (noised * target).sum() / noised.square().sum()
        torch.testing.assert_close(found, slope * noised, rtol=0.05, atol=0.1)
        assert ((target - found).var() / variance).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("start", ["image", "noise"])
def test_the_prediction_depends_on_the_codes_and_on_the_image(start):
    """A change of one token, or of its pixels, changes the prediction most at its place."""
    decoder = tiny.image_decoder(start=start)
    codes, image = inputs(1)
    sample, time = torch.randn(image.shape, generator=torch.Generator().manual_seed(1)), torch.tensor(500.0)
    row, column, size = 1, 2, tiny.FACTOR
    other_codes, other_image = codes.clone(), image.clone()
    other_codes[..., row, column] *= -1
    other_image[..., row * size : (row + 1) * size, column * size : (column + 1) * size] *= -1
    with torch.no_grad():
        before = decoder(sample, time, codes, image)
        for changed in ((other_codes, image), (codes, other_image)):
            change = F.avg_pool2d((decoder(sample, time, *changed) - before).abs().mean(1, keepdim=True), size)
            assert change.argmax() == row * tiny.SIDE + column
            assert change.max() > 0.05


# Tiles


def test_tiles_of_the_whole_image_change_nothing():
    codes, image = inputs()
    decoder = tiny.image_decoder()
    whole = decoder.decode(codes, image, generator=generators(1, 2)).sample
    decoder.enable_tiling()
    assert torch.equal(decoder.decode(codes, image, generator=generators(1, 2)).sample, whole)


def test_tiles_bound_what_the_network_sees_and_fit_together(monkeypatch):
    codes, image = inputs(1, side=10)
    decoder = tiny.image_decoder()
    whole = decoder.decode(codes, image, generator=generators(1)).sample
    sizes, forward = set(), decoder.forward

    def watched(sample, timestep, codes, image):
        sizes.add((*sample.shape[-2:], *codes.shape[-2:], *image.shape[-2:]))
        return forward(sample, timestep, codes, image)

    monkeypatch.setattr(decoder, "forward", watched)
    decoder.enable_tiling(PIXELS)
    tiled = decoder.decode(codes, image, generator=generators(1)).sample
    assert sizes == {(PIXELS, PIXELS, 4, 4, PIXELS, PIXELS)}
    assert 0 < (tiled - whole).abs().mean() < (whole - image).abs().mean()  # each tile has norms of its own
    decoder.disable_tiling()
    assert torch.equal(decoder.decode(codes, image, generator=generators(1)).sample, whole)


def test_an_exact_network_is_exact_in_tiles():
    codes, image = inputs(1, side=10)
    decoder = tiny.image_decoder(patch_size=1)
    torch.nn.init.zeros_(decoder.unet.conv_out.weight)
    torch.nn.init.zeros_(decoder.unet.conv_out.bias)
    whole = decoder.decode(codes, image, 3, generators(1)).sample
    decoder.enable_tiling(PIXELS)
    torch.testing.assert_close(decoder.decode(codes, image, 3, generators(1)).sample, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tile_size", [0, 6, 2.0])
def test_a_tile_that_is_not_whole_tokens_is_refused(tile_size):
    with pytest.raises(ValueError, match=f"`tile_size` must be a positive multiple of 4 pixels, got {tile_size}"):
        tiny.image_decoder().enable_tiling(tile_size)


# Folders


@pytest.mark.parametrize(
    ("kind", "scheduler", "options"),
    [
        ("flow_prediction", FlowMatchEulerDiscreteScheduler, {"shift": 3.0}),
        ("flow_prediction", DPMSolverMultistepScheduler, FLOW),
        ("epsilon", DDPMScheduler, {"variance_type": "fixed_large"}),
        ("v_prediction", DDIMScheduler, {"set_alpha_to_one": False}),
    ],
    ids=named,
)
def test_a_saved_decoder_loads_with_its_scheduler(tmp_path, kind, scheduler, options):
    codes, image = inputs()
    decoder = with_scheduler(tiny.image_decoder(prediction_type=kind), scheduler, options)
    expected = decoder.decode(codes, image, 3, generators(1, 2)).sample
    decoder.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["scheduler"].items() >= options.items()
    for loaded_class in (ShowoDiffusionDecoder, AutoModel):
        loaded = loaded_class.from_pretrained(tmp_path).eval()
        assert isinstance(loaded, ShowoDiffusionDecoder) and type(loaded.scheduler) is scheduler
        assert torch.equal(loaded.decode(codes, image, 3, generators(1, 2)).sample, expected)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), ShowoDiffusionDecoderConfig)


def test_a_decoder_in_half_precision_makes_nearly_the_same_image(tmp_path):
    codes, image = inputs()
    decoder = tiny.image_decoder(residual_scale=0.1)
    expected = decoder.decode(codes, image, generator=generators(1, 2)).sample
    decoder.to(torch.bfloat16).save_pretrained(tmp_path)
    half = ShowoDiffusionDecoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert (half.decode(codes, image, generator=generators(1, 2)).sample - expected).abs().max() < 0.02


def test_a_folder_of_another_model_is_refused(tmp_path):
    tiny.lfq().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ShowoDiffusionDecoder loads 'showo_diffusion_decoder' models"):
        ShowoDiffusionDecoder.from_pretrained(tmp_path)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_type": "sample"}, "`prediction_type` must be one of epsilon, v_prediction, flow_prediction"),
        ({"start": "code"}, "`start` must be one of image, noise, got 'code'"),
        ({"residual_scale": 0.0}, "`residual_scale` must be greater than 0, got 0.0"),
        ({"low_band_sigma": -1.0}, "`low_band_sigma` must be a finite number that is not negative"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be an integer of at least 1, got 0"),
        ({"block_out_channels": [6, 16]}, "`block_out_channels` must be multiples of `norm_num_groups`"),
        ({"patch_size": 4}, "`downsampling` must be a multiple of 8 pixels"),
        ({"sample_size": 18}, "`sample_size` must be a multiple of `downsampling`"),
        ({"scheduler": {"_class_name": "EulerDiscreteScheduler"}}, "`scheduler._class_name` must be one of DDPM"),
        ({"scheduler": {"_class_name": "DDPMScheduler"}}, "'flow_prediction', but this one takes 'epsilon'"),
        (
            {"prediction_type": "epsilon", "scheduler": {"_class_name": "DDPMScheduler", "clip_sample_range": "1"}},
            "`scheduler.clip_sample_range` must be a finite number",
        ),
        (
            {"prediction_type": "epsilon", "scheduler": {"_class_name": "DDPMScheduler"}},
            "`scheduler` must have `clip_sample=False`",
        ),
    ],
)
def test_entries_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        tiny.image_decoder(**options)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (EulerDiscreteScheduler(), "must be one of DDPMScheduler, DDIMScheduler"),
        (DDIMScheduler(), "'flow_prediction', but this one takes 'epsilon'"),
        (DPMSolverMultistepScheduler(prediction_type="flow_prediction"), "`use_flow_sigmas=True`.* got False"),
        (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), "`use_dynamic_shifting=False`.* got True"),
        (DPMSolverMultistepScheduler(use_dynamic_shifting=True, **FLOW), "`use_dynamic_shifting=False`.* got True"),
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "`invert_sigmas=False`.* got True"),
        (FlowMatchEulerDiscreteScheduler(num_train_timesteps=500), "`num_train_timesteps=1000`.* got 500"),
        (DPMSolverMultistepScheduler(thresholding=True, **FLOW), "`thresholding=False`.* got True"),
    ],
    ids=named,
)
def test_schedulers_that_do_not_fit_are_refused(scheduler, message):
    decoder = tiny.image_decoder()
    with pytest.raises(ValueError, match=f"`scheduler` .*{message}"):
        decoder.set_scheduler(scheduler)
    assert (
        decoder.scheduler is not scheduler
        and decoder.config.scheduler["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    )


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        (DDPMScheduler, {"clip_sample": True}, "`clip_sample=False`.* got True.*, clip_sample=False"),
        (DDIMScheduler, {"clip_sample": True, "clip_sample_range": 3.9}, "limits .* to 3.9.* as far as 4 from 0"),
        (DPMSolverMultistepScheduler, {"thresholding": True}, "`thresholding=False`.* got True"),
        (DPMSolverMultistepScheduler, {"use_flow_sigmas": True}, "`use_flow_sigmas=False`.* got True"),
        (DDPMScheduler, {"beta_end": 0.02}, "`beta_end` is 0.02 .*0.012"),
        (DDIMScheduler, {"rescale_betas_zero_snr": True}, "`rescale_betas_zero_snr` is True"),
        (DPMSolverMultistepScheduler, {"num_train_timesteps": 500}, "`num_train_timesteps` is 500 .*1000"),
    ],
    ids=named,
)
def test_settings_that_training_did_not_have_are_refused(scheduler, options, message):
    """The message says how to do it right."""
    decoder = tiny.image_decoder(prediction_type="epsilon", residual_scale=0.5)
    with pytest.raises(ValueError, match=rf"`scheduler` .*{message}") as caught:
        decoder.set_scheduler(scheduler.from_config(decoder.scheduler.config, **options))
    assert f"`{scheduler.__name__}.from_config(decoder.scheduler.config" in str(caught.value)
    with pytest.raises(ValueError, match="noise levels .*`beta_schedule` is 'linear' .*'scaled_linear'"):
        decoder.set_scheduler(
            scheduler(**({} if scheduler is DPMSolverMultistepScheduler else {"clip_sample": False}))
        )


def test_clipping_that_cuts_nothing_is_taken():
    """Pixels from -1 to 1, as in DDPM, or 4 times as large: `x - base` is at most 2, in units of 0.5."""
    decoder = tiny.image_decoder(prediction_type="epsilon", residual_scale=0.5)
    with_scheduler(decoder, DDPMScheduler, {"clip_sample": True, "clip_sample_range": 4.0})
    decoder = tiny.image_decoder(prediction_type="epsilon", residual_scale=1.0, start="noise")
    with_scheduler(decoder, DDPMScheduler, {"clip_sample": True})
    with_scheduler(decoder, DPMSolverMultistepScheduler, {"thresholding": True})


@pytest.mark.parametrize(
    ("codes", "image", "steps", "message"),
    [
        ((1, 5, 4, 4), (1, 3, 16, 16), 2, r"`codes` must be \(batch, 6, height, width\), got \(1, 5, 4, 4\)"),
        ((1, 6, 4, 4), (1, 3, 16, 12), 2, r"`image` must have the shape \(1, 3, 16, 16\) .* got \(1, 3, 16, 12\)"),
        ((1, 6, 4, 4), (1, 3, 16, 16), -1, "`num_inference_steps` must be an integer of at least 0, got -1"),
        ((1, 6, 4, 4), (1, 3, 16, 16), 1.5, "`num_inference_steps` must be an integer of at least 0, got 1.5"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(codes, image, steps, message):
    with pytest.raises(ValueError, match=message):
        tiny.image_decoder().decode(torch.ones(codes), torch.zeros(image), steps)
