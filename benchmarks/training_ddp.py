"""How much time do two data-parallel processes with a thread each need for a step, against one process with two threads?

    python benchmarks/training_ddp.py

Both compute the same rows. The processes average their gradients by gloo, once a step.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext

import torch
import torch.distributed as dist
from measuring import median_ratio, print_table
from t2i import FULL, SMALL
from torch.nn.parallel import DistributedDataParallel
from training import WEIGHTS, Step

from showo_hf.training.losses import LossSums, backward_by_part, step_counts


ROWS = {"t2i": 4, "lm": 2, "mmu": 2}  # of a step, on all processes


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=3, help="measurements of each way, in turn (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=3, help="steps of a measurement (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="a small model, to test the benchmark")
    parser.add_argument("--child", type=int, metavar="PROCESSES", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def step_seconds(processes: int, steps: int, small: bool) -> float:
    """The median time of a step in this process, one of `processes`, which a launcher's environment describes."""
    torch.set_num_threads(2 // processes)
    if processes == 1:
        return measured_steps(1, steps, small)
    dist.init_process_group("gloo")
    # The model is gone when the group ends. If it held the group's last reference, then it would wait with Python's lock
    # for threads that need the lock (pytorch/pytorch#56297).
    seconds = measured_steps(processes, steps, small)
    dist.destroy_process_group()
    return seconds


def measured_steps(processes: int, steps: int, small: bool) -> float:
    """The median time of a step in this process."""
    rows = {name: count // processes for name, count in ROWS.items()}
    step = Step("ours", SMALL if small else FULL, torch.float32, rows, False, "cpu")
    model = DistributedDataParallel(step.model) if processes > 1 else step.model
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        # As in training, only the last task's backward pass averages the gradients.
        no_sync = model.no_sync if processes > 1 else nullcontext
        counts = step_counts([step.parts])
        backward_by_part(model, step.parts, counts, WEIGHTS, torch.device("cpu"), LossSums(), no_sync=no_sync)
        step.update()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def measured_seconds(processes: int, options: argparse.Namespace) -> float:
    """The time of a step of new processes, which the slowest decides."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    command = [sys.executable, __file__, "--child", str(processes), "--steps", str(options.steps)]
    command += ["--small"] if options.small else []
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    threads = {"OMP_NUM_THREADS": str(2 // processes)}
    children = [
        subprocess.Popen(
            command,
            env={**os.environ, **address, **threads, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    outputs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError(f"A process failed: {[child.returncode for child in children]}.")
    return max(json.loads(output.strip().splitlines()[-1])["seconds"] for output in outputs)


def ddp_over_threads(options: argparse.Namespace) -> tuple[float, list[float], list[float]]:
    """The median ratio of the times, those of two processes, and those of one."""
    two, one = [], []
    for _ in range(options.rounds):
        two.append(measured_seconds(2, options))
        one.append(measured_seconds(1, options))
    return median_ratio(two, one), two, one


def main(arguments: list[str] | None = None):
    options = parse(arguments)
    if options.child:
        print(json.dumps({"seconds": step_seconds(options.child, options.steps, options.small)}))
        return
    ratio, two, one = ddp_over_threads(options)
    print_table(
        ("what", "measured"),
        [
            ("DDP with 2 processes of 1 thread / 1 process with 2 threads, time of a step", f"{ratio:.2f}"),
            ("seconds, 2 processes", f"{statistics.median(two):.2f}"),
            ("seconds, 1 process", f"{statistics.median(one):.2f}"),
        ],
    )


if __name__ == "__main__":
    main()
