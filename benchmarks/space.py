"""
How the Space starts, answers and holds: `python -m benchmarks.space`.

Each part gives its figures as JSON, and all of them are one table, as in docs/deploying.md:

- `start`: from the start of `python app.py` to the first page.
- `preview`: from pressing "Make" in a browser to the first preview, against a step of the model.
- `load`: clients send images, questions and variations; every answer must equal the pipelines' own. What was lost or
  wrong, how long they waited against the pipeline's own time, how many requests a minute were served against a plain loop
  over the pipeline, and how the memory grew.
- `hostile`: the same beside visitors who flood, leave, and send slow uploads and images of giant size.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import torch
from benchmarks.measuring import PROCESS, print_table, status_bytes
from benchmarks.space_screenshots import find_browser, opened
from benchmarks.space_visitors import HEADER, PROMPTS, Request, Visitor, enemies

from showo_hf import ShowoImg2ImgPipeline, ShowoMMUPipeline
from showo_hf.app import SpaceOptions, build_demo, build_space, launch, load_pipeline
from showo_hf.app.engine import Engine
from showo_hf.app.line import Job
from showo_hf.app.settings import DrawSettings


ROOT = Path(__file__).resolve().parents[1]
PARTS = ("start", "preview", "load", "hostile")
START_SECONDS = 600  # the longest start
KINDS = ("generate", "ask", "generate", "vary")
PREVIEW_STEPS, PREVIEW_REPEATS = 6, 5
PROCESSES = PROCESS.parent


@dataclass
class Results:
    """What the requests of honest visitors came to."""

    waits: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: int = 0
    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0


def requests(count: int) -> list[Request]:
    """A fixed mix: half of it images, a quarter questions, a quarter variations."""
    draw = random.Random(0)
    return [Request(KINDS[i % len(KINDS)], draw.choice(PROMPTS), draw.randrange(1000)) for i in range(count)]


class Alone:
    """The pipelines without the app."""

    def __init__(self, pipe, picture: Path, steps: int):
        self.pipe, self.picture, self.steps = pipe, picture, steps
        self.asking, self.varying = (kind(**pipe.components) for kind in (ShowoMMUPipeline, ShowoImg2ImgPipeline))
        for one in (self.asking, self.varying):
            one.set_progress_bar_config(disable=True)

    def answer(self, request: Request):
        """The answer: a text, or the bytes of an image."""
        if request.kind == "ask":
            return self.asking(str(self.picture), max_new_tokens=64).texts[0]
        options = {"num_inference_steps": self.steps, "generator": torch.Generator().manual_seed(request.seed)}
        if request.kind == "vary":
            return self.varying(request.prompt, image=str(self.picture), **options).images[0].tobytes()
        return self.pipe(request.prompt, **options).images[0].tobytes()


def load(
    url: str, server: int, asked: list[Request], expected: dict, clients: int, picture: Path, steps: int
) -> Results:
    """Send the requests, as so many visitors, each from an address of its own, one request after the other."""
    results, lock = Results(), threading.Lock()
    visitors = [Visitor(url, f"10.0.0.{number}") for number in range(clients)]

    def serve(visitor: int) -> None:
        for request in asked[visitor::clients]:
            one(visitors[visitor], request)

    def one(visitor: Visitor, request: Request) -> None:
        start = time.monotonic()
        try:
            answer = visitor.answer(request, picture, steps)
        except Exception as error:
            with lock:
                results.lost.append(f"{request.kind}: {error}")
            return
        with lock:
            results.waits.append(time.monotonic() - start)
            results.wrong += answer != expected[request]
            results.memory.append(status_bytes("VmRSS", PROCESSES / str(server)))

    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(serve, range(clients)))
    results.seconds = time.monotonic() - start
    for visitor in visitors:
        visitor.close()
    return results


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


# The parts


@contextmanager
def served(pipe) -> Iterator[tuple]:
    """Serve a pipeline here. Gives the address of the page, and the app behind it."""
    space = build_space(pipe, SpaceOptions(), warm_up=False)
    demo = build_demo(space)
    _, url, _ = launch(demo, space, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        yield url, space
    finally:
        demo.close(verbose=False)


@contextmanager
def app_process(**options) -> Iterator[tuple[str, int, float]]:
    """Run `python app.py` with these options. Gives its address, its process, and the seconds until its first page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    chosen = {f"SHOWO_{name.upper()}": str(value) for name, value in options.items()}
    variables = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", **chosen}
    start, url = time.monotonic(), f"http://127.0.0.1:{port}/"
    with TemporaryDirectory() as scratch, (Path(scratch) / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, ROOT / "app.py"], env=variables, stdout=log, stderr=log)
        try:
            while not answers(url):
                if time.monotonic() - start > START_SECONDS or process.poll() is not None:
                    raise RuntimeError(f"The app did not start: {(Path(scratch) / 'log').read_text()[-1000:]}")
                time.sleep(0.05)
            yield url, process.pid, time.monotonic() - start
        finally:
            process.terminate()
            process.wait(60)


