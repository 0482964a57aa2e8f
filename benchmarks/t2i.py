"""How fast is text to picture, and what does it cost? Prints the tables of docs/benchmarks.md. Run as

    python benchmarks/t2i.py

The yardstick is `plain_t2i.py`: the original's way, same weights, same seed, equal tokens.
"""

import argparse
import json
import platform
import statistics
import string

import torch
from measuring import in_child, matrix_rate, median_ratio, paired_seconds, peak_memory_of, print_table, seconds
from plain_t2i import plain_text_to_image
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPImageProcessorPil, PhiConfig, PreTrainedTokenizerFast
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
from showo_hf.processing_showo import add_showo_tokens


PROMPT = "red apple"  # 9 ids in the one-letter tokenizer below, about as many as a short caption has
STEPS = 6
GUIDANCE = 5.0


def letter_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of single letters, filled up to `size` ids: the ids' values do not change what a step costs."""
    letters = ["<|endoftext|>", *string.ascii_lowercase, " "]
    vocabulary = {token: i for i, token in enumerate(letters)}
    vocabulary.update({f"<unused{i}>": i for i in range(len(letters), size)})
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


def build_pipeline(num_image_tokens: int = 256, dtype: torch.dtype = torch.float32) -> ShowoT2IPipeline:
    """A model of the published layout at hidden size 1024 and 8 layers, with random weights."""
    torch.manual_seed(0)
    text_config = PhiConfig(
        vocab_size=58498,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=8,
        num_attention_heads=16,
        max_position_embeddings=8192,
        qk_layernorm=True,
    )
    model = ShowoForCausalLM(ShowoConfig(text_config=text_config, num_image_tokens=num_image_tokens)).eval().to(dtype)
    tokenizer = add_showo_tokens(letter_tokenizer(50295))
    processor = ShowoProcessor(CLIPImageProcessorPil(), tokenizer, num_image_tokens=num_image_tokens)
    pipeline = ShowoT2IPipeline(model, processor, MaskGITScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ours(pipeline: ShowoT2IPipeline, steps: int = STEPS) -> torch.LongTensor:
    """Codes by the pipeline."""
    generator = torch.Generator().manual_seed(0)
    return pipeline(
        PROMPT, num_inference_steps=steps, guidance_scale=GUIDANCE, generator=generator, output_type="latent"
    ).images.flatten(1)


def plain(pipeline: ShowoT2IPipeline) -> torch.LongTensor:
    """Codes by the plain loop."""
    generator = torch.Generator().manual_seed(0)
    return plain_text_to_image(pipeline.model, pipeline.processor, [PROMPT], STEPS, GUIDANCE, generator)


def count_operations(function) -> int:
    """Floating-point operations of matrix products and attention in one call."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def speed_table(repeats: int):
    """Time against the plain loop in fp32 and bf16, and against the machine's own matrix rate."""
    pipeline, half = build_pipeline(), build_pipeline(dtype=torch.bfloat16)
    if not torch.equal(ours(pipeline), plain(pipeline)):
        raise RuntimeError("The pipeline and the plain loop gave different tokens.")
    times = paired_seconds(
        {"plain": lambda: plain(pipeline), "ours": lambda: ours(pipeline), "bf16": lambda: ours(half)}, repeats
    )
    operations = count_operations(lambda: ours(pipeline))
    rate = matrix_rate(516, 1024, 4096)
    reached = operations / statistics.median(times["ours"])
    plain_memory, our_memory = (in_child(__file__, "--memory", way) for way in ("plain", "ours"))
    memory = our_memory["peak"] / plain_memory["peak"]
    above = (our_memory["peak"] - our_memory["before"]) / (plain_memory["peak"] - plain_memory["before"])
    rows = [
        ("plain fp32 time / ours", f"{median_ratio(times['plain'], times['ours']):.2f}", "at least 2.1"),
        (
            "ours, share of the fp32 matrix rate",
            f"{reached / rate:.0%} ({reached / 1e9:.0f} of {rate / 1e9:.0f} Gflop/s)",
            "at least 65%",
        ),
        ("plain fp32 time / ours in bf16", f"{median_ratio(times['plain'], times['bf16']):.2f}", "at least 5"),
        ("peak memory of the process / plain's", f"{memory:.2f}", "at most 0.8"),
        ("the same above the loaded model", f"{above:.2f}", "reported"),
    ]
    medians = ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in times.items())
    print(f"One picture of 256 tokens, {STEPS} steps, guidance; tokens equal. Medians of {repeats}: {medians}.\n")
    print_table(("what", "measured", "wanted"), rows)


def growth_table():
    """What a step costs as the picture grows."""
    pipeline = build_pipeline()
    rows, first = [], None
    for tokens in (256, 1024, 4096):
        side = int(tokens**0.5)
        latents = torch.full((1, side, side), pipeline.scheduler.config.mask_token_id)

        def call(steps: int, latents=latents):
            generator = torch.Generator().manual_seed(0)
            pipeline(
                PROMPT,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                generator=generator,
                latents=latents,
                output_type="latent",
            )

        call(1)
        step = min(seconds(lambda: call(2)) for _ in range(2)) / 2
        operations = count_operations(lambda: call(1))
        first = first or step
        rows.append(
            (
                tokens,
                f"{step:.2f} s",
                f"{step / first:.1f}",
                f"{operations / 1e9:.0f}",
                f"{1e3 * step / tokens:.2f} ms",
            )
        )
    print_table(("tokens", "a step", "against 256", "Gflop a step", "a token"), rows)


def tokenizer_table(repeats: int):
    """The full-size picture tokenizer at 256 px, bf16 against fp32."""
    torch.manual_seed(0)
    full = ShowoLFQTokenizer(ShowoLFQTokenizerConfig()).eval()
    half = ShowoLFQTokenizer(ShowoLFQTokenizerConfig()).eval().to(torch.bfloat16)
    pixels, tokens = torch.rand(1, 3, 256, 256) * 2 - 1, torch.randint(8192, (1, 16, 16))
    rows = []
    with torch.no_grad():
        for name in ("encode", "decode"):
            argument = pixels if name == "encode" else tokens
            times = paired_seconds(
                {
                    "fp32": lambda name=name, argument=argument: getattr(full, name)(argument),
                    "bf16": lambda name=name, argument=argument: getattr(half, name)(argument),
                },
                repeats,
            )
            ratio = median_ratio(times["fp32"], times["bf16"])
            medians = [f"{statistics.median(times[key]):.2f} s" for key in ("fp32", "bf16")]
            rows.append((f"{name} at 256 px", *medians, f"{ratio:.2f}", "at least 2"))
    print_table(("picture tokenizer", "fp32", "bf16", "ratio", "wanted"), rows)


def report_memory(way: str):
    """Print the peak memory of one picture made in this process, as JSON."""
    pipeline = build_pipeline()
    print(json.dumps(peak_memory_of(lambda: {"plain": plain, "ours": ours}[way](pipeline))))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", choices=("plain", "ours"), help="only measure the memory of one way")
    options = parser.parse_args()
    logging.set_verbosity_error()
    if options.memory:
        report_memory(options.memory)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    speed_table(options.repeats)
    tokenizer_table(options.repeats)
    growth_table()


if __name__ == "__main__":
    main()
