"""What stands before the app: limits on requests and uploads, and the health check."""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from functools import partial
from typing import Any

from .settings import SpaceOptions


UPLOAD_WINDOW = 600.0  # seconds
UPLOADS_AT_ONCE = 6  # of one address; as many as a browser sends
TOO_OFTEN = "Too many requests from your address. Please wait a minute."
TOO_MUCH = "Too many uploads from your address. Please wait ten minutes."
TOO_SLOW = "The upload took too long."
TOO_LARGE = "The request is too large."
#: Requests for a job. Beyond so many times the jobs that one address may start, they do not even reach Gradio: each costs it
#: some milliseconds, in which no step of the model begins.
JOB_PATHS = ("/gradio_api/queue/join", "/gradio_api/call/", "/gradio_api/run/", "/gradio_api/api/")
#: The page sends what needs no queue here, as a press of "Stop". Gradio starts no job here: [`build_demo`] sets `api_open`.
NO_JOB_PATH = "/gradio_api/run/predict"
REQUESTS_PER_JOB = 2
FILES_IN_A_REQUEST = 3  # in JSON, as `data:` links of an image and its mask, which are a third longer than the files
UPLOAD_PATHS = ("/gradio_api/upload", "/gradio_api/component_server")
#: The page, `gradio_client`, MCP and a login send something to these paths alone. Gradio has more: one of them keeps every
#: file on disk forever, and a newer Gradio may have others.
OPEN_PATHS = (
    *UPLOAD_PATHS,
    "/gradio_api/queue/join",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/gradio_api/mcp",
    "/login",
)
OPEN_BEGINNINGS = ("/gradio_api/call/", "/gradio_api/run/", "/gradio_api/api/", "/gradio_api/mcp/")
#: Gradio keeps what a link of this path saves on disk forever; the page has its own links.
CLOSED_PATHS = ("/gradio_api/deep_link", "/monitoring", "/gradio_api/monitoring")
#: Here Gradio fetches files of other servers and passes them on, of any size. `file/` is its older spelling of `file=`; the
#: page and the clients do not use it.
CLOSED_BEGINNINGS = ("/gradio_api/file=http:", "/gradio_api/file=https:", "/gradio_api/file/", "/gradio_api/proxy=")


def address_of(headers: Mapping[str, str], host: str | None, options: SpaceOptions) -> str:
    """The network address of a visitor: of the connection, or of the forwarded header if the options name one."""
    if options.forwarded_header:
        found = [one.strip() for one in headers.get(options.forwarded_header.lower(), "").split(",") if one.strip()]
        if found:
            return found[-min(options.proxies, len(found))][:64]
    return host or "unknown"


