"""The conversations of the tabs "Ask" and "Chat": what they remember, and how a new one begins during an answer."""

import asyncio
import json
import threading
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image
from starlette.requests import Request


gr = pytest.importorskip("gradio")

from showo_hf.app import build_demo  # noqa: E402
from showo_hf.app.ask_tab import AskTab  # noqa: E402
from showo_hf.app.chat_tab import ChatTab  # noqa: E402
from showo_hf.app.create_tab import CreateTab  # noqa: E402
from showo_hf.app.edit_tab import EditTab  # noqa: E402
from showo_hf.app.engine import CAPTION  # noqa: E402
from showo_hf.app.page_parts import EDITOR_SIDE, Shared, Talks  # noqa: E402
from showo_hf.app.uploads import UNREADABLE  # noqa: E402


REQUEST = gr.Request(Request({"type": "http", "headers": [], "client": ("1.2.3.4", 5)}), session_hash="talk")


@pytest.fixture
def tabs(space):
    """The two tabs."""
    with gr.Blocks():
        shared = Shared(space, gr.State([]), gr.Gallery())
        ask, chat = AskTab(space, shared), ChatTab(space, shared)
        ask.build()
        chat.build()
    return ask, chat


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (96, 96), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


async def all_of(updates):
    return [update async for update in updates]


async def no_jobs(space):
    """Wait for the end of all jobs: an answer that is closed early does not."""
    deadline = time.monotonic() + 60
    while space.line.tickets() and time.monotonic() < deadline:
        await asyncio.sleep(0.02)


def test_a_conversation_remembers_its_questions(tabs, picture):
    tab, _ = tabs
    talks = Talks()
    for number in (1, 2):
        updates = asyncio.run(all_of(tab.reply(REQUEST, picture, "what is this?", talks)))
        shown = [update[tab.chat] for update in updates if tab.chat in update][-1]
        assert shown == talks.now.shown and len(shown) == 2 * number
        assert len(talks.now.messages) == 2 * number
        assert all(update[tab.talks] is talks for update in updates if tab.talks in update)


def test_two_answers_at_once_follow_each_other(tabs, picture):
    """As after "Ask" and then "Caption": both stay, in what is shown and in what the model remembers."""
    tab, _ = tabs
    talks = Talks()

    async def at_once():
        return await asyncio.gather(
            all_of(tab.reply(REQUEST, picture, "where is the apple?", talks)),
            all_of(tab.describe(REQUEST, picture, talks)),
        )

    _, described = asyncio.run(asyncio.wait_for(at_once(), 60))
    assert [one["content"] for one in talks.now.shown if one["role"] == "user"] == ["where is the apple?", CAPTION]
    assert [one["role"] for one in talks.now.shown] == ["user", "assistant"] * 2
    assert len(talks.now.messages) == 4
    assert [update[tab.chat] for update in described if tab.chat in update][0][:2] == talks.now.shown[:2]


@pytest.mark.parametrize("end", ["close", "cancel", "refusal"])
def test_an_answer_that_ends_early_lets_the_next_one_begin(tabs, picture, space, end):
    tab, _ = tabs
    talks = Talks()

    async def ended():
        first = tab.reply(REQUEST, picture, " " if end == "refusal" else "what is this?", talks)
        if end == "close":  # as Gradio does when the client is gone
            await anext(first)
            await anext(first)
            await first.aclose()
        else:
            task = asyncio.create_task(all_of(first))
            while end == "cancel" and not talks.now.turn.locked():
                await asyncio.sleep(0)
            if end == "cancel":
                task.cancel()
            await asyncio.wait([task])
        assert not talks.now.turn.locked()
        await all_of(tab.describe(REQUEST, picture, talks))
        await no_jobs(space)

    asyncio.run(asyncio.wait_for(ended(), 60))
    assert talks.now.shown[-1]["role"] == "assistant" and len(talks.now.messages) == 2


@pytest.mark.parametrize("button", ["stop", "new conversation"])
def test_an_answer_that_waits_for_another_ends_with_it(tabs, picture, space, button):
    tab, _ = tabs
    talks = Talks()

    async def ended():
        first = tab.reply(REQUEST, picture, "what is this?", talks)
        await anext(first)
        await anext(first)
        second = tab.describe(REQUEST, picture, talks)
        await anext(second)
        waiting = asyncio.create_task(all_of(second))
        await asyncio.sleep(0.05)
        old = talks.now
        await (tab.stopped(REQUEST, talks) if button == "stop" else tab.begin(talks))
        await all_of(first)
        await no_jobs(space)
        return old, await waiting

    old, updates = asyncio.run(asyncio.wait_for(ended(), 60))
    assert updates == [] and not old.turn.locked()
    assert [one["content"] for one in old.shown if one["role"] == "user"] == ["what is this?"]


def test_events_read_few_uploads_at_once(tabs, picture, space):
    ask, _ = tabs
    with gr.Blocks():
        edit, create = EditTab(space, ask.shared), CreateTab(space, ask.shared)
        edit.build()
        create.build()
    free = threading.Event()

    async def main():
        for _ in range(2):
            space.line.readers.submit(free.wait, 10)
        works = (ask.uploaded(picture), edit.uploaded({"background": picture}), create.restored(picture))
        tasks = [asyncio.create_task(work) for work in works]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in tasks)
        free.set()
        return await asyncio.gather(*tasks)

    asked, edited, restored = asyncio.run(asyncio.wait_for(main(), 20))
    assert "Ready." in asked[ask.status] and "Ready." in edited[edit.status]
    assert edited[edit.editor]["background"].size == (EDITOR_SIDE, EDITOR_SIDE)
    assert "holds no settings" in restored[create.status]