def answers(url: str) -> bool:
    """Whether an app gives its page."""
    try:
        return httpx.get(url, timeout=60).status_code == 200
    except httpx.HTTPError:
        return False


def start_part() -> dict:
    """Seconds from the start of `python app.py`, in a process of its own, to its first page."""
    with app_process() as (_, _, seconds):
        return {"seconds": seconds}


#: Presses "Make", and gives the milliseconds until the first image is on the stage.
FIRST_PREVIEW = """
name => new Promise(resolve => {
  const stage = document.querySelector('.showo-stage-box');
  const start = performance.now();
  const seen = new MutationObserver(() => {
    if (!stage.querySelector('.showo-frames img')) return;
    seen.disconnect();
    resolve(performance.now() - start);
  });
  seen.observe(stage, {childList: true, subtree: true});
  [...document.querySelectorAll('button')].find(button => button.innerText.trim() === name).click();
})
"""


def step_seconds(engine: Engine, settings: DrawSettings) -> list[float]:
    """Seconds of each step of one image, with its preview, without the page."""
    times = [time.monotonic()]
    engine.draw(Job(lambda event: times.append(time.monotonic()), float("inf")), settings)
    return [
        after - before for before, after in zip(times[: settings.steps], times[1 : settings.steps + 1], strict=True)
    ]


def preview_part(pipe) -> dict:
    """Seconds from pressing "Make" to the first preview in a browser, and of a step of the model with its preview alone."""
    if find_browser() is None:
        raise SystemExit("The part `preview` needs Chromium.")
    first, steps = [], []
    with served(pipe) as (url, space):
        settings = DrawSettings(PROMPTS[0], steps=PREVIEW_STEPS, guidance=space.engine.usual_guidance)
        query = f"?prompt={PROMPTS[0].replace(' ', '+')}&steps={PREVIEW_STEPS}"
        for _ in range(PREVIEW_REPEATS):
            with opened(url + query, find_browser()) as page:
                first.append(page.evaluate(FIRST_PREVIEW, "Make") / 1000)
                page.locator(".showo-status:visible", has_text="Done in").first.wait_for()
            steps += step_seconds(space.engine, settings)
    return {"seconds": statistics.median(first), "step": statistics.median(steps)}


