"""Memory of a conversion compared with a shard, and time compared with `cp`. Run as

    python benchmarks/conversion.py --text-tokenizer microsoft/phi-1_5     # needs 30 GB of disk for a while

Makes a full-size checkpoint (1.45 billion parameters, 5.8 GB) of seeded random numbers in each form, converts it and loads
it. Memory is the anonymous memory of a process (RssAnon), because the system can take back the pages of mapped files.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import torch
from make_original import FORMATS, config_of, make_original
from measuring import folder_bytes, in_child, print_table, status_bytes

from showo_hf.conversion.sources import local_source


SMALL = {"hidden": 128, "layers": 2, "intermediate": 256}
FULL = {"hidden": 2048, "layers": 24, "intermediate": 8192}
PROMPT = "a red apple on a wooden table"


class AnonymousPeak:
    """The peak of anonymous memory above the start, sampled every millisecond."""

    def __enter__(self):
        self.start = self.most = status_bytes("RssAnon")
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.done.wait(0.001):
            self.most = max(self.most, status_bytes("RssAnon"))

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()

    @property
    def above_start(self) -> int:
        return self.most - self.start


def child_convert(
    source: Path, text_tokenizer: str, output: Path, dtype: str | None, shard: str, verify: bool, watch: bool
) -> dict:
    """Convert in this process, and return time and memory."""
    from showo_hf.conversion.command_line import torch_dtype
    from showo_hf.conversion.convert_showo import convert_showo

    sources = (source / "showo", source / "magvitv2", text_tokenizer)
    # Sampling memory takes time, so separate processes measure time and memory.
    with AnonymousPeak() if watch else contextlib.nullcontext() as memory:
        start = time.perf_counter()
        report = convert_showo(
            *sources, output, dtype=torch_dtype(dtype), max_shard_size=shard, verify=verify, overwrite=True
        )
        seconds = time.perf_counter() - start
    peak = memory.above_start if memory is not None else 0
    return {"seconds": seconds, "peak": peak, "report": report.splitlines()[-1]}


def child_load(folder: Path) -> dict:
    """Load in bf16, generate one image, and return times and memory."""
    from showo_hf import ShowoT2IPipeline

    with AnonymousPeak() as memory:
        start = time.perf_counter()
        pipe = ShowoT2IPipeline.from_pretrained(folder, dtype=torch.bfloat16)
        loading = time.perf_counter() - start
    weights = sum(tensor.nbytes for tensor in pipe.model.state_dict().values())
    with AnonymousPeak() as generating:
        start = time.perf_counter()
        pipe(PROMPT, num_inference_steps=18, generator=torch.Generator().manual_seed(0))
        image = time.perf_counter() - start
    return {
        "load_seconds": loading,
        "load_peak": memory.above_start,
        "weights": weights,
        "image_seconds": image,
        "image_peak": generating.above_start,
    }


def copy_seconds(source: Path, target: Path, sync: bool) -> float:
    """Seconds of `cp -r`. `sync` includes the wait for the disk."""
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    if sync:
        subprocess.run(["sync", "-f", target], check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def run_form(root: Path, form: str, sizes: dict, options: argparse.Namespace) -> list[str]:
    """One row of the table: make a checkpoint, copy it, convert it."""
    source, output = root / "source", root / "converted"
    config = config_of(**sizes)
    make_original(source, config, form)
    bytes_in = folder_bytes(source)
    copy = min(copy_seconds(source, root / "copy", sync=False) for _ in range(2))
    synced = copy_seconds(source, root / "copy", sync=True)
    arguments = [str(source), options.text_tokenizer, str(output), options.dtype or "", options.shard]
    found = in_child(__file__, "--child", "watch", *arguments)
    shutil.rmtree(output)
    seconds = in_child(__file__, "--child", "convert", *arguments)["seconds"]
    verified = in_child(__file__, "--child", "verify", *arguments) if options.verify else {"report": "-"}
    largest = config.vocab_size * config.hidden_size * 4
    shards = [path.stat().st_size for path in (output / "model").glob("*.safetensors")]
    largest = max(largest, *shards)
    shutil.rmtree(source)
    return [
        form,
        f"{bytes_in / 1e9:.2f} GB",
        f"{found['peak'] / 1e6:.0f} MB",
        f"{found['peak'] / largest:.2f}",
        f"{seconds:.1f} s",
        f"{seconds / copy:.2f} ({copy:.1f} s)",
        f"{seconds / synced:.2f} ({synced:.1f} s)",
        verified["report"].removeprefix("largest differences from the source: "),
    ]


def main(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text-tokenizer", required=False, help="phi-1.5's text tokenizer, a folder or a Hub name")
    parser.add_argument("--forms", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--dtype", help="dtype of the output (default: the dtype of the source)")
    parser.add_argument("--shard", default="2GB", help="size of the largest file of the output")
    parser.add_argument("--verify", action="store_true", help="also compare the outputs with the source's weights")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a quick test")
    parser.add_argument("--workspace", help="folder for the checkpoints, on the disk to measure")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(run_child(*options.child)))
        return
    if not options.text_tokenizer:
        parser.error("--text-tokenizer is required")
    options.text_tokenizer = str(local_source("--text-tokenizer", options.text_tokenizer, weights=False))
    sizes = SMALL if options.small else FULL
    with tempfile.TemporaryDirectory(dir=options.workspace) as folder:
        root, rows = Path(folder), []
        for form in options.forms:
            rows.append(run_form(root, form, sizes, options))
            if form != options.forms[-1]:
                shutil.rmtree(root / "converted")
        print_table(
            [
                "source",
                "size",
                "peak memory",
                "/ larger of tensor and shard",
                "time",
                "/ cp",
                "/ cp and sync",
                "verify",
            ],
            rows,
        )
        loaded = in_child(__file__, "--child", "load", str(root / "converted"))
        print_table(
            ["loading in bf16, then one 256x256 image in 18 steps", "measured"],
            [
                ["weights", f"{loaded['weights'] / 1e9:.2f} GB"],
                ["peak memory while loading / weights", f"{loaded['load_peak'] / loaded['weights']:.2f}"],
                ["time to load", f"{loaded['load_seconds']:.1f} s"],
                ["time of the image", f"{loaded['image_seconds']:.1f} s"],
                ["peak memory above the loaded model", f"{loaded['image_peak'] / 1e9:.2f} GB"],
            ],
        )


def run_child(what: str, *arguments: str) -> dict:
    """The part that runs in a separate process."""
    if what == "load":
        return child_load(Path(arguments[0]))
    source, text_tokenizer, output, dtype, shard = arguments
    target = Path(output + "-verified" if what == "verify" else output)
    result = child_convert(
        Path(source),
        text_tokenizer,
        target,
        dtype or None,
        shard,
        verify=what == "verify",
        watch=what == "watch",
    )
    if what == "verify":
        shutil.rmtree(target)
    return result


if __name__ == "__main__":
    main()
