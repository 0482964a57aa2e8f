"""The line: turns, limits, stopping, leaving, failures."""

import asyncio
import threading
import time

import pytest
import torch


pytest.importorskip("gradio")

from showo_hf.app.line import FAILED, TOO_LARGE, Line, OutOfTime, Visitor, Waiting, Working  # noqa: E402
from showo_hf.app.settings import Refusal, SpaceOptions  # noqa: E402


def visitor(name: str, address: str | None = None) -> Visitor:
    return Visitor(name, address or f"address of {name}")


async def collect(line, who, work, kind="images", prepare=tuple):
    return [event async for event in line.run(who, kind, work, prepare) if event != Working()]


def test_events_come_in_order_and_the_place_is_free_again():
    def work(job, greeting):
        for word in (greeting, "world"):
            job.emit(word)

    async def main():
        line = Line(SpaceOptions())
        assert await collect(line, visitor("a"), work, prepare=lambda: ("hello",)) == ["hello", "world"]
        assert line.tickets() == []

    asyncio.run(main())


@pytest.mark.parametrize("together", [True, False])
def test_one_job_of_a_kind_at_a_time_and_two_kinds_at_once(together):
    running, most = [], []

    def work(job, kind):
        running.append(kind)
        most.append(sorted(running))
        time.sleep(0.05)
        running.remove(kind)

    async def main():
        line = Line(SpaceOptions(), kinds_together=together)
        jobs = [("images", f"a{i}") for i in range(3)] + [("words", f"b{i}") for i in range(3)]
        await asyncio.gather(
            *(collect(line, visitor(name), work, kind, prepare=lambda kind=kind: (kind,)) for kind, name in jobs)
        )

    asyncio.run(main())
    assert (["images", "words"] in most) == together
    assert all(kinds in (["images"], ["words"], ["images", "words"]) for kinds in most)


def test_visitors_take_turns_whoever_sends_more():
    order = []
    free = threading.Event()

    async def main():
        line = Line(SpaceOptions(jobs_per_session=10, jobs_per_address=10))

        def job_of(name):
            def work(job):
                free.wait(5)
                order.append(name)

            return collect(line, visitor(name), work)

        tasks = [asyncio.create_task(job_of("greedy")) for _ in range(4)]
        await asyncio.sleep(0.05)
        tasks.append(asyncio.create_task(job_of("modest")))
        await asyncio.sleep(0.05)
        free.set()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert order == ["greedy", "modest", "greedy", "greedy", "greedy"]


def test_an_address_whose_jobs_took_long_waits_for_the_others():
    order = []

    async def main():
        line = Line(SpaceOptions(jobs_per_session=10, jobs_per_address=10))
        line.turns.lead = 0.0

        async def ask(name, steps, count):
            def work(job):
                for _ in range(steps):
                    time.sleep(0.03)
                    job.end_step()
                order.append(name)

            for _ in range(count):
                await collect(line, visitor(name), work)

        async def ask_after(delay, *job):
            await asyncio.sleep(delay)
            await ask(*job)

        await asyncio.gather(ask("long", 20, 2), ask_after(0.05, "a", 1, 3), ask_after(0.05, "b", 1, 3))
        assert line.tickets() == [] and not line.turns.used

    asyncio.run(main())
    assert sorted(order[:6]) == list("aaabbb") and order[6:] == ["long", "long"]


@pytest.mark.parametrize("jobs_at_once", [1, 2, 3])  # called or not, who does not compute waits
def test_the_place_in_the_line_is_told(jobs_at_once):
    free = threading.Event()

    async def main():
        line = Line(SpaceOptions(jobs_at_once=jobs_at_once))
        first = asyncio.create_task(collect(line, visitor("a"), lambda job: free.wait(5)))
        await asyncio.sleep(0.05)
        second = line.run(visitor("b"), "images", lambda job: job.emit("done"))
        third = line.run(visitor("c"), "images", lambda job: job.emit("done"))
        places = await asyncio.gather(anext(second), anext(third))
        assert sorted(places, key=lambda one: one.place) == [Waiting(1, 2), Waiting(2, 2)]
        free.set()
        assert [event async for event in second][-1] == "done"
        assert [event async for event in third][-1] == "done"
        await first

    asyncio.run(main())


