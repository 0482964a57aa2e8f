"""Inpainting and extending give the recorded tokens of the original."""

import pytest
import torch

from showo_hf import MaskGITScheduler, ShowoExtrapolatePipeline, ShowoInpaintPipeline


@pytest.fixture
def make_reference_pipeline(reference_model, reference_processor):
    """A function that makes a pipeline from the reference model, without its image tokenizer."""

    def make_pipeline(kind):
        pipe = kind(reference_model, reference_processor, MaskGITScheduler())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make_pipeline


def options(reference, case) -> dict:
    return {
        "prompt": reference.prompts[case["prompt"]],
        "guidance_scale": 1 + case["guidance"],
        "num_inference_steps": case["steps"],
        "generator": torch.Generator().manual_seed(case["seed"]),
        "output_type": "latent",
    }


def test_inpainted_tokens_equal_the_original(make_reference_pipeline, reference):
    masked, known = (reference.tensors[f"inpaint.{name}"].view(1, 16, 16) for name in ("hole", "tokens_in"))
    # A mask at image resolution with one marked pixel in each masked patch.
    mask = torch.zeros(256, 256)
    mask[5::16, 9::16] = masked[0].float()
    inpainted = make_reference_pipeline(ShowoInpaintPipeline)(
        image=known, mask_image=mask, **options(reference, reference.cases["inpaint"])
    ).images
    assert torch.equal(inpainted.flatten(1), reference.tensors["inpaint.tokens_out"])


@pytest.mark.parametrize("number", range(4))
def test_extended_tokens_equal_the_original(make_reference_pipeline, reference, number):
    case = reference.cases["extrapolate"][number]
    extended = make_reference_pipeline(ShowoExtrapolatePipeline)(
        image=reference.tensors[f"extrapolate.{number}.grid_in"],
        direction=case["direction"],
        extent=8 + case["offset"],
        **options(reference, case),
    ).images
    assert torch.equal(extended, reference.tensors[f"extrapolate.{number}.grid_out"])


def test_all_recorded_cases_are_tested(reference):
    assert len(reference.cases["extrapolate"]) == 4
