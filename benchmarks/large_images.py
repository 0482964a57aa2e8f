"""What does a large image cost, and what does tiling change? Prints the tables of docs/extending.md. Run as

    python benchmarks/large_images.py

Table 1: memory for encoding and decoding with the full-size image tokenizer (random weights), with and without tiling.
Table 2: differences between tiled and untiled results of the embedded image tokenizer, near tile borders and elsewhere.
Table 3: memory for text to image with a model of the published size (random weights). One step per window is enough,
because every step needs the same memory.
"""

import argparse
import json

import torch
from measuring import in_child, peak_memory_of, print_table
from t2i import PROMPT, Sizes, build_pipeline

from showo_hf import EMBEDDED_MODEL, ShowoLFQTokenizer, ShowoLFQTokenizerConfig, ShowoT2IPipeline
from showo_hf.models.tiling import kept_parts
from showo_hf.utils.metrics import psnr_from_mse


MB = 2**20
PUBLISHED = Sizes(hidden_size=2048, layers=24, heads=32)


@torch.no_grad()
def memory(size: int, tiled: bool, trained: int, device: str = "cpu") -> dict[str, int]:
    """Bytes above the model for encoding and decoding one image of `size` pixels with the full-size tokenizer."""
    torch.manual_seed(0)
    tokenizer = ShowoLFQTokenizer(ShowoLFQTokenizerConfig(sample_size=trained)).eval().to(device)
    if tiled:
        tokenizer.enable_tiling()
    pixels = torch.rand(1, 3, size, size, device=device) * 2 - 1
    result = {}
    encoded = {}
    found = peak_memory_of(lambda: encoded.update(tokens=tokenizer.encode(pixels).image_tokens), device)
    result["encode"] = found["peak"] - found["before"]
    found = peak_memory_of(lambda: tokenizer.decode(encoded["tokens"]), device)
    result["decode"] = found["peak"] - found["before"]
    return result


@torch.no_grad()
def text_to_image(size: int, trained: int, device: str = "cpu", sizes: Sizes = PUBLISHED) -> dict[str, int]:
    """One image of `size` pixels in bf16: windows, bytes of the model, and peak bytes above the model."""
    config = ShowoLFQTokenizerConfig(sample_size=trained, **sizes.tokenizer_options)
    pipe = build_pipeline(sizes, device, torch.bfloat16, config)
    pipe.image_tokenizer.enable_tiling()
    steps: list[int] = []
    options = {
        "num_inference_steps": 1,
        "generator": torch.Generator().manual_seed(0),
        "callback_on_step_end": lambda its_pipe, step, timestep, tensors: steps.append(step),
    }
    found = peak_memory_of(lambda: pipe(PROMPT, height=size, width=size, **options), device)
    model = sum(tensor.nbytes for tensor in (*pipe.model.parameters(), *pipe.model.buffers()))
    return {"windows": len(steps), "model": model, "above": found["peak"] - found["before"]}


def near_borders(length: int, tile: int, margin: int) -> torch.BoolTensor:
    """True for the tokens of an axis that are within `margin` of a tile border."""
    positions = torch.arange(length)
    marked = torch.zeros(length, dtype=torch.bool)
    for _, kept in list(kept_parts(length, tile))[1:]:
        marked |= (positions >= kept.start - margin) & (positions < kept.start + margin)
    return marked


@torch.no_grad()
def differences(model: str, side: int, images: int, device: str = "cpu") -> dict[str, float]:
    """Differences between tiled and untiled results for sheets of `side` x `side` generated images."""
    pipe = ShowoT2IPipeline.from_pretrained(model, dtype=torch.float32).to(device)
    pipe.set_progress_bar_config(disable=True)
    tokenizer, trained = pipe.image_tokenizer, pipe.image_tokenizer.config.sample_size
    factor = tokenizer.config.downsampling
    tile, tokens = trained // factor, side * trained // factor
    axis = near_borders(tokens, tile, 1)
    border = axis[:, None] | axis
    sums = {name: [] for name in ("tokens, borders", "tokens, elsewhere", "pixels, borders", "pixels, elsewhere")}
    for number in range(images):
        generator = torch.Generator(device).manual_seed(number)
        options = {"num_inference_steps": 8, "generator": generator, "output_type": "pt"}
        made = (
            pipe("a red apple to the left of a blue car", num_images_per_prompt=side * side, **options).images * 2 - 1
        )
        rows = made.unflatten(0, (side, side))  # (side, side, 3, H, W)
        sheet = rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)[None]
        tokenizer.disable_tiling()
        whole = tokenizer.encode(sheet).image_tokens
        decoded = tokenizer.decode(whole).sample
        tokenizer.enable_tiling()
        other = tokenizer.encode(sheet).image_tokens[0] != whole[0]
        change = (tokenizer.decode(whole).sample - decoded)[0].square().mean(0)
        change = change.unflatten(0, (tokens, factor)).unflatten(2, (tokens, factor)).mean((1, 3))  # (h, w)
        for place, where in (("borders", border), ("elsewhere", ~border)):
            sums[f"tokens, {place}"].append(other[where].float().mean())
            sums[f"pixels, {place}"].append(change[where].mean())
    means = {name: float(torch.stack(values).mean()) for name, values in sums.items()}
    return {
        name: float(psnr_from_mse(torch.tensor(value))) if name.startswith("pixels") else value
        for name, value in means.items()
    }


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048], help="image sizes in pixels")
    parser.add_argument("--largest-whole", type=int, default=512, help="largest size to measure without tiling")
    parser.add_argument("--trained", type=int, default=256, help="tile size of the full-size tokenizer in pixels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a size, and "tiled", "whole" or "made"
    options = parser.parse_args(arguments)
    if options.one:
        size, way = int(options.one[0]), options.one[1]
        if way == "made":
            found = text_to_image(size, options.trained, options.device)
        else:
            found = memory(size, way == "tiled", options.trained, options.device)
        print(json.dumps(found))
        return
    rows = []
    common = ("--trained", str(options.trained), "--device", options.device)
    for size in options.sizes:
        row = [size]
        for way in ("whole", "tiled"):
            if way == "whole" and size > options.largest_whole:
                row += ["-", "-"]
                continue
            found = in_child(__file__, "--one", str(size), way, *common)
            row += [f"{found[part] / MB:.0f}" for part in ("encode", "decode")]
        rows.append(row)
    print_table(("image size", "encode, MB", "decode, MB", "tiled encode, MB", "tiled decode, MB"), rows)
    found = differences(options.model, 3, 4, options.device)
    print_table(
        ("tiled against untiled", "at tile borders", "elsewhere"),
        [
            ["different tokens", *(f"{found[f'tokens, {where}']:.1%}" for where in ("borders", "elsewhere"))],
            ["same tokens, PSNR in dB", *(f"{found[f'pixels, {where}']:.1f}" for where in ("borders", "elsewhere"))],
        ],
    )
    rows = []
    for size in options.sizes:
        found = in_child(__file__, "--one", str(size), "made", *common)
        rows.append([size, found["windows"], *(f"{found[part] / MB:.0f}" for part in ("model", "above"))])
    print_table(("image size", "windows", "model, MB", "above the model, MB"), rows)


if __name__ == "__main__":
    main()
