"""
Small training runs of image tokenizers with everything that has a state: discriminator, LeCAM, codebook, averages. And
of diffusion decoders.
"""

from pathlib import Path
from typing import Any

import small_run
import torch
from safetensors.torch import load_file


ARCHITECTURE = {
    "encoder_block_out_channels": [8, 8, 8],
    "decoder_block_out_channels": [8, 8, 8],
    "encoder_layers_per_block": [1, 1, 1],
    "decoder_layers_per_block": [1, 1, 1],
    "norm_num_groups": 4,
}
ATTENTION = {"encoder_block_attention": [False] * 3, "decoder_block_attention": [False] * 3}
KINDS: dict[str, dict[str, Any]] = {
    "lfq-tokenizer": {"codebook_bits": 4, "architecture": ARCHITECTURE},
    "vq-tokenizer": {
        "codebook_size": 16,
        "codebook_dim": 4,
        "codebook_learning": "ema",
        "architecture": {**ARCHITECTURE, **ATTENTION, "latent_channels": 8, "codebook_decay": 0.9},
    },
    "diffusion-decoder": {  # of the tokens of the tiny pipeline; some of its images are remembered
        "image_size": {0: 8, 3: 16},
        "batch_size": 2,
        "architecture": {"patch_size": 2, "block_out_channels": [8, 8], "norm_num_groups": 4},
        "image_weight": 0.5,
        "mirror": True,
        "cached_images": 5,
    },
}
#: Of image tokenizers.
ENTRIES: dict[str, Any] = {
    "model": None,
    "image_size": {0: 8, 3: 16},
    "batch_size": 2,
    "steps": 6,
    "discriminator": {"start": 1, "channels": 8, "halvings": 2, "lecam_decay": 0.5},
    "loss_weights": {"feature_matching": 0.5, "token_cycle": 0.1},
}


def entries(kind: str = "vq-tokenizer", **changes: Any) -> dict[str, Any]:
    """The changes for `small_run.run`."""
    common = ENTRIES if kind.endswith("-tokenizer") else {}
    return {"kind": kind, **common, **KINDS[kind], **changes}


def run(folder: Path, kind: str = "vq-tokenizer", **changes: Any) -> Path:
    """Run in this process. Returns the output folder."""
    return small_run.run(folder, **entries(kind, **changes))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the result of the run in `folder`."""
    return load_file(folder / "out" / "model.safetensors")


def same_result(first: Path, second: Path) -> bool:
    """Whether two runs have the same weights, bit for bit."""
    return small_run.same_weights(weights(first), weights(second))


def log_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of the log without times."""
    times = ("seconds_per_step", "images_per_second")
    return [{k: v for k, v in row.items() if k not in times} for row in small_run.log_rows(folder)]
