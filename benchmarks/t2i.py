"""How fast is text to image, and how much memory does it need? Prints a table of docs/benchmarks.md. Run as

    python benchmarks/t2i.py

The baseline is `plain_t2i.py`, which works like the original code, with the same weights, seeds and resulting tokens.
"""

import argparse
import json
import platform
import statistics
import string
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from measuring import (
    can_measure_memory,
    in_child,
    matrix_rate,
    median_ratio,
    paired_seconds,
    peak_memory_of,
    print_table,
    seconds,
)
from plain_t2i import plain_text_to_image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import PhiConfig, PreTrainedTokenizerFast
from transformers.utils import logging

from showo_hf import (
    MaskGITScheduler,
    ShowoConfig,
    ShowoForCausalLM,
    ShowoLFQTokenizer,
    ShowoLFQTokenizerConfig,
    ShowoProcessor,
    ShowoT2IPipeline,
)
from showo_hf.processing.processing_showo import add_showo_tokens, showo_image_processor


PROMPT = "red apple"  # 9 ids in the one-letter tokenizer below, like a short caption
STEPS = 6
GUIDANCE = 5.0
Row = tuple[str, str, str]  # name, measured value, target


@dataclass(frozen=True)
class Sizes:
    """
    The sizes of the measured models, which have the published architecture and random weights.

    Args:
        hidden_size, layers, heads: the transformer.
        image_tokens: tokens of the timed image.
        growth: numbers of image tokens to compare the time per step; square numbers.
        pixels: height and width of the image for the image tokenizer.
        tokenizer_options: configuration of the image tokenizer; the defaults are the published ones.
    """

    hidden_size: int = 1024
    layers: int = 8
    heads: int = 16
    image_tokens: int = 256
    growth: tuple[int, ...] = (256, 1024, 4096)
    pixels: int = 256
    tokenizer_options: dict[str, Any] = field(default_factory=dict)


FULL = Sizes()
SMALL = Sizes(
    hidden_size=32,
    layers=1,
    heads=4,
    image_tokens=16,
    growth=(16, 64),
    pixels=16,
    tokenizer_options={
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "norm_num_groups": 4,
    },
)


# The model, and the two implementations


