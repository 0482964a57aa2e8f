"""Repainting and extending, token for token as recorded."""

import pytest
import torch

from showo_hf import MaskGITScheduler, ShowoExtrapolatePipeline, ShowoInpaintPipeline


@pytest.fixture
def original(reference_model, reference_processor):
    """A pipeline of the recorded model, without its image tokenizer."""

    def make(kind):
        pipe = kind(reference_model, reference_processor, MaskGITScheduler())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def options(reference, case) -> dict:
    return {
        "prompt": reference.prompts[case["prompt"]],
        "guidance_scale": 1 + case["guidance"],
        "num_inference_steps": case["steps"],
        "generator": torch.Generator().manual_seed(case["seed"]),
        "output_type": "latent",
    }


def test_a_hole_is_painted_as_in_the_original(original, reference):
    hole, known = (reference.tensors[f"inpaint.{name}"].view(1, 16, 16) for name in ("hole", "tokens_in"))
    # The mask at the resolution of an image, of which one pixel is marked in each patch.
    mask = torch.zeros(256, 256)
    mask[5::16, 9::16] = hole[0].float()
    painted = original(ShowoInpaintPipeline)(
        image=known, mask_image=mask, **options(reference, reference.cases["inpaint"])
    ).images
    assert torch.equal(painted.flatten(1), reference.tensors["inpaint.tokens_out"])


@pytest.mark.parametrize("number", range(4))
def test_images_are_extended_as_in_the_original(original, reference, number):
    case = reference.cases["extrapolate"][number]
    extended = original(ShowoExtrapolatePipeline)(
        image=reference.tensors[f"extrapolate.{number}.grid_in"],
        direction=case["direction"],
        extent=8 + case["offset"],
        **options(reference, case),
    ).images
    assert torch.equal(extended, reference.tensors[f"extrapolate.{number}.grid_out"])


def test_the_record_has_no_other_cases(reference):
    assert len(reference.cases["extrapolate"]) == 4
