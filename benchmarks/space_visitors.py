"""Visitors of the Space for its benchmark: honest ones, which ask and wait, and hostile ones."""

import io
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx
from PIL import Image


HEADER = "X-Forwarded-For"
PROMPTS = ("a red apple to the left of a blue car", "an owl, noto style", "three stars at night", "a purple cat")
SLOW_BYTES = 20  # of a slow upload
ANSWER_SECONDS = 600  # the longest wait for an answer


@dataclass(frozen=True)
class Request:
    """One request, which the pipeline can answer alone."""

    kind: str
    prompt: str
    seed: int


class Visitor:
    """
    A client of the app, with an address and a session of its own.

    It uses Gradio's API over HTTP alone, as it shares the machine with the app: `gradio_client` takes 0.12 s of CPU time for
    each request.
    """

    def __init__(self, url: str, address: str):
        self.client = httpx.Client(base_url=url, headers={HEADER: address}, timeout=ANSWER_SECONDS)
        self.session = f"session-of-{address}"
        self.endpoints = self.client.get("gradio_api/info").raise_for_status().json()["named_endpoints"]

    def close(self) -> None:
        self.client.close()

    def call(self, name: str, **arguments: Any) -> list:
        """The last outputs of an endpoint. Raises `RuntimeError` if it fails."""
        parameters = self.endpoints[f"/{name}"]["parameters"]
        data = [arguments.get(one["parameter_name"], one.get("parameter_default")) for one in parameters]
        body = {"data": data, "session_hash": self.session}
        sent = self.client.post(f"gradio_api/call/{name}", json=body).raise_for_status()
        event = ""
        with self.client.stream("GET", f"gradio_api/call/{name}/{sent.json()['event_id']}") as answer:
            for line in answer.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    event = value
                elif field == "data" and event == "complete":
                    return json.loads(value)
                elif field == "data" and event == "error":
                    raise RuntimeError(value)
        raise RuntimeError("the answer ended early")

    def upload(self, file: Path) -> dict[str, Any]:
        """A file as an input of an endpoint."""
        answer = self.client.post("gradio_api/upload", files={"files": (file.name, file.read_bytes())})
        return {"path": answer.raise_for_status().json()[0], "meta": {"_type": "gradio.FileData"}}

    def pixels(self, file: dict[str, Any]) -> bytes:
        """The pixels of an image that an endpoint gave."""
        content = self.client.get(file["url"]).raise_for_status().content
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB").tobytes()

    def answer(self, request: Request, picture: Path, steps: int) -> str | bytes:
        """The answer of the app to a request: a text, or the pixels of an image."""
        if request.kind == "ask":
            return self.call("ask", image=self.upload(picture))[0]
        options: dict[str, Any] = {"prompt": request.prompt, "steps": steps, "seed": request.seed}
        if request.kind == "vary":
            return self.pixels(self.call("vary", image=self.upload(picture), **options)[0])
        return self.pixels(self.call("generate", **options)[0][0]["image"])


def attack(url: str, ended: Any, number: int) -> None:
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


@contextmanager
def enemies(url: str, count: int) -> Iterator[None]:
    """So many hostile visitors, in a process of their own."""
    if not count:
        yield
        return
    context = multiprocessing.get_context("spawn")
    begun, ended = context.Event(), context.Event()
    process = context.Process(target=attack_together, args=(url, begun, ended, count))
    process.start()
    try:
        if not begun.wait(ANSWER_SECONDS):
            raise RuntimeError("The hostile visitors did not start.")
        yield
    finally:
        ended.set()
        process.join(60)


def attack_together(url: str, begun: Any, ended: Any, count: int) -> None:
    """The process of the hostile visitors."""
    begun.set()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(partial(attack, url, ended), range(count)))


@cache
def bomb() -> bytes:
    """A PNG of some kilobytes with 64 million pixels."""
    buffer = io.BytesIO()
    Image.new("1", (8_000, 8_000)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def slow_body(ended: Any):
    """A body that arrives a byte at a time, for two seconds."""
    for _ in range(SLOW_BYTES):
        ended.wait(0.1)
        yield b"x"
