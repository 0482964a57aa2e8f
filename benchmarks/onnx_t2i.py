"""What does a small machine gain by ONNX? Prints the table of docs/onnx.md. Run as

    python benchmarks/onnx_t2i.py

The embedded model, or `--model FOLDER`, makes the same image with torch and with ONNX Runtime, each in processes of
its own and in turn. (A script called onnx.py would be imported for the package of that name.)
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path


# No torch up here: the processes that measure ONNX Runtime run this file too.
PROMPT = "a red apple, flat style"
STEPS, GUIDANCE = 18, 2.75
WAYS = ("eager fp32", "ONNX fp32", "ONNX int8")
ONNX_PACKAGES = ("numpy", "onnxruntime", "pillow", "tokenizers")  # what generate.py imports


# A process of its own for each way


def eager_maker(folder: str, threads: int) -> Callable[[], object]:
    """What makes an image with torch."""
    import torch

    torch.set_num_threads(threads)
    pipe = load_eager(folder)
    return lambda: pipe(PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE).images[0]


def load_eager(folder: str):
    """The pipeline in float32, without progress bars."""
    import diffusers.utils.logging
    import torch
    import transformers.utils.logging

    from showo_hf import ShowoT2IPipeline

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
    pipe = ShowoT2IPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def onnx_runner(folder: Path):
    """The module generate.py of an exported folder."""
    spec = importlib.util.spec_from_file_location("generate", folder / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["generate"] = module  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


def onnx_maker(folder: str, threads: int) -> Callable[[], object]:
    """What makes an image with ONNX Runtime."""
    model = onnx_runner(Path(folder)).OnnxShowo(folder, threads)
    return lambda: model([PROMPT], steps=STEPS, guidance_scale=GUIDANCE)[0]


def report_child(way: str, folder: str, threads: int, repeats: int, started: float):
    """Print as JSON: seconds to the first image, of a later one, and the most memory that the process had."""
    make = (eager_maker if way == WAYS[0] else onnx_maker)(folder, threads)
    make()
    first = time.time() - started
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        make()
        times.append(time.perf_counter() - start)
    if way != WAYS[0] and "torch" in sys.modules:
        raise RuntimeError("torch was imported where it should not be needed.")
    print(json.dumps({"first": first, "image": min(times), "peak": peak_bytes()}))


def peak_bytes() -> int:
    """The most memory that this process held, as Linux tells it; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def measure_in_turn(folders: dict[str, Path], rounds: int, threads: int, repeats: int) -> dict[str, list[dict]]:
    """What the processes report, `rounds` of each way: machines drift, and what runs in turn drifts together."""
    from measuring import in_child

    found: dict[str, list[dict]] = {way: [] for way in folders}
    for _ in range(rounds):
        for way, folder in folders.items():
            options = ["--threads", threads, "--repeats", repeats, "--started", time.time()]
            found[way].append(in_child(__file__, "--child", way, "--folder", str(folder), *map(str, options)))
    return found


# What it costs


def installed_bytes(*names: str) -> int:
    """Size of installed packages with all that they need; of those that are not installed 0."""
    from packaging.requirements import Requirement

    seen: dict[str, int] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen[name] = 0
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        places = {Path(str(file.locate())) for file in distribution.files or ()}
        seen[name] = sum(place.stat().st_size for place in places if place.is_file())
        for requirement in map(Requirement, distribution.requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return sum(seen.values())


# How close it is


def quality(model: str, folder: Path) -> dict[str, float]:
    """
    Against torch: the share of unknown codes, over all steps of an image, whose best guess is the same; the share of
    codes of that image that the encoder gives again alike; and the decoder's PSNR in dB.
    """
    import torch

    from showo_hf.utils.metrics import psnr

    pipe = load_eager(model)
    small = onnx_runner(folder).OnnxShowo(folder)
    codes = pipe.model.config.codebook_size
    states = [torch.full((1, *pipe.default_grid), codes)]

    def remember(pipe, step, timestep, tensors):
        states.append(tensors["latents"].clone())
        return {}

    generator = torch.Generator().manual_seed(0)
    call = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "callback_on_step_end": remember}
    tokens = pipe(PROMPT, generator=generator, output_type="latent", **call).images
    encoded, small_encoded = pipe.encode_prompt(PROMPT, None, 1, True), small.encode_prompts([PROMPT, ""])
    mask = pipe.image_attention_mask(encoded, pipe.image_input_ids(tokens.flatten(1)).repeat(2, 1))
    equal = []
    for state in (state.flatten(1) for state in states[:-1]):
        best = pipe.predict_codes(state, encoded, mask, GUIDANCE).argmax(-1)
        small_best = small.predict_codes(state.numpy(), small_encoded, GUIDANCE).argmax(-1)
        equal += (best.numpy() == small_best)[(state == codes).numpy()].tolist()
    with torch.no_grad():
        pixels = pipe.image_tokenizer.decode(tokens).sample
        again = pipe.image_tokenizer.encode(pixels).image_tokens.numpy()
    (small_pixels,) = small.image_decoder.run(None, {"image_tokens": tokens.numpy()})
    (small_again,) = small.image_encoder.run(None, {"pixel_values": pixels.numpy()})
    return {
        "codes": statistics.mean(equal),
        "encoder": float((again == small_again).mean()),
        "psnr": psnr(torch.from_numpy(small_pixels), pixels).mean().item(),
    }