class Load:
    """
    The requests of honest visitors, and what the pipelines alone answer to them.

    Args:
        pipe: the pipeline of the app's model.
        options: the options of the command.
        scratch (`Path`): a folder for the picture that the requests ask about.
    """

    def __init__(self, pipe, options: argparse.Namespace, scratch: Path):
        self.clients = options.clients
        self.steps = options.steps or Engine(pipe).usual_steps
        self.asked = requests(options.requests)
        self.picture = scratch / "picture.png"
        generator = torch.Generator().manual_seed(7)
        pipe(PROMPTS[0], num_inference_steps=8, generator=generator).images[0].save(self.picture)
        self.alone = Alone(pipe, self.picture, self.steps)
        self.first = self.asked[: len(KINDS)]  # the first of each kind takes longer, alone and in the app
        for request in self.first:
            self.alone.answer(request)
        self.expected: dict = {}
        self.times: list[list[float]] = []  # of each loop over all requests
        self.run_alone()

    def run_alone(self) -> None:
        """Let the pipelines answer one request after the other."""
        times = []
        for request in self.asked:
            begun = time.monotonic()
            self.expected[request] = self.alone.answer(request)
            times.append(time.monotonic() - begun)
        self.times.append(times)

    def part(self, hostile: int) -> dict:
        """What became of the requests in the app, beside so many hostile visitors."""
        with app_process(forwarded_header=HEADER) as (url, server, _):
            load(url, server, self.first, self.expected, 1, self.picture, self.steps)
            with enemies(url, hostile):
                results = load(url, server, self.asked, self.expected, self.clients, self.picture, self.steps)
        if not hostile:
            self.run_alone()  # before and after, as other work on the machine comes and goes
        return {"steps": self.steps, **summary(results, len(self.asked), *self.times)}


def summary(results: Results, asked: int, *times: list[float]) -> dict:
    """The figures of a run. The pipelines alone took `times`, in one loop or several."""
    half = len(results.memory) // 2
    return {
        "requests": asked,
        "lost": results.lost,
        "wrong": results.wrong,
        "p50": quantile(results.waits, 0.5),
        "p95": quantile(results.waits, 0.95),
        "own": statistics.median(chain(*times)),
        "seconds": results.seconds,
        "plain": [sum(some) for some in times],
        "rate": sum(chain(*times)) / len(times) / results.seconds,
        "growth": results.memory[-1] / results.memory[half - 1] - 1 if half else float("nan"),
    }


def rows(found: dict[str, dict]) -> list[tuple[str, str, str]]:
    """The rows of the table: what was measured, the figure, and its target."""
    table = []
    if "start" in found:
        table.append(("from the start to the first page", f"{found['start']['seconds']:.1f} s", "reported"))
    if "preview" in found:
        first, step = found["preview"]["seconds"], found["preview"]["step"]
        table.append(
            ("from pressing to the first preview", f"{first:.2f} s", f"at most {step + 0.3:.2f} s: a step + 0.3 s")
        )
    for part, name in (("load", "honest visitors"), ("hostile", "beside hostile ones")):
        if part not in found:
            continue
        one = found[part]
        table += [
            (f"{name}: lost, wrong, of {one['requests']}", f"{len(one['lost'])}, {one['wrong']}", "0, 0"),
            (
                f"{name}: waiting, p50 and p95 / the pipeline's own time",
                f"{one['p50'] / one['own']:.1f}, {one['p95'] / one['own']:.1f} ({one['p50']:.2f} s, {one['p95']:.2f} s)",
                "reported",
            ),
        ]
    if "load" in found:
        table += [
            ("requests a minute / those of a plain loop", f"{found['load']['rate']:.2f}", "at least 0.9"),
            ("memory after all requests / after half of them", f"{1 + found['load']['growth']:.3f}", "at most 1.05"),
        ]
    if "load" in found and "hostile" in found:
        ratio = found["hostile"]["p95"] / found["load"]["p95"]
        table.append(("p95 of honest visitors beside hostile ones / without", f"{ratio:.2f}", "at most 2"))
    return table


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--steps", type=int, help="of each image (default: those of the pipeline)")
    parser.add_argument("--hostile", type=int, default=3, metavar="N", help="hostile visitors (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    options = parser.parse_args(arguments)
    pipe = load_pipeline() if set(options.parts) - {"start"} else None
    found = {}
    with TemporaryDirectory() as scratch:
        loaded = cache(lambda: Load(pipe, options, Path(scratch)))
        work = {
            "start": start_part,
            "preview": lambda: preview_part(pipe),
            "load": lambda: loaded().part(0),
            "hostile": lambda: loaded().part(options.hostile),
        }
        for part in PARTS:
            if part in options.parts:
                found[part] = work[part]()
                print(json.dumps({part: found[part]}), file=sys.stderr, flush=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print_table(("measurement", "measured", "target"), rows(found))
    return found


if __name__ == "__main__":
    main()
