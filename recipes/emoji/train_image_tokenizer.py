"""Train an image tokenizer on the emoji images. Run from the repository root:

python -m recipes.emoji.train_image_tokenizer --data data/emoji --output checkpoints/image-tokenizer --steps 5000
"""

import argparse

import numpy as np
import torch
from torch.nn import functional as F

from recipes.emoji.emoji import load_emoji
from showo_hf.models.configuration_showo_lfq import ShowoLFQTokenizerConfig
from showo_hf.models.modeling_showo_lfq import ShowoLFQTokenizer
from showo_hf.training.loop import Batch, add_loop_arguments, loop_options, train
from showo_hf.utils.metrics import psnr


def small_config(sample_size: int, codebook_bits: int = 10, **options) -> ShowoLFQTokenizerConfig:
    """A small MAGVIT-v2 with 8x downsampling, as in the embedded model. `options` override entries of the config."""
    return ShowoLFQTokenizerConfig(
        codebook_bits=codebook_bits,
        encoder_block_out_channels=(32, 48, 96, 128),
        decoder_block_out_channels=(32, 48, 96, 160),
        encoder_layers_per_block=(1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 2, 2),
        norm_num_groups=16,
        sample_size=sample_size,
        commitment_weight=0.05,
        **{"entropy_weight": 0.3, "entropy_over": "codes", **options},
    )


def to_pixel_values(images: np.ndarray) -> torch.Tensor:
    """Convert images (batch, H, W, 3) in 0..255 to pixel values (batch, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.array(images)).movedim(-1, 1).float() / 127.5 - 1


def augment(images: np.ndarray, generator: torch.Generator, max_shift: int) -> np.ndarray:
    """Mirror half of the images, and shift each by up to `max_shift` pixels. The border becomes white."""
    size = images.shape[1]
    padded = np.pad(images, ((0, 0), *[(max_shift, max_shift)] * 2, (0, 0)), constant_values=255)
    shifts = torch.randint(0, 2 * max_shift + 1, (len(images), 2), generator=generator).tolist()
    mirrored = (torch.rand(len(images), generator=generator) < 0.5).tolist()
    moved = [image[y : y + size, x : x + size] for image, (y, x) in zip(padded, shifts, strict=True)]
    return np.stack([image[:, ::-1] if flip else image for image, flip in zip(moved, mirrored, strict=True)])


def multi_scale_loss(prediction: torch.Tensor, target: torch.Tensor, scales: int = 3) -> torch.Tensor:
    """The absolute plus four times the squared pixel difference, averaged over `scales` resolutions, each half the last."""
    total = prediction.new_zeros(())
    for scale in range(scales):
        if scale:
            prediction, target = F.avg_pool2d(prediction, 2), F.avg_pool2d(target, 2)
        total = total + F.l1_loss(prediction, target) + 4 * F.mse_loss(prediction, target)
    return total / scales


def compute_loss(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The sum of reconstruction, commitment and entropy loss, and its parts."""
    output = model(batch["pixel_values"], return_losses=True)
    sample = output.sample.float()
    reconstruction = multi_scale_loss(sample, batch["pixel_values"])
    loss = reconstruction + output.commitment_loss + output.entropy_loss
    parts = {
        "reconstruction": reconstruction,
        "commitment": output.commitment_loss,
        "entropy": output.entropy_loss,
        "psnr": psnr(sample.detach().clamp(-1, 1), batch["pixel_values"]).mean(),
    }
    return loss, parts


def load_matching_weights(model: ShowoLFQTokenizer, folder: str) -> list[str]:
    """
    Load the weights of a trained tokenizer that have the same shapes, and return the names of the others.

    With another number of bits, all weights except the four layers at the quantizer are loaded.
    """
    source = ShowoLFQTokenizer.from_pretrained(folder, dtype=torch.float32).state_dict()
    own = model.state_dict()
    kept = {name: value for name, value in source.items() if name in own and own[name].shape == value.shape}
    return list(model.load_state_dict(kept, strict=False).missing_keys)


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description="Train the embedded model's image tokenizer.")
    parser.add_argument("--data", required=True, help="the folder that recipes.emoji.emoji wrote")
    parser.add_argument(
        "--codebook-bits", type=int, default=10, help="bits per token; the codebook has 2 ** bits entries"
    )
    parser.add_argument("--entropy-weight", type=float, default=0.3, help="a larger weight uses more of the codebook")
    parser.add_argument("--entropy-over", choices=("bits", "codes"), default="codes", help="see the config")
    parser.add_argument(
        "--init-from", help="a trained tokenizer to start from; layers with other shapes are initialized"
    )
    add_loop_arguments(parser)
    options = parser.parse_args(arguments)

    data = load_emoji(options.data)
    indices = data.train_indices
    torch.manual_seed(options.seed)
    entropy = {"entropy_weight": options.entropy_weight, "entropy_over": options.entropy_over}
    config = small_config(data.images.shape[1], options.codebook_bits, **entropy)
    model = ShowoLFQTokenizer(config)
    if options.init_from:
        print("new layers:", load_matching_weights(model, options.init_from), flush=True)

    def make_batch(generator: torch.Generator) -> Batch:
        rows = indices[torch.randint(len(indices), (options.batch_size,), generator=generator).numpy()]
        images = augment(data.images[rows], generator, max_shift=data.images.shape[1] // 12)
        return {"pixel_values": to_pixel_values(images)}

    train(model, loop_options(options), make_batch, compute_loss)


if __name__ == "__main__":
    main()