# The table


def rows(model: str, scratch: Path, rounds: int, threads: int, repeats: int) -> list[tuple[str, ...]]:
    """The table's rows: what, and a cell for each way."""
    from measuring import folder_bytes

    from showo_hf.conversion.export_onnx import export_onnx

    folders = dict(zip(WAYS, (Path(model), scratch / "fp32", scratch / "int8"), strict=True))
    export_onnx(model, folders["ONNX fp32"])
    export_onnx(model, folders["ONNX int8"], quantize="int8")
    found = measure_in_turn(folders, rounds, threads, repeats)
    close = {way: quality(model, folders[way]) for way in WAYS[1:]}
    packages = [installed_bytes("showo-hf"), *[installed_bytes(*ONNX_PACKAGES)] * 2]
    return [
        ("time of an image / eager's", *ratio_cells(found, "image", "s")),
        ("start of Python to the first image / eager's", *ratio_cells(found, "first", "s")),
        ("peak memory of the process / eager's", *ratio_cells(found, "peak", "MB", 1e-6)),
        ("the model's folder (the pipeline's as it is stored)", *megabytes(map(folder_bytes, folders.values()), 1)),
        ("packages that must be installed", *megabytes(packages)),
        ("best codes equal to eager's, all steps", "", *(f"{close[way]['codes']:.1%}" for way in WAYS[1:])),
        ("encoder's codes equal to eager's", "", *(f"{close[way]['encoder']:.1%}" for way in WAYS[1:])),
        ("decoder's PSNR against eager", "", *(f"{close[way]['psnr']:.0f} dB" for way in WAYS[1:])),
    ]


def ratio_cells(found: dict[str, list[dict]], key: str, unit: str, scale: float = 1.0) -> list[str]:
    """A cell for each way: the median of its ratios to eager, and its own median."""
    from measuring import median_ratio

    values = {way: [report[key] for report in found[way]] for way in WAYS}
    if not all(map(all, values.values())):
        return ["not measured here"] * len(WAYS)
    own = {way: f"{statistics.median(values[way]) * scale:.{0 if scale != 1 else 2}f} {unit}" for way in WAYS}
    return [f"{median_ratio(values[way], values[WAYS[0]]):.2f} ({own[way]})" for way in WAYS]


def megabytes(sizes: Iterable[int], digits: int = 0) -> list[str]:
    """Sizes in bytes as cells."""
    return [f"{size / 1e6:.{digits}f} MB" for size in sizes]


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", help="a pipeline folder (default: the embedded model)")
    add("--rounds", type=int, default=5, help="processes of each way")
    add("--repeats", type=int, default=5, help="images in a process after its first; the fastest counts")
    add("--threads", type=int, default=os.cpu_count())
    add("--child", choices=WAYS, help="only measure one way, in this process")
    add("--folder", help="what the child loads")
    add("--started", type=float, default=0.0, help="when the child was started")
    options = parser.parse_args(arguments)
    if options.child:
        report_child(options.child, options.folder, options.threads, options.repeats, options.started)
        return
    import onnxruntime
    import torch
    from measuring import print_table

    from showo_hf import EMBEDDED_MODEL

    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"{versions}, {options.threads} threads, {platform.machine()}\n")
    with tempfile.TemporaryDirectory() as scratch:
        table = rows(options.model or EMBEDDED_MODEL, Path(scratch), options.rounds, options.threads, options.repeats)
    print_table(("what", *WAYS), table)


if __name__ == "__main__":
    main()
