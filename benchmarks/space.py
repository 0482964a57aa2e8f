"""
How the Space holds under load: `python -m benchmarks.space`.

Clients send a mix of requests to the embedded model: images, questions, variations. The table says what was lost or wrong,
how long they waited against the pipeline's own time, how many requests a minute were served against a plain loop over the
pipeline, and how the memory grew. `--hostile` adds visitors who flood, send broken files and leave.
"""

import argparse
import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import torch
from benchmarks.measuring import PROCESS
from gradio_client import Client, handle_file
from PIL import Image

from showo_hf import ShowoImg2ImgPipeline, ShowoMMUPipeline
from showo_hf.app import SpaceOptions, build_demo, build_space, launch, load_pipeline


PROMPTS = ("a red apple, flat style", "an owl, noto style", "a rocket, flat style", "a pizza, noto style")
HEADER = "X-Forwarded-For"


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
    """Send the requests, as so many visitors, each from an address of its own."""
    results, lock = Results(), threading.Lock()
    visitors = [Client(url, verbose=False, headers={HEADER: f"10.0.0.{i}"}) for i in range(clients)]

    def serve(number: int) -> None:
        request, start = asked[number], time.monotonic()
        try:
            answer = call(visitors[number % clients], request, picture, steps)
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
        list(pool.map(serve, range(len(asked))))
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
                bomb = b"\x89PNG\r\n\x1a\n" + b"\0" * 1_000_000
                client.post("gradio_api/upload", files={"files": ("bomb.png", bomb)})
                client.post("gradio_api/upload", content=slow_body(ended), headers={"content-length": "100000"})
            except httpx.HTTPError:
                pass
            ended.wait(0.2)


def slow_body(ended: threading.Event):
    """A body that arrives a byte at a time, for two seconds."""
    for _ in range(20):
        if ended.wait(0.1):
            return
        yield b"x"


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def report(name: str, results: Results, asked: int, own: float, loop: float) -> list[str]:
    """The rows of the table of one run."""
    half = len(results.memory) // 2
    growth = results.memory[-1] / results.memory[half - 1] - 1 if half else float("nan")
    return [
        f"{name}:",
        f"  requests {asked}, lost {len(results.lost)}, wrong {results.wrong}",
        f"  waiting p50 {quantile(results.waits, 0.5):.2f} s, p95 {quantile(results.waits, 0.95):.2f} s; "
        f"the pipeline's own time {own:.2f} s",
        f"  requests a minute against a plain loop: {loop / results.seconds:.2f}",
        f"  memory after the second half against that after the first: {growth:+.1%}",
    ]


def main(arguments: list[str] | None = None) -> dict[str, Results]:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--steps", type=int, default=8, help="of each image (default: 8)")
    parser.add_argument(
        "--hostile", type=int, default=0, metavar="N", help="hostile visitors beside them, in a second run"
    )
    options = parser.parse_args(arguments)
    asked = requests(options.requests)
    pipe = load_pipeline()
    found = {}
    with TemporaryDirectory() as scratch:
        picture = Path(scratch) / "apple.png"
        pipe(PROMPTS[0], num_inference_steps=8, generator=torch.Generator().manual_seed(7)).images[0].save(picture)
        alone = Alone(pipe, picture, options.steps)
        alone.answer(asked[0])
        start = time.monotonic()
        times, expected = [], {}
        for request in asked:
            begun = time.monotonic()
            expected[request] = alone.answer(request)
            times.append(time.monotonic() - begun)
        loop = time.monotonic() - start
        space = build_space(pipe, SpaceOptions(forwarded_header=HEADER, jobs_per_minute=600), warm_up=False)
        demo = build_demo(space)
        _, url, _ = launch(demo, space, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
        try:
            for name, hostile in (("honest visitors", 0), (f"with {options.hostile} hostile", options.hostile)):
                if name in found or (hostile == 0 and found):
                    continue
                ended = threading.Event()
                enemies = [threading.Thread(target=attack, args=(url, ended, i)) for i in range(hostile)]
                for enemy in enemies:
                    enemy.start()
                found[name] = load(url, asked, expected, options.clients, picture, options.steps)
                ended.set()
                for enemy in enemies:
                    enemy.join(30)
                print("\n".join(report(name, found[name], len(asked), statistics.median(times), loop)), flush=True)
                for line in found[name].lost[:5]:
                    print(f"  lost: {line[:200]}")
        finally:
            demo.close(verbose=False)
    return found


if __name__ == "__main__":
    main()
