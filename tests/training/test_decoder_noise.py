"""The noise levels at which a diffusion decoder of flows is trained."""

import pytest
import tiny
import torch

from showo_hf.training.decoder_config import DiffusionDecoderConfig
from showo_hf.training.diffusion_decoder import FrozenTokenizer, draw_noise, load_decoder
from showo_hf.training.recipe_entries import RecipeError
from showo_hf.training.recipe_files import load_recipe


def levels(shift, count=2000):
    """The noise levels, in [0, 1], of images with the seeds from 0 on."""
    decoder = tiny.image_decoder()
    image = torch.zeros(1, 3, 16, 16).expand(count, -1, -1, -1)
    return draw_noise(decoder, image, range(count), time_shift=shift).timestep / 1000


@pytest.mark.parametrize("shift", [0.5, 4.0])
def test_shifted_levels_have_the_shifted_distribution(shift):
    found, uniform = levels(shift), levels(1.0)
    assert torch.allclose(found, shift * uniform / (1 + (shift - 1) * uniform)), "of the same random draws"
    assert 0 < found.min() and found.max() <= 1
    for share in (0.25, 0.5, 0.75):  # P(t <= share) = share / (s - (s - 1) share)
        assert (found <= share).float().mean().item() == pytest.approx(share / (shift - (shift - 1) * share), abs=0.04)


def test_images_are_noised_at_the_shifted_level():
    decoder, image = tiny.image_decoder(), torch.ones(3, 3, 16, 16)
    draws = draw_noise(decoder, image, range(3), time_shift=4.0)
    share = draws.timestep.view(-1, 1, 1, 1) / 1000
    assert torch.allclose(draws.noised, (1 - share) * image + share * draws.noise, atol=1e-6)


@pytest.mark.parametrize("entry", ["prediction_type=epsilon", "prediction_type=v_prediction", "teacher=t"])
def test_a_shift_is_refused_where_there_is_none(entry):
    entries = ["data=x", "output=y", "steps=1", "decoder_steps=1", "time_shift=2"]
    with pytest.raises(RecipeError, match="`time_shift` must be 1 with a `teacher`, and with 'epsilon'"):
        load_recipe("diffusion-decoder", [*entries, entry])
    with pytest.raises(RecipeError, match="`time_shift` must be greater than 0"):
        load_recipe("diffusion-decoder", [*entries[:-1], "time_shift=0"])
    with pytest.raises(RecipeError, match="`weighting` must be 'simple' with a `time_shift`, got 'bound'"):
        load_recipe("diffusion-decoder", [*entries, "weighting=bound"])


def test_a_shift_is_refused_for_a_loaded_decoder_of_another_prediction(tmp_path):
    tiny.image_decoder(prediction_type="epsilon").save_pretrained(tmp_path / "decoder")
    config = DiffusionDecoderConfig(
        recipe="x", output="y", steps=1, data="z", decoder=str(tmp_path / "decoder"), time_shift=2.0
    )
    with pytest.raises(ValueError, match="`time_shift` must be 1 for a decoder of 'epsilon', got 2.0"):
        load_decoder(config, FrozenTokenizer(tiny.lfq()))