def test_a_full_line_has_room_for_those_who_have_fewer_jobs_in_it():
    free = threading.Event()

    async def ask(line, name):
        try:
            return await collect(line, visitor(name), lambda job: free.wait(10) and job.emit("done"))
        except Refusal as refusal:
            return str(refusal)

    async def main():
        line = Line(SpaceOptions(max_waiting=4, jobs_per_session=99, jobs_per_address=99, jobs_at_once=1))
        first = asyncio.create_task(ask(line, "a"))
        await asyncio.sleep(0.1)
        flood = [asyncio.create_task(ask(line, "hostile")) for _ in range(4)]
        await asyncio.sleep(0.1)
        assert "The line is full: 4 requests are waiting" in await ask(line, "hostile")
        honest = [asyncio.create_task(ask(line, name)) for name in ("b", "c", "d")]
        await asyncio.sleep(0.1)
        assert [task.done() for task in flood] == [False, True, True, True], "its newest jobs lost their places"
        assert "others had fewer requests" in flood[-1].result()
        assert "The line is full" in await ask(line, "e"), "now each address has one job"
        free.set()
        for task in (first, *honest, flood[0]):
            assert (await task)[-1] == "done"
        assert line.tickets() == []

    asyncio.run(main())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"jobs_per_session": 2}, "already have requests"),
        ({"jobs_per_session": 99, "jobs_per_address": 2}, "already have requests"),
        (
            {"max_waiting": 1, "jobs_per_session": 99, "jobs_per_address": 99},
            "The line is full: 1 requests are waiting",
        ),
        ({"jobs_per_minute": 2, "jobs_per_session": 99, "jobs_per_address": 99}, "more than 2 requests in a minute"),
    ],
)
def test_what_is_over_a_limit_is_refused_with_one_sentence(options, message):
    free = threading.Event()

    async def main():
        line = Line(SpaceOptions(**options))
        started = []
        for _ in range(2):
            started.append(asyncio.create_task(collect(line, visitor("a", "one"), lambda job: free.wait(5))))
            await asyncio.sleep(0.05)
        name = "a" if options.get("jobs_per_session") == 2 else "b"
        with pytest.raises(Refusal, match=message):
            await collect(line, visitor(name, "one"), lambda job: None)
        free.set()
        await asyncio.gather(*started)

    asyncio.run(main())


def test_a_refused_visitor_may_ask_again_and_others_at_once():
    async def main():
        line = Line(SpaceOptions(jobs_per_minute=1))
        await collect(line, visitor("a", "one"), lambda job: None)
        with pytest.raises(Refusal):
            await collect(line, visitor("a", "one"), lambda job: None)
        await collect(line, visitor("b", "two"), lambda job: None)

    asyncio.run(main())


def test_a_job_whose_visitor_leaves_ends_and_the_next_one_starts():
    steps = []

    def endless(job):
        while not job.stopping:
            steps.append(1)
            job.emit("step")
            time.sleep(0.01)

    async def main():
        line = Line(SpaceOptions())
        left = line.run(visitor("a"), "images", endless)
        assert await anext(left) == "step"
        await left.aclose()  # what Gradio does for a visitor who is gone
        assert await asyncio.wait_for(collect(line, visitor("b"), lambda job: job.emit("next")), 2) == ["next"]
        done = len(steps)
        await asyncio.sleep(0.05)
        assert len(steps) == done

    asyncio.run(main())


@pytest.mark.parametrize("slow", ["upload", "step"])
def test_a_visitor_who_leaves_during_a_long_step_is_noticed(monkeypatch, slow):
    monkeypatch.setattr("showo_hf.app.line.POLL", 0.02)
    free, read, ran = threading.Event(), [], []

    def prepare():
        read.append(slow == "step" or free.wait(2))
        return ()

    def work(job):
        free.wait(2)
        job.end_step()
        ran.append(1)

    async def main():
        line = Line(SpaceOptions())
        left = line.run(visitor("a"), "images", work, prepare)
        assert await anext(left) == Working()
        while slow == "step" and not read:
            assert await anext(left) == Working()
        await left.aclose()
        free.set()
        while line.tickets():
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), 20))
    assert not ran


