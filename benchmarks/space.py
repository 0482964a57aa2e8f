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
import io
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
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import torch
from benchmarks.measuring import PROCESS, print_table
from benchmarks.space_screenshots import find_browser, opened
from gradio_client import Client, handle_file
from PIL import Image

from showo_hf import ShowoImg2ImgPipeline, ShowoMMUPipeline
from showo_hf.app import SpaceOptions, build_demo, build_space, launch, load_pipeline
from showo_hf.app.engine import Engine
from showo_hf.app.line import Job
from showo_hf.app.settings import DrawSettings


ROOT = Path(__file__).resolve().parents[1]
PARTS = ("start", "preview", "load", "hostile")
START_SECONDS = 600  # the longest start
PREVIEW_STEPS, PREVIEW_REPEATS = 6, 5

PROMPTS = ("a red apple, flat style", "an owl, noto style", "a rocket, flat style", "a pizza, noto style")
HEADER = "X-Forwarded-For"
SLOW_BYTES = 20  # of a slow upload


@dataclass
class Results:
    """What the requests of honest visitors came to."""

    waits: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    wrong: int = 0
    memory: list[int] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Request:
    """One request, which the pipeline can answer alone."""

    kind: str
    prompt: str
    seed: int


def requests(count: int) -> list[Request]:
    """A fixed mix: half of it images, a quarter questions, a quarter variations."""
    draw = random.Random(0)
    kinds = ("generate", "ask", "generate", "vary")
    return [Request(kinds[i % 4], draw.choice(PROMPTS), draw.randrange(1000)) for i in range(count)]


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


def call(client: Client, request: Request, picture: Path, steps: int):
    """The answer of the app."""
    if request.kind == "ask":
        return client.predict(handle_file(picture), api_name="/ask")
    options = {"steps": steps, "seed": request.seed}
    if request.kind == "vary":
        path, _ = client.predict(handle_file(picture), request.prompt, **options, api_name="/vary")
    else:
        gallery, _ = client.predict(request.prompt, **options, api_name="/generate")
        path = gallery[0]["image"]
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def resident() -> int:
    """Bytes of memory of this process."""
    for line in (PROCESS / "status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def load(url: str, asked: list[Request], expected: dict, clients: int, picture: Path, steps: int) -> Results:
    """Send the requests, as so many visitors, each from an address of its own, one request after the other."""
    results, lock = Results(), threading.Lock()
    visitors = [Client(url, verbose=False, headers={HEADER: f"10.0.0.{i}"}) for i in range(clients)]

    def serve(visitor: int) -> None:
        for request in asked[visitor::clients]:
            one(visitors[visitor], request)

    def one(visitor: Client, request: Request) -> None:
        start = time.monotonic()
        try:
            answer = call(visitor, request, picture, steps)
        except Exception as error:
            with lock:
                results.lost.append(f"{request.kind}: {error}")
            return
        with lock:
            results.waits.append(time.monotonic() - start)
            results.wrong += answer != expected[request]
            results.memory.append(resident())

    start = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(serve, range(clients)))
    results.seconds = time.monotonic() - start
    for visitor in visitors:
        visitor.close()
    return results


def attack(url: str, ended: threading.Event, number: int) -> None:
    """One hostile visitor: floods the queue and leaves, sends broken and huge files, and slow uploads."""
    headers = {HEADER: f"66.0.0.{number}"}
    with httpx.Client(base_url=url, headers=headers, timeout=20) as client:
        while not ended.is_set():
            try:
                for turn in range(30):
                    data = {"data": [PROMPTS[0], 50, 20, None, None, 4, "", "the model's own", 96, 96]}
                    client.post("gradio_api/call/generate", json={**data, "session_hash": f"x{number}{turn}"})
                (path,) = client.post("gradio_api/upload", files={"files": ("bomb.png", bomb())}).json()
                file = {"path": path, "meta": {"_type": "gradio.FileData"}}
                client.post("gradio_api/call/ask", json={"data": [file, "what is this?"]})
                client.post("gradio_api/upload", content=slow_body(ended), headers={"content-length": str(SLOW_BYTES)})
            except (httpx.HTTPError, ValueError):  # refused, or not JSON
                pass
            ended.wait(0.2)


@cache
def bomb() -> bytes:
    """A PNG of some kilobytes with 64 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (8_000, 8_000)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def slow_body(ended: threading.Event):
    """A body that arrives a byte at a time, for two seconds."""
    for _ in range(SLOW_BYTES):
        ended.wait(0.1)
        yield b"x"


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


# The parts


@contextmanager
def served(pipe, warm_up: bool = False, **options) -> Iterator[tuple]:
    """Serve a pipeline here. Gives the address of the page, and the app behind it."""
    space = build_space(pipe, SpaceOptions(forwarded_header=HEADER, **options), warm_up=warm_up)
    demo = build_demo(space)
    _, url, _ = launch(demo, space, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        yield url, space
    finally:
        demo.close(verbose=False)


def start_part() -> dict:
    """Seconds from the start of `python app.py`, in a process of its own, to its first page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1"}
    start = time.monotonic()
    with TemporaryDirectory() as scratch, (Path(scratch) / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, ROOT / "app.py"], env=variables, stdout=log, stderr=log)
        try:
            while time.monotonic() - start < START_SECONDS and process.poll() is None:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/", timeout=60).status_code == 200:
                        return {"seconds": time.monotonic() - start}
                except httpx.HTTPError:
                    time.sleep(0.05)
        finally:
            process.terminate()
            process.wait(60)
        raise RuntimeError(f"The app did not start: {(Path(scratch) / 'log').read_text()[-1000:]}")


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


def load_part(pipe, options: argparse.Namespace, hostile: int) -> dict:
    """What became of the requests of honest visitors, beside so many hostile ones."""
    asked = requests(options.requests)
    with TemporaryDirectory() as scratch:
        picture = Path(scratch) / "picture.png"
        pipe(PROMPTS[0], num_inference_steps=8, generator=torch.Generator().manual_seed(7)).images[0].save(picture)
        alone = Alone(pipe, picture, options.steps)
        alone.answer(asked[0])
        times, expected = [], {}
        for request in asked:
            begun = time.monotonic()
            expected[request] = alone.answer(request)
            times.append(time.monotonic() - begun)
        with served(pipe, jobs_per_minute=600) as (url, _):
            ended = threading.Event()
            enemies = [threading.Thread(target=attack, args=(url, ended, i)) for i in range(hostile)]
            for enemy in enemies:
                enemy.start()
            try:
                results = load(url, asked, expected, options.clients, picture, options.steps)
            finally:
                ended.set()
                for enemy in enemies:
                    enemy.join(30)
    return summary(results, len(asked), times)


def summary(results: Results, asked: int, times: list[float]) -> dict:
    """The figures of a run. The pipelines alone took `times`."""
    half = len(results.memory) // 2
    return {
        "requests": asked,
        "lost": results.lost,
        "wrong": results.wrong,
        "p50": quantile(results.waits, 0.5),
        "p95": quantile(results.waits, 0.95),
        "own": statistics.median(times),
        "rate": sum(times) / results.seconds,
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
    parser.add_argument("--steps", type=int, default=8, help="of each image (default: 8)")
    parser.add_argument("--hostile", type=int, default=3, metavar="N", help="hostile visitors (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    options = parser.parse_args(arguments)
    pipe = load_pipeline() if set(options.parts) - {"start"} else None
    work = {
        "start": start_part,
        "preview": lambda: preview_part(pipe),
        "load": lambda: load_part(pipe, options, 0),
        "hostile": lambda: load_part(pipe, options, options.hostile),
    }
    found = {}
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
