"""Progressive distillation: one step of the student is two of the teacher."""

import pytest
import tiny
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from test_diffusion_decoder import ARCHITECTURE, SIZE, fresh_accelerator, images, recipe, tokenizer  # noqa: F401

from showo_hf import ShowoDiffusionDecoder, ShowoDiffusionDecoderConfig
from showo_hf.training.diffusion_decoder import FrozenTokenizer, draw_noise, load_models, load_tokenizer
from showo_hf.training.distillation import distilled, on_grid, two_steps
from showo_hf.training.dry_run import plan_of
from showo_hf.training.run import run_recipe


def random_decoder(**options) -> ShowoDiffusionDecoder:
    torch.manual_seed(0)
    sizes = {"codebook_channels": tiny.BITS, "downsampling": tiny.FACTOR, "sample_size": SIZE}
    return ShowoDiffusionDecoder(ShowoDiffusionDecoderConfig(**{**sizes, **ARCHITECTURE, **options})).eval()


def inputs(batch=3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Variable, codes and image."""
    torch.manual_seed(1)
    codes = torch.randn(batch, tiny.BITS, SIZE // tiny.FACTOR, SIZE // tiny.FACTOR).sign()
    return torch.randn(batch, 3, SIZE, SIZE), codes, torch.rand(batch, 3, SIZE, SIZE) * 2 - 1


@given(st.floats(1e-6, 1), st.integers(1, 8))
def test_times_are_those_of_a_sampler(time, steps):
    (found,) = on_grid(torch.tensor([time]), steps).tolist()
    assert round(found * steps) in range(1, steps + 1)
    assert found == pytest.approx(round(found * steps) / steps)
    assert found >= time - 1e-6 and found - time < 1 / steps + 1e-6


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 4), st.integers(0, 100))
def test_a_student_with_the_targets_lands_where_its_teacher_does(steps, seed):
    teacher = random_decoder()
    variable, codes, image = inputs()
    draws = draw_noise(teacher, variable, [seed, seed + 1, seed + 2], steps)
    targets = distilled(teacher, draws, codes, image, steps)
    flow = targets.noise - targets.denoised
    times = draws.timestep / 1000
    landed = two_steps(teacher, draws.noised, times, codes, image, steps)
    torch.testing.assert_close(draws.noised - flow / steps, landed, atol=1e-5, rtol=1e-4)
    # The target is a straight path through the same noised image.
    share = times.view(-1, 1, 1, 1)
    path = (1 - share) * targets.denoised + share * targets.noise
    torch.testing.assert_close(path, draws.noised, atol=1e-5, rtol=1e-4)


def test_two_steps_are_those_of_the_sampler():
    teacher = random_decoder(residual_scale=0.01)  # so that no pixel is clipped
    _, codes, image = inputs()
    image = 0.5 * image
    generators = [torch.Generator().manual_seed(number) for number in range(3)]
    noise = torch.cat(
        [torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(number)) for number in range(3)]
    )
    found = teacher.decode(codes, image, 2, generators).sample
    landed = two_steps(teacher, noise, torch.ones(3), codes, image, 1)
    torch.testing.assert_close(teacher.to_pixels(landed, image), found, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_decoder_is_distilled_to_one_step(images, tokenizer, tmp_path):  # noqa: F811
    wide = {**ARCHITECTURE, "block_out_channels": [32, 32]}
    run_recipe(recipe(images, tokenizer, tmp_path / "teacher", steps=150, learning_rate=0.002, architecture=wide))
    options = {"teacher": tmp_path / "teacher", "decoder_steps": 1, "steps": 100, "learning_rate": 0.002}
    options["architecture"] = {}  # the teacher's
    config = recipe(images, tokenizer, tmp_path / "student", batch_size=6, lr_scheduler_type="linear", **options)
    assert "time of a step" in plan_of(config)
    run_recipe(config)
    teacher = ShowoDiffusionDecoder.from_pretrained(tmp_path / "teacher").eval()
    student = ShowoDiffusionDecoder.from_pretrained(tmp_path / "student").eval()
    assert student.config.num_inference_steps == 1
    assert student.config.residual_scale == teacher.config.residual_scale
    codes, decoded = FrozenTokenizer(load_tokenizer(str(tokenizer)))(inputs(6)[2])

    def drawn(decoder, steps):
        return decoder.decode(codes, decoded, steps, torch.Generator().manual_seed(3)).sample

    wanted = drawn(teacher, 2)
    before, after = ((found - wanted).square().mean() for found in (drawn(teacher, 1), drawn(student, 1)))
    assert after < 0.85 * before  # measured: 0.76


def test_a_student_takes_euler_steps_whatever_its_teacher_takes(images, tokenizer, tmp_path):  # noqa: F811
    teacher = random_decoder()
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    teacher.set_scheduler(DPMSolverMultistepScheduler.from_config(teacher.scheduler.config, **flow))
    teacher.save_pretrained(tmp_path / "teacher")
    config = recipe(
        images, tokenizer, tmp_path / "out", teacher=tmp_path / "teacher", decoder_steps=2, architecture={}
    )
    student, _, loaded = load_models(config)
    assert type(student.scheduler) is FlowMatchEulerDiscreteScheduler
    assert student.config.scheduler["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    assert type(loaded.scheduler) is DPMSolverMultistepScheduler


def test_teachers_that_do_not_fit_are_refused(images, tokenizer, tmp_path):  # noqa: F811
    def refused(message, decoder=None, **options):
        random_decoder(**options).save_pretrained(tmp_path / "teacher")
        changes = {"teacher": tmp_path / "teacher", "decoder_steps": 2} | ({"decoder": decoder} if decoder else {})
        with pytest.raises(ValueError, match=message):
            load_models(recipe(images, tokenizer, tmp_path / "out", **changes))

    random_decoder(residual_scale=0.5).save_pretrained(tmp_path / "student")
    refused("`teacher` must predict 'flow_prediction', got 'epsilon'", prediction_type="epsilon")
    refused("`decoder` and `teacher` must have the same `residual_scale`, got 0.5 and", decoder=tmp_path / "student")
    refused("do not fit: `codebook_channels`", codebook_channels=tiny.BITS + 1)