@pytest.mark.parametrize("jobs_at_once", [1, 4])  # not called, and called
def test_a_waiting_job_whose_visitor_leaves_never_runs(jobs_at_once):
    free, ran = threading.Event(), []

    async def main():
        line = Line(SpaceOptions(jobs_at_once=jobs_at_once))
        first = asyncio.create_task(collect(line, visitor("a"), lambda job: free.wait(5)))
        await asyncio.sleep(0.05)
        waiting = line.run(visitor("b"), "images", lambda job: ran.append(1))
        assert isinstance(await anext(waiting), Waiting)
        await waiting.aclose()
        while len(line.tickets()) > 1:
            await asyncio.sleep(0.01)
        free.set()
        await first
        assert line.tickets() == []

    asyncio.run(asyncio.wait_for(main(), 20))
    assert not ran


def test_stop_ends_the_jobs_of_one_session_only():
    begun = threading.Event()

    def until_stopped(job):
        begun.set()
        while not job.stopping:
            time.sleep(0.01)
        job.emit("ended")

    async def main():
        line = Line(SpaceOptions())
        own = asyncio.create_task(collect(line, visitor("a"), until_stopped))
        waiting = asyncio.create_task(collect(line, visitor("a"), lambda job: job.emit("ran")))
        other = asyncio.create_task(collect(line, visitor("b"), lambda job: job.emit("ran")))
        while not begun.is_set() or len(line.tickets()) < 3:
            await asyncio.sleep(0.01)
        assert line.stop("c") == 0
        assert not own.done()
        assert line.stop("a") == 2
        assert await asyncio.wait_for(own, 2) == ["ended"]
        assert [event for event in await asyncio.wait_for(waiting, 2) if event == "ran"] == []
        assert "ran" in await asyncio.wait_for(other, 2)

    asyncio.run(main())


def test_stop_ends_a_job_whose_upload_is_being_read_or_waits_for_that():
    free, read, ran = threading.Event(), [], []

    def prepare():
        read.append(1)
        free.wait(5)
        return ()

    async def main():
        line = Line(SpaceOptions(jobs_per_session=3, jobs_per_address=3))
        tasks = [
            asyncio.create_task(collect(line, visitor("a"), lambda job: ran.append(1), prepare=prepare))
            for _ in range(3)
        ]
        while len(read) < 2:
            await asyncio.sleep(0.01)
        assert line.stop("a") == 3
        assert line.tickets() == []
        for task in tasks:
            assert await asyncio.wait_for(task, 2) == []
        assert not free.is_set()
        free.set()
        assert await collect(line, visitor("a"), lambda job: job.emit("next")) == ["next"]

    asyncio.run(main())
    assert len(read) == 2 and not ran


def test_a_job_ends_after_its_time():
    def endless(job):
        while True:
            time.sleep(0.01)
            job.end_step()

    async def main():
        line = Line(SpaceOptions(job_seconds=0.1))
        with pytest.raises(OutOfTime, match="took longer than 0.1 s"):
            await asyncio.wait_for(collect(line, visitor("a"), endless), 2)

    asyncio.run(main())


@pytest.mark.parametrize(
    "error, message",
    [
        (RuntimeError("the secret of /root"), FAILED),
        (torch.OutOfMemoryError("x"), TOO_LARGE),
        (MemoryError(), TOO_LARGE),
    ],
)
def test_a_failure_is_one_sentence_and_the_next_visitor_is_served(error, message, caplog):
    def broken(job):
        raise error

    async def main():
        line = Line(SpaceOptions())
        with pytest.raises(Refusal) as refusal:
            await collect(line, visitor("a"), broken)
        assert str(refusal.value) == message
        assert await collect(line, visitor("a"), lambda job: job.emit("served")) == ["served"]

    asyncio.run(main())
    assert type(error).__name__ in caplog.text and "broken" in caplog.text  # the log has the type and the place
    assert "secret" not in caplog.text  # and no values: they may hold a visitor's words


def test_uploads_are_read_outside_of_the_models_thread():
    names = {}

    def prepare():
        names["read"] = threading.current_thread().name
        return ()

    def work(job):
        names["work"] = threading.current_thread().name

    async def main():
        await collect(Line(SpaceOptions()), visitor("a"), work, prepare=prepare)

    asyncio.run(main())
    assert names["read"].startswith("showo-uploads") and names["work"].startswith("showo-images")