def test_an_image_that_is_gone_is_refused_with_one_sentence(space, tmp_path):
    takes = [one.fn for one in build_demo(space).fns.values() if getattr(one.fn, "__name__", "") == "take"]
    said = ["".join(map(str, asyncio.run(take(str(tmp_path / "gone.png"))).values())) for take in takes]
    assert sum(UNREADABLE in one for one in said) == len(takes) / 2, "those that open the editor"
    assert takes and all("no image yet" in str(asyncio.run(take(None))) for take in takes)


def answers(tabs, picture, talks):
    """An answer of each kind, and its tab."""
    ask, chat = tabs
    yield ask, ask.reply(REQUEST, picture, "what is this?", talks)
    yield ask, ask.describe(REQUEST, picture, talks)
    yield chat, chat.say(REQUEST, {"text": "what is this?", "files": [picture]}, talks, [])


@pytest.mark.parametrize("index", range(3))
def test_a_new_conversation_during_an_answer_stays_new(tabs, picture, space, index):
    talks = Talks()
    tab, updates = list(answers(tabs, picture, talks))[index]

    async def begin_anew():
        await anext(updates)
        asked = await anext(updates)
        assert len(asked[tab.chat]) == 1 == len(talks.now.shown)
        update = await tab.begin(talks)
        assert update[tab.chat] == []
        late = await all_of(updates)
        await no_jobs(space)
        return late

    assert asyncio.run(begin_anew()) == []
    assert talks == Talks() and not space.line.tickets()


def test_an_answer_after_a_new_conversation_began_is_its_first(tabs, picture):
    """Also if the page asked before it had heard of the new conversation."""
    tab, _ = tabs
    talks = Talks()

    async def ask_at_once():
        await tab.begin_with_image(talks)
        return await all_of(tab.reply(REQUEST, picture, "what is this?", talks))

    assert len([update for update in asyncio.run(ask_at_once()) if tab.chat in update]) > 1
    assert len(talks.now.shown) == len(talks.now.messages) == 2


def test_another_image_leaves_no_status_of_an_answer_that_it_ended(tabs, picture):
    tab, _ = tabs

    async def statuses():
        talks = Talks()
        yield (await tab.begin_with_image(talks))[tab.status]  # it may say why the image before was refused
        answer = tab.reply(REQUEST, picture, "what is this?", talks)
        await anext(answer)
        await anext(answer)
        await answer.aclose()  # as Gradio does
        yield (await tab.begin_with_image(talks))[tab.status]
        await all_of(tab.reply(REQUEST, picture, "what is this?", talks))
        yield (await tab.begin_with_image(talks))[tab.status]

    before, during, after = asyncio.run(all_of(statuses()))
    assert before == after == gr.skip() and "Ready." in during


def test_the_browser_drops_what_an_ended_conversation_sends(space):
    config = build_demo(space).get_config_file()
    ids = {one["id"] for one in config["components"] if one["props"].get("value") == "New conversation"}
    ids |= {one["id"] for one in config["components"] if one["props"].get("elem_id") == "showo-ask-image"}
    assert len(ids) == 3
    names = {one["id"]: one["api_name"] for one in config["dependencies"]}
    cancelled = []
    for target in ids:
        events = [
            one
            for one in config["dependencies"]
            if any(one_id == target and name in ("click", "change") for one_id, name in one["targets"])
        ]
        # The browser goes through them in this order.
        (cancels,) = [position for position, one in enumerate(events) if one["cancels"]]
        (clears,) = [position for position, one in enumerate(events) if one["outputs"]]
        assert cancels < clears
        cancelled.append(sorted(names[one] for one in events[cancels]["cancels"]))
    assert sorted(cancelled) == [["describe", "reply"], ["describe", "reply"], ["say"]]


def test_no_event_takes_back_what_a_chatbot_shows(space):
    config = build_demo(space).get_config_file()
    chatbots = {one["id"] for one in config["components"] if one["type"] == "chatbot"}
    assert len(chatbots) == 2
    assert not [one for one in config["dependencies"] if chatbots & set(one["inputs"])]


def test_the_server_keeps_a_conversation_for_its_session_alone(space, url, picture):
    """The events of the page, as a browser sends them."""
    events = {one["api_name"]: one for one in httpx.get(f"{url}config", timeout=30).json()["dependencies"]}
    (uploaded,) = httpx.post(f"{url}gradio_api/upload", files={"files": Path(picture).read_bytes()}, timeout=30).json()
    file = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}

    def questions(name: str, session: str, *values) -> int:
        """How many questions the chatbot shows after an event. Gradio sends the list, and then what changes in it."""
        data = {"data": [*values, None], "fn_index": events[name]["id"], "session_hash": session}
        httpx.post(f"{url}gradio_api/queue/join", json=data, timeout=30).raise_for_status()
        found = 0
        with httpx.stream("GET", f"{url}gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data: ") or "{}")
                found = max(found, json.dumps(message).count('"role": "user"'))
                if message.get("msg") == "process_completed":
                    assert message["success"]
                    return found
        raise AssertionError("the event did not end")

    assert [questions("describe", session, file) for session in ("one", "other", "one")] == [1, 1, 2]
    assert questions("begin_with_image", "one") == 0
    assert [questions("describe", session, file) for session in ("one", "other")] == [1, 2]
