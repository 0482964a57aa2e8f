"""The middleware before the app: addresses, budgets, slow uploads, closed paths."""

import asyncio
import json

import pytest


pytest.importorskip("gradio")

from showo_hf.app.gate import TOO_LARGE, TOO_MUCH, TOO_OFTEN, TOO_SLOW, UPLOADS_AT_ONCE, Gate, address_of  # noqa: E402
from showo_hf.app.settings import SpaceOptions  # noqa: E402


async def app(scope, receive, send):
    """Reads the body, and says how long it was."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RuntimeError("the client is gone")
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def call(gate, path, **request):
    """Send a request. Returns the status code and the body."""
    return asyncio.run(answered(gate, path, **request))


async def answered(gate, path, method="POST", body=b"12345", headers=None, host="1.2.3.4", delay=0.0, root=""):
    """The same in a running loop."""
    sent = []
    headers = {"content-length": str(len(body)), **(headers or {})}
    parts = [body[:2], body[2:]]

    async def receive():
        if len(parts) == 1:
            await asyncio.sleep(delay)
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "path": path,
        "root_path": root,
        "method": method,
        "client": (host, 1),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await gate(scope, receive, send)
    starts = [message for message in sent if message["type"] == "http.response.start"]
    assert len(starts) == 1
    return starts[0]["status"], b"".join(message.get("body", b"") for message in sent).decode()


def gate(**options):
    return Gate(app, SpaceOptions(**options))


def test_the_health_check_answers():
    assert call(gate(), "/health", method="GET") == (200, json.dumps({"status": "ok"}))


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/deep_link",
        "/gradio_api/deep_link/",
        "/gradio_api/deep_link\n",
        "/monitoring",
        "/gradio_api/file=http://example.com/image.png",
        "/gradio_api/file=https://example.com/image.png",
        "/gradio_api/file/http://example.com/image.png",
        "/gradio_api/file/https://example.com/image.png",
        "/gradio_api/proxy=https://example.com/image.png",
    ],
)
def test_paths_that_keep_or_tell_too_much_are_closed(path):
    for method in ("GET", "HEAD", "POST"):
        assert call(gate(), path, method=method)[0] == 404


@pytest.mark.parametrize("path", ["/gradio_api/process_recording", "/gradio_api/process_recording/", "/", "/new"])
def test_nothing_is_sent_to_a_path_that_is_not_open(path):
    refused = (404, json.dumps({"detail": "Not Found"}))
    assert call(gate(), path) == call(gate(), f"/here{path}", root="/here") == refused
    assert call(gate(), path, method="GET")[0] == 200


@pytest.mark.parametrize(
    "path", ["login", "gradio_api/mcp", "gradio_api/mcp/", "gradio_api/cancel", "gradio_api/reset/"]
)
def test_pages_and_clients_send_to_open_paths(path):
    assert call(gate(), f"/{path}")[0] == call(gate(), f"/here/{path}", root="/here")[0] == 200


def test_requests_pass():
    assert call(gate(), "/gradio_api/queue/join") == (200, "5")


def test_requests_say_their_length_and_are_not_huge():
    one, large = gate(file_megabytes=1.0), {"content-length": "3000001"}
    assert call(one, "/gradio_api/queue/join", headers={"transfer-encoding": "chunked"})[0] == 411
    assert call(one, "/gradio_api/upload", headers={"transfer-encoding": "chunked"})[0] == 411
    assert call(one, "/gradio_api/queue/join", headers=large) == (413, json.dumps({"detail": TOO_LARGE}))
    assert call(one, "/gradio_api/upload", headers=large)[0] == 200, "files have a budget of their own"


def test_an_address_has_a_number_of_requests_a_minute():
    one = gate(requests_per_minute=2)
    assert [call(one, "/gradio_api/queue/join")[0] for _ in range(2)] == [200, 200]
    code, body = call(one, "/gradio_api/queue/join")
    assert code == 429 and json.loads(body) == {"detail": TOO_OFTEN}
    assert call(one, "/gradio_api/queue/join", host="5.6.7.8")[0] == 200


@pytest.mark.parametrize("path", ["queue/join", "call/generate", "run/generate", "api/generate", "api/predict"])
def test_a_flood_of_jobs_does_not_reach_the_app(path):
    one, path = gate(jobs_per_minute=2), f"/gradio_api/{path}"
    assert [call(one, path)[0] for _ in range(4)] == [200] * 4  # the app refuses the later two with a sentence
    assert call(one, path) == (429, json.dumps({"detail": TOO_OFTEN}))
    assert call(one, "/gradio_api/run/predict")[0] == 200
    assert call(one, path, host="5.6.7.8")[0] == 200


def test_an_address_has_a_number_of_bytes_to_upload():
    one = gate(upload_megabytes=10e-6)
    assert [call(one, "/gradio_api/upload")[0] for _ in range(2)] == [200, 200]
    code, body = call(one, "/gradio_api/upload")
    assert code == 429 and json.loads(body) == {"detail": TOO_MUCH}
    assert call(one, "/gradio_api/component_server")[0] == 429
    assert call(one, "/gradio_api/queue/join")[0] == 200


def test_more_uploads_at_once_wait_for_their_turn():
    one = gate(upload_seconds=0.5)

    async def at_once():
        sent = [answered(one, "/gradio_api/upload", delay=delay) for delay in [0.1] * UPLOADS_AT_ONCE + [0.0] * 4]
        answers = asyncio.gather(*sent)
        await asyncio.sleep(0.05)
        assert one.open_uploads["1.2.3.4"] == len(sent) and one.slots["1.2.3.4"].locked()
        return await answers

    assert asyncio.run(at_once()) == [(200, "5")] * (UPLOADS_AT_ONCE + 4)
    one.forget(0.0)
    assert not one.open_uploads and not one.slots


def test_an_upload_that_gets_no_turn_is_refused():
    one = gate(upload_seconds=0.05)

    async def without_a_slot():
        for _ in range(UPLOADS_AT_ONCE):
            await one.slots["1.2.3.4"].acquire()
        return await answered(one, "/gradio_api/upload"), await answered(one, "/gradio_api/upload", host="5.6.7.8")

    assert asyncio.run(without_a_slot()) == ((429, json.dumps({"detail": TOO_MUCH})), (200, "5"))


def test_an_upload_says_how_long_it_is():
    assert call(gate(), "/gradio_api/upload", headers={"content-length": ""})[0] == 411


def test_a_slow_upload_is_ended():
    one = gate(upload_seconds=0.05)
    code, body = call(one, "/gradio_api/upload", delay=5)
    assert code == 408 and json.loads(body) == {"detail": TOO_SLOW}
    assert not any(one.open_uploads.values())


def test_what_is_old_is_forgotten():
    one = gate(requests_per_minute=1)
    call(one, "/gradio_api/upload")
    call(one, "/gradio_api/queue/join", host="5.6.7.8")
    one.forget(float("inf"))
    assert not one.requests and not one.uploads and not one.jobs
    assert call(one, "/gradio_api/upload")[0] == 200


@pytest.mark.parametrize(
    "options, header, address",
    [
        ({}, "9.9.9.9", "1.2.3.4"),  # anybody can write the header, so it does not count
        ({"forwarded_header": "X-Forwarded-For"}, "9.9.9.9", "9.9.9.9"),
        ({"forwarded_header": "X-Forwarded-For"}, "6.6.6.6, 9.9.9.9", "9.9.9.9"),
        ({"forwarded_header": "X-Forwarded-For", "proxies": 2}, "9.9.9.9, 7.7.7.7", "9.9.9.9"),
        ({"forwarded_header": "X-Forwarded-For", "proxies": 2}, "6.6.6.6, 9.9.9.9, 7.7.7.7", "9.9.9.9"),
        ({"forwarded_header": "X-Forwarded-For"}, "", "1.2.3.4"),
    ],
)
def test_the_address_of_a_visitor(options, header, address):
    assert address_of({"x-forwarded-for": header}, "1.2.3.4", SpaceOptions(**options)) == address