def letter_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of single letters, padded to `size` ids. The values of the ids do not affect the speed."""
    letters = ["<|endoftext|>", *string.ascii_lowercase, " "]
    vocabulary = {token: i for i, token in enumerate(letters)}
    vocabulary.update({f"<unused{i}>": i for i in range(len(letters), size)})
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


def build_pipeline(
    sizes: Sizes,
    device: str,
    dtype: torch.dtype = torch.float32,
    image_tokenizer_config: ShowoLFQTokenizerConfig | None = None,
) -> ShowoT2IPipeline:
    """A pipeline with random weights. The image tokenizer, if any, stays in fp32."""
    torch.manual_seed(0)
    text_config = PhiConfig(
        vocab_size=58498,
        hidden_size=sizes.hidden_size,
        intermediate_size=4 * sizes.hidden_size,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        max_position_embeddings=8192,
        qk_layernorm=True,
    )
    config = ShowoConfig(
        text_config=text_config, num_image_tokens=sizes.image_tokens, image_tokenizer_config=image_tokenizer_config
    )
    model = ShowoForCausalLM(config).eval().to(dtype)
    if model.image_tokenizer is not None:
        model.image_tokenizer.float()
    tokenizer = add_showo_tokens(letter_tokenizer(50295))
    processor = ShowoProcessor(showo_image_processor(256), tokenizer, num_image_tokens=sizes.image_tokens)
    pipeline = ShowoT2IPipeline(model, processor, MaskGITScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def ours(pipeline: ShowoT2IPipeline, steps: int = STEPS, latents: torch.LongTensor | None = None) -> torch.LongTensor:
    """Image tokens (1, tokens) by the pipeline."""
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "generator": generator, "latents": latents}
    return pipeline(PROMPT, output_type="latent", **options).images.flatten(1)


def plain(pipeline: ShowoT2IPipeline) -> torch.LongTensor:
    """Image tokens (1, tokens) by the plain loop."""
    generator = torch.Generator().manual_seed(0)
    return plain_text_to_image(pipeline.model, pipeline.processor, [PROMPT], STEPS, GUIDANCE, generator)


# Rows of the table


def speed_rows(sizes: Sizes, device: str, repeats: int) -> list[Row]:
    """Time relative to the plain loop in fp32 and bf16, and relative to the matrix product rate of the machine."""
    pipeline, half = build_pipeline(sizes, device), build_pipeline(sizes, device, torch.bfloat16)
    equal = (ours(pipeline) == plain(pipeline)).float().mean().item()
    ways = {"plain": partial(plain, pipeline), "ours": partial(ours, pipeline), "bf16": partial(ours, half)}
    times = paired_seconds(ways, repeats, device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    operations = count_operations(ways["ours"])
    # The largest product of a step: two rows of `soi image eoi` in the first layer of an MLP.
    rate = matrix_rate(2 * (sizes.image_tokens + 2), sizes.hidden_size, 4 * sizes.hidden_size, device=device)
    reached = operations / medians["ours"]
    return [
        ("tokens equal to the plain loop's", f"{equal:.0%}", "100%"),
        (
            "plain fp32 time / ours",
            f"{median_ratio(times['plain'], times['ours']):.2f} ({medians['plain']:.2f} s, {medians['ours']:.2f} s)",
            "at least 2.1",
        ),
        (
            "ours, share of the fp32 matrix product rate of the same run",
            f"{reached / rate:.0%} ({reached / 1e9:.0f} of {rate / 1e9:.0f} Gflop/s)",
            "at least 65%",
        ),
        (
            "plain fp32 time / ours in bf16",
            f"{median_ratio(times['plain'], times['bf16']):.2f} ({medians['plain']:.2f} s, {medians['bf16']:.2f} s)",
            "at least 5",
        ),
    ]


def memory_rows(device: str, child_options: list[str]) -> list[Row]:
    """Peak memory relative to the plain loop, each in a new process."""
    process, above = "not measured here", "not measured here"
    if can_measure_memory(device):
        theirs, own = (in_child(__file__, "--memory", way, *child_options) for way in ("plain", "ours"))
        process = f"{own['peak'] / theirs['peak']:.2f}"
        above = f"{(own['peak'] - own['before']) / max(1, theirs['peak'] - theirs['before']):.2f}"
    return [
        ("peak memory / the plain loop's", process, "at most 0.8"),
        ("the same above the loaded model", above, "reported"),
    ]


class AllSteps(MaskGITScheduler):
    """The scheduler without no-op steps: every step runs the model."""

    def is_noop(self, timestep, sample) -> bool:
        return False


def inpainting_rows(sizes: Sizes, device: str, repeats: int, steps: int = 16, masked: int = 8) -> list[Row]:
    """Inpainting a few tokens relative to a whole image, in the same number of steps."""
    pipeline = build_pipeline(sizes, device)
    whole = ours(pipeline, steps)
    hole = torch.randperm(whole.shape[1], generator=torch.Generator().manual_seed(0))[:masked]
    side = int(sizes.image_tokens**0.5)
    latents = whole.clone().index_fill_(1, hole.to(device), pipeline.mask_token_id).view(1, side, side)
    ways = {"whole": partial(ours, pipeline, steps), "inpainted": partial(ours, pipeline, steps, latents)}
    times = paired_seconds(ways, repeats, device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    short = ours(pipeline, steps, latents)
    pipeline.scheduler = AllSteps.from_config(pipeline.scheduler.config)
    equal = (short == ours(pipeline, steps, latents)).float().mean().item()
    return [
        (
            f"inpainting {masked} of {sizes.image_tokens} tokens in {steps} steps: time / time of a whole image",
            f"{median_ratio(times['inpainted'], times['whole']):.2f} "
            f"({medians['inpainted']:.2f} s, {medians['whole']:.2f} s)",
            "at most 0.7",
        ),
        ("tokens equal to those when every step runs the model", f"{equal:.0%}", "100%"),
    ]


def tokenizer_rows(sizes: Sizes, device: str, repeats: int) -> list[Row]:
    """The image tokenizer in bf16 relative to fp32."""
    torch.manual_seed(0)
    config = ShowoLFQTokenizerConfig(**sizes.tokenizer_options)
    full, half = (ShowoLFQTokenizer(config).eval().to(device, dtype) for dtype in (torch.float32, torch.bfloat16))
    side = sizes.pixels // config.downsampling
    pixels = torch.rand(1, 3, sizes.pixels, sizes.pixels, device=device) * 2 - 1
    tokens = torch.randint(config.codebook_size, (1, side, side), device=device)
    rows = []
    for name, argument in (("encode", pixels), ("decode", tokens)):
        ways: dict[str, Callable[[], object]] = {
            "fp32": partial(getattr(full, name), argument),
            "bf16": partial(getattr(half, name), argument),
        }
        with torch.no_grad():
            times = paired_seconds(ways, repeats, device)
        one, other = (statistics.median(times[dtype]) for dtype in ("fp32", "bf16"))
        measured = f"{median_ratio(times['fp32'], times['bf16']):.2f} ({one:.2f} s, {other:.2f} s)"
        rows.append((f"image tokenizer, {name} at {sizes.pixels} px: fp32 time / bf16", measured, "at least 2"))
    return rows


def growth_rows(sizes: Sizes, device: str) -> list[Row]:
    """The cost of a step for models with larger images. One model makes larger images in windows."""
    rows: list[Row] = []
    first = None
    for tokens in sizes.growth:
        pipeline = build_pipeline(replace(sizes, image_tokens=tokens), device)
        ours(pipeline, 1)
        step = min(seconds(partial(ours, pipeline, 2), device) for _ in range(2)) / 2
        operations = count_operations(partial(ours, pipeline, 1))
        costs = f"{step:.2f} s, {operations / 1e9:.0f} Gflop, {1e3 * step / tokens:.2f} ms per token"
        if first is None:
            first = step
            rows.append((f"a step at {tokens} tokens", costs, "reported"))
        else:
            rows.append(
                (f"a step at {tokens} tokens / at {sizes.growth[0]}", f"{step / first:.1f} ({costs})", "reported")
            )
    return rows


def count_operations(function: Callable[[], object]) -> int:
    """The floating-point operations of matrix products and attention in one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


