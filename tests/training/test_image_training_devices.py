"""The command trains what makes tokens and pixels on a CPU and on a GPU alike."""

import math

import pytest
import small_run
import small_tokenizer_run
import tiny
import torch
from accelerate.state import AcceleratorState

from showo_hf import ShowoDiffusionDecoder, ShowoLFQTokenizer, ShowoVQTokenizer
from showo_hf.cli import main


CLASSES = {
    "lfq-tokenizer": ShowoLFQTokenizer,
    "vq-tokenizer": ShowoVQTokenizer,
    "diffusion-decoder": ShowoDiffusionDecoder,
}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps one device per process, but every test here is a separate run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def entries(kind: str, folder) -> dict:
    if kind != "diffusion-decoder":
        return small_tokenizer_run.entries(kind, steps=4)
    tiny.lfq().save_pretrained(folder / "tokenizer")
    architecture = {"patch_size": 2, "block_out_channels": [8, 16], "norm_num_groups": 4}
    return {"kind": kind, "model": str(folder / "tokenizer"), "architecture": architecture, "steps": 4}


@pytest.mark.parametrize(
    "device", [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
)
@pytest.mark.parametrize("kind", CLASSES)
def test_the_command_trains_on_the_device(kind, device, tmp_path):
    on_cpu = None if device == "cuda" else True  # None leaves the entry out
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_allocated()
    assert main(["train", *small_run.arguments(tmp_path, **entries(kind, tmp_path) | {"use_cpu": on_cpu})]) == 0
    assert device == "cpu" or torch.cuda.max_memory_allocated() > before
    rows = [row for row in small_run.log_rows(tmp_path) if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and all(math.isfinite(row["loss"]) for row in rows)
    trained = CLASSES[kind].from_pretrained(tmp_path / "out")
    assert all(weight.isfinite().all() for weight in trained.state_dict().values())
