"""What does quantization save, and what does it cost? Prints one table. Run as

    pip install -c constraints.txt -e '.[quantization]'
    python benchmarks/quantization.py

"Equal tokens, same inputs" feeds the tokens of every step of the fp32 run to each variant, and compares the likeliest
tokens. "Whole run" compares the final tokens for the same seed; there, one different token in an early step leads to
another image. The time is for the tokens of one image. The guidance scale is the model's own, and so is the number of
steps by default.
"""

import argparse
import platform
from functools import partial

import torch
from measuring import median_ratio, paired_seconds, print_table
from torch.nn.functional import mse_loss
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from transformers import TorchAoConfig, logging

from showo_hf import EMBEDDED_MODEL, ShowoForCausalLM, ShowoT2IPipeline
from showo_hf.pipelines.denoising import PromptContext, predict_logits
from showo_hf.utils.metrics import psnr_from_mse


PROMPTS = [
    *("a red apple to the left of a blue car", "an owl, noto style", "a penguin, 3d style"),
    *("a green heart", "three stars at night", "two cats on the grass, noto style"),
]
SEED = 0


def variants() -> dict[str, dict]:
    """The options of `from_pretrained` for each variant."""
    named: dict[str, tuple] = {
        "fp32": (None, torch.float32),
        "bf16": (None, torch.bfloat16),
        "int8 weights, fp32": (Int8WeightOnlyConfig(), torch.float32),
        "int8 weights, bf16": (Int8WeightOnlyConfig(), torch.bfloat16),
        "int8 weights and activations, fp32": (Int8DynamicActivationInt8WeightConfig(), torch.float32),
        "int8 weights and activations, bf16": (Int8DynamicActivationInt8WeightConfig(), torch.bfloat16),
    }
    try:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    except ImportError:  # not a stable name of torchao
        pass
    else:
        # Its fp32 kernel is a hundred times slower. A group size of 32 divides most widths.
        named["int4 weights, bf16"] = (PrototypeInt4WeightOnlyConfig(group_size=32), torch.bfloat16)
    return {
        name: {"dtype": dtype} | ({"quantization_config": TorchAoConfig(config)} if config is not None else {})
        for name, (config, dtype) in named.items()
    }


def load(folder: str, options: dict) -> ShowoT2IPipeline:
    """Load the pipeline of a folder, and its model with `options`."""
    model = ShowoForCausalLM.from_pretrained(folder, subfolder="model", **options)
    pipeline = ShowoT2IPipeline.from_pretrained(folder, model=model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stored_bytes(tensor: torch.Tensor) -> int:
    """The bytes of a tensor. A quantized tensor consists of several tensors."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.itemsize


def weight_bytes(model: torch.nn.Module) -> int:
    """The bytes of all weights. Tied weights count once."""
    return sum(stored_bytes(parameter) for parameter in model.parameters())


def make_tokens(pipeline: ShowoT2IPipeline, prompts: list[str], steps: int) -> list[torch.LongTensor]:
    """The token grids (batch, h, w) before the first step and after every step."""
    grids = [pipeline.prepare_latents(len(prompts), None, None, None)]

    def keep(pipeline, step, timestep, tensors):
        grids.append(tensors["latents"])

    pipeline(
        prompts,
        num_inference_steps=steps,
        generator=seeded(),
        output_type="latent",
        callback_on_step_end=keep,
    )
    return grids


def likeliest_tokens(
    pipeline: ShowoT2IPipeline, prompts: list[str], grids: list[torch.LongTensor]
) -> torch.LongTensor:
    """The likeliest token at every masked position of `grids`, concatenated."""
    _, guidance = pipeline.with_defaults(None, None)
    encoded = pipeline.encode_prompt(prompts, None, 1, True)
    likeliest = []
    for tokens in (grid.flatten(1) for grid in grids):
        context = PromptContext.of(pipeline.model, encoded, tokens.shape[1])
        logits = predict_logits(pipeline.model, tokens, context, guidance)  # (batch, tokens, codebook)
        likeliest.append(logits.argmax(-1)[tokens == pipeline.scheduler.config.mask_token_id])
    return torch.cat(likeliest)


def seeded() -> torch.Generator:
    """The noise of the image decoder is the same for each variant."""
    return torch.Generator().manual_seed(SEED)


def share(one: torch.Tensor, other: torch.Tensor) -> str:
    return f"{(one == other).float().mean().item():.1%}"


@torch.no_grad()
def measure(folder: str, prompts: list[str], steps: int, repeats: int) -> list[tuple]:
    """The rows of the table."""
    rows = []
    plain = load(folder, variants()["fp32"])
    grids = make_tokens(plain, prompts, steps)
    wanted = likeliest_tokens(plain, prompts, grids[:-1])
    images = plain.decode_latents(grids[-1], "pt", seeded())
    for name, options in variants().items():
        pipeline = load(folder, options)
        found = make_tokens(pipeline, prompts, steps)[-1]
        decoded = pipeline.decode_latents(found, "pt", seeded())
        ways = {"it": pipeline, "fp32": plain}
        times = paired_seconds({one: partial(make_tokens, ways[one], prompts[:1], steps) for one in ways}, repeats)
        rows.append(
            (
                name,
                f"{weight_bytes(pipeline.model) / 1e6:.1f}",
                share(likeliest_tokens(pipeline, prompts, grids[:-1]), wanted),
                share(found, grids[-1]),
                f"{psnr_from_mse(mse_loss(decoded, images), data_range=1.0):.1f}",
                f"{median_ratio(times['it'], times['fp32']):.2f}",
            )
        )
    return rows


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default=EMBEDDED_MODEL, help="pipeline folder or Hub name (default: the embedded model)"
    )
    parser.add_argument("--steps", type=int, help="inference steps (default: the model's own)")
    parser.add_argument("--repeats", type=int, default=5, help="paired runs; the table has their medians")
    parser.add_argument("--small", action="store_true", help="one prompt, for a quick test; the numbers mean nothing")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    prompts = PROMPTS[:1] if options.small else PROMPTS
    steps, guidance = load(options.model, variants()["fp32"]).with_defaults(options.steps, None)
    rows = measure(options.model, prompts, steps, options.repeats)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; ", end="")
    print(f"{len(prompts)} prompts, {steps} steps, guidance {guidance:g}; medians of {options.repeats} runs in turn\n")
    head = ("variant", "weights, MB", "equal tokens, same inputs", "whole run", "PSNR, dB", "time / fp32")
    print_table(head, rows)


if __name__ == "__main__":
    main()