# The command


def report_memory(way: str, sizes: Sizes, device: str):
    """Print the peak memory for one image in this process as JSON."""
    pipeline = build_pipeline(sizes, device)
    print(json.dumps(peak_memory_of(partial({"plain": plain, "ours": ours}[way], pipeline), device)))


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="device to measure; the targets are for a CPU")
    parser.add_argument("--repeats", type=int, default=5, help="paired runs; the table has their medians")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a quick test; the numbers mean nothing")
    parser.add_argument("--memory", choices=("plain", "ours"), help="only measure the memory of one implementation")
    options = parser.parse_args(arguments)
    sizes, device = SMALL if options.small else FULL, options.device
    logging.set_verbosity_error()
    if options.memory:
        report_memory(options.memory, sizes, device)
        return
    rows = [
        *speed_rows(sizes, device, options.repeats),
        *inpainting_rows(sizes, device, options.repeats),
        *memory_rows(device, ["--device", device, *["--small"] * options.small]),
        *tokenizer_rows(sizes, device, options.repeats),
        *growth_rows(sizes, device),
    ]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; ", end="")
    print(f"{sizes.image_tokens} tokens, {STEPS} steps, guidance; medians of {options.repeats} paired runs\n")
    print_table(("measure", "device", "measured", "target"), [(name, device, *cells) for name, *cells in rows])


if __name__ == "__main__":
    main()