def path_of(scope: Mapping[str, Any]) -> str:
    """The path that the routes of the app see, without the last slash: they find the same handler with and without it."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    return "/" + path.strip("/\n")  # a route also matches a path with a line break at its end


def is_closed(path: str, method: str) -> bool:
    """Whether the gate refuses every request of this kind to a path of [`path_of`]."""
    if path in CLOSED_PATHS or path.startswith(CLOSED_BEGINNINGS):
        return True
    return method == "POST" and path not in OPEN_PATHS and not path.startswith(OPEN_BEGINNINGS)


class Gate:
    """
    ASGI middleware.

    `/health` answers that the app is up. Only some paths take requests that send something. Every address has a number of
    requests a minute, and of requests for jobs among them, of bytes uploaded in ten minutes, of uploads at once, and a time
    for each upload. More uploads at once wait for their turn. Other requests have a number of bytes. What is refused gets a
    status code and a sentence as `detail`.

    Args:
        app: the ASGI app behind it.
        options ([`SpaceOptions`]): the limits.
    """

    def __init__(self, app: Any, options: SpaceOptions):
        self.app, self.options = app, options
        self.requests: dict[str, deque[float]] = defaultdict(deque)
        self.jobs: dict[str, deque[float]] = defaultdict(deque)
        self.uploads: dict[str, deque[tuple[float, int]]] = defaultdict(deque)
        self.open_uploads: dict[str, int] = defaultdict(int)  # those that wait count too
        self.slots: dict[str, asyncio.Semaphore] = defaultdict(partial(asyncio.Semaphore, UPLOADS_AT_ONCE))

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = path_of(scope)
        if path == "/health":
            await answer(send, 200, {"status": "ok"})
        elif is_closed(path, scope["method"]):
            await answer(send, 404, {"detail": "Not Found"})
        elif scope["method"] != "POST":
            await self.app(scope, receive, send)
        else:
            await self.guard(path, scope, receive, send)

    async def guard(self, path: str, scope: dict, receive: Any, send: Any) -> None:
        """Pass on a request that sends something, within the limits of its address."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        address = address_of(headers, (scope.get("client") or [None])[0], self.options)
        now = time.monotonic()
        self.forget(now)
        limits = [(self.requests[address], self.options.requests_per_minute)]
        if path.startswith(JOB_PATHS) and path != NO_JOB_PATH:
            limits.append((self.jobs[address], REQUESTS_PER_JOB * self.options.jobs_per_minute))
        if any(len(recent) >= most for recent, most in limits):
            await answer(send, 429, {"detail": TOO_OFTEN})
            return
        for recent, _ in limits:
            recent.append(now)
        length = headers.get("content-length", "")
        if not length.isdigit() or "transfer-encoding" in headers:  # a chunked body may be longer than it says
            await answer(send, 411, {"detail": "Length Required"})
        elif path not in UPLOAD_PATHS and int(length) > FILES_IN_A_REQUEST * self.options.file_megabytes * 1e6:
            await answer(send, 413, {"detail": TOO_LARGE})
        elif path not in UPLOAD_PATHS:
            await self.passed_on(scope, receive, send)
        elif self.over_budget(address, int(length)):
            await answer(send, 429, {"detail": TOO_MUCH})
        else:
            self.uploads[address].append((now, int(length)))
            self.open_uploads[address] += 1
            try:
                await self.upload(address, scope, receive, send)
            finally:
                self.open_uploads[address] -= 1

    async def upload(self, address: str, scope: dict, receive: Any, send: Any) -> None:
        """Pass on an upload when its address has a slot for it."""
        slots = self.slots[address]
        try:
            await asyncio.wait_for(slots.acquire(), self.options.upload_seconds)
        except TimeoutError:
            await answer(send, 429, {"detail": TOO_MUCH})
            return
        try:
            await self.passed_on(scope, receive, send)
        finally:
            slots.release()

    def over_budget(self, address: str, length: int) -> bool:
        sent = sum(size for _, size in self.uploads[address])
        return sent + length > self.options.upload_megabytes * 1e6

    def forget(self, now: float) -> None:
        """Drop what is too old to count."""
        for records, window in ((self.requests, 60.0), (self.jobs, 60.0), (self.uploads, UPLOAD_WINDOW)):
            for address in list(records):
                times: deque = records[address]
                while times and now - (times[0][0] if isinstance(times[0], tuple) else times[0]) > window:
                    times.popleft()
                if not times:
                    del records[address]
        for address in [one for one, count in self.open_uploads.items() if not count]:
            del self.open_uploads[address]
            self.slots.pop(address, None)

    async def passed_on(self, scope: dict, receive: Any, send: Any) -> None:
        """Call the app; its request body must arrive within the upload time."""
        deadline = time.monotonic() + self.options.upload_seconds
        state = {"complete": False, "late": False}

        async def timed_receive() -> dict:
            if state["complete"]:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                state["late"] = True
                return {"type": "http.disconnect"}
            state["complete"] = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        async def kept_send(message: dict) -> None:
            if not state["late"]:
                await send(message)

        try:
            await self.app(scope, timed_receive, kept_send)
        except Exception:
            if not state["late"]:
                raise
        if state["late"]:
            await answer(send, 408, {"detail": TOO_SLOW})


async def answer(send: Any, code: int, content: dict) -> None:
    """Send a JSON answer."""
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
