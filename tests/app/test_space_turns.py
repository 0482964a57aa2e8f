"""Turns: one computes at a time, whoever used less goes first, and every job ends whatever happens to the others."""

import asyncio
import random
import threading
import time
from types import SimpleNamespace

import pytest
import tiny


pytest.importorskip("gradio")

from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module  # noqa: E402

from showo_hf.app import SpaceOptions, build_space, turns, zero_gpu  # noqa: E402
from showo_hf.app.engine import Answered, Drawn, Engine, Step, collect  # noqa: E402
from showo_hf.app.line import Job, Line, OutOfTime, Stopped, Visitor, Waiting, Working  # noqa: E402
from showo_hf.app.settings import DrawSettings  # noqa: E402
from showo_hf.app.turns import Turn, Turns  # noqa: E402


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the turns see. A test adds to them."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Work:
    """Threads that compute in steps, with a record of who computed when."""

    def __init__(self, clock, lead=0.0):
        self.clock, self.turns, self.computing, self.steps, self.threads = clock, Turns(lead), {}, [], []
        self.jobs = []

    def job(self, name, steps, seconds=1.0, kind="images", fails_at=None, during=lambda step: None):
        """Start a job of an address, whose steps take so long."""
        stop, number = threading.Event(), len(self.jobs)
        turn = Turn(kind, name, number, stop.is_set)
        job = Job(lambda event: None, 1e9, stop, turn, self.turns)
        self.jobs.append(job)

        def compute():
            try:
                self.turns.enlist(turn)
                self.turns.take(turn)
                for step in range(0 if stop.is_set() else steps):
                    assert self.turns.holds(turn)
                    assert self.computing.setdefault(kind, number) == number
                    during(step)
                    self.steps.append(name)
                    self.clock.now += seconds
                    assert self.computing.pop(kind) == number
                    if step == fails_at:
                        return
                    job.end_step()
            except Stopped:
                pass
            except BaseException as error:
                self.steps.append(error)
            finally:
                self.turns.give_up(turn)

        self.threads.append(threading.Thread(target=compute, daemon=True))
        self.threads[-1].start()
        return job

    def at_step(self, number, *names, **options):
        """What a job does `during` its steps: at one of them, jobs of these addresses come, and wait."""

        def jobs_come(step):
            if step == number:
                for name in names:
                    self.job(name, **options)
                self.until_waiting(len(names))

        return jobs_come

    def finish(self):
        for thread in self.threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in self.threads), "a job did not end"
        assert [one for one in self.steps if isinstance(one, BaseException)] == []
        assert not self.turns.holders and not self.turns.waiting

    def until_waiting(self, count):
        """Wait until so many jobs wait for a turn."""
        deadline = time.monotonic() + 20
        while len(self.turns.waiting) < count and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(self.turns.waiting) == count


def test_short_jobs_wait_for_one_step_of_a_long_one(clock):
    work = Work(clock)
    work.job("hostile", steps=100, seconds=1.0, during=work.at_step(10, *"abc", steps=3))
    work.finish()
    assert work.steps[:20] == ["hostile"] * 11 + list("abccabbac")  # the least time, then the oldest
    assert work.steps[20:] == ["hostile"] * 89


def test_jobs_shorter_than_the_lead_run_in_one_piece(clock):
    work = Work(clock, lead=1.0)
    work.job("a", steps=12, seconds=0.25, during=work.at_step(0, *"bc", steps=4, seconds=0.25))
    work.finish()
    assert "".join(work.steps) == "aaaaa" + "bbbb" + "cccc" + "aaaaaaa", "the long one gives way after its lead"


def test_addresses_that_go_on_share_the_time(clock):
    """A hostile address computes no longer than an honest one, however long its steps are."""
    work = Work(clock)
    work.job("hostile", steps=100, seconds=1.0, during=work.at_step(0, "honest", steps=300, seconds=0.1))
    work.finish()
    for count in range(2, 330):
        used = {name: work.steps[:count].count(name) * s for name, s in (("hostile", 1.0), ("honest", 0.1))}
        if used["honest"] < 29.95:  # until it is done
            assert used["hostile"] <= used["honest"] + 1.001


def test_the_times_of_a_bounded_number_of_addresses_are_kept(clock, monkeypatch):
    """The line is never empty: one job waits for its turn all the time."""
    monkeypatch.setattr(turns, "MAX_ADDRESSES", 8)
    found = Turns()
    first = Turn("images", "greedy", 0)
    found.enlist(first)
    found.enlist(Turn("images", "waiting", 1))
    found.used["waiting"] = 1e9
    clock.now += 500.0
    found.give_up(first)  # `waiting` has the turn now
    for number in range(2, 1000):
        passing = Turn("words", f"address {number}", number)
        found.enlist(passing)
        clock.now += 1.0 + number % 3
        found.give_up(passing)
        assert len(found.used) <= 8
    assert found.used["waiting"] == 1e9 and found.used["greedy"] == 500.0


def test_jobs_of_one_address_run_one_after_the_other(clock):
    work = Work(clock)
    work.job("a", steps=5, during=work.at_step(0, "a", steps=3, seconds=2.0))
    work.finish()
    assert clock.now == 5 * 1.0 + 3 * 2.0 and work.turns.used == {"a": 11.0}
    assert [job.turn.seconds for job in work.jobs] == [5.0, 6.0]


def test_the_time_of_a_job_is_that_of_its_own_turns(clock):
    work = Work(clock)
    work.job("short", steps=4, seconds=1.0, during=work.at_step(0, "long", steps=4, seconds=10.0))
    work.finish()
    short, long = work.jobs
    assert (short.turn.seconds, long.turn.seconds) == (4.0, 40.0)
    clock.now += 100
    assert (short.turn.seconds, long.turn.seconds) == (4.0, 40.0)


def test_a_stopped_job_that_waits_ends_without_computing(clock):
    work = Work(clock)

    def end_now(number):
        work.jobs[number].stop()
        work.threads[number].join(20)
        assert not work.threads[number].is_alive()

    def stop_one_that_never_began(step):
        if step == 0:
            work.job("a", steps=3)
            work.job("b", steps=3, during=stop_one_between_two_steps)
            work.until_waiting(2)
            end_now(1)

    def stop_one_between_two_steps(step):
        if step == 2:  # the first job has waited since its third step
            end_now(0)

    work.job("first", steps=9, during=stop_one_that_never_began)
    work.finish()
    assert work.steps == ["first", "b", "b", "first", "first", "b"]


@pytest.mark.parametrize("seed", range(60))
def test_every_job_ends_and_one_computes_at_a_time(clock, seed):
    """With many jobs of two kinds and few addresses, which are stopped or fail at any time."""
    draw = random.Random(seed)
    work = Work(clock)
    for _ in range(draw.randint(2, 12)):
        address, kind = draw.choice("abcd"), draw.choice(("images", "words"))
        fails_at, pause = draw.choice((None, draw.randint(0, 15))), draw.choice((0.0, 0.0, 0.0005))
        work.job(address, draw.randint(0, 15), draw.random(), kind, fails_at, lambda step, s=pause: time.sleep(s))
        if draw.random() < 0.4:
            draw.choice(work.jobs).stop()
    for job in draw.sample(work.jobs, draw.randint(0, len(work.jobs))):
        time.sleep(draw.choice((0.0, 0.0005)))
        job.stop()
    work.finish()


# In the line


async def collect_events(line, address, work, kind="images"):
    return [event async for event in line.run(Visitor(f"tab of {address}", address), kind, work)]


def steps_of(name, count, seconds, record):
    """Work of so many steps."""

    def work(job):
        for _ in range(count):
            time.sleep(seconds)
            record.append(name)
            job.end_step()
        job.emit(f"{name} is done")

    return work


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def test_a_flood_of_long_jobs_leaves_room_for_others():
    record = []

    async def main():
        line = Line(SpaceOptions(jobs_per_session=9, jobs_per_address=9))
        line.turns.lead = 0.0
        floods = [
            asyncio.create_task(collect_events(line, name, steps_of(name, 20, 0.01, record)))
            for name in ("hostile 1", "hostile 2", "hostile 3")
            for _ in range(2)
        ]
        await until(lambda: len(record) > 3)
        assert sorted(ticket.visitor.address for ticket in line.running["images"]) == [
            "hostile 1",
            "hostile 2",
            "hostile 3",
        ]
        for _ in range(3):
            before = len(record)
            assert (await collect_events(line, "honest", steps_of("honest", 3, 0.001, record)))[-1] == "honest is done"
            first, *_, last = (i for i, name in enumerate(record) if name == "honest" and i >= before)
            assert last - first + 1 <= 3 + 3, "it waited for more than a step per own step"
        for flood in floods:
            assert (await flood)[-1].endswith("is done")
        assert line.tickets() == [] and not line.turns.used

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("places", [1, 2])
def test_a_long_job_does_not_compute_between_two_that_are_before_it(places):
    """Neither if they wait to be called, as the long job leaves one place."""
    record = []

    async def main():
        line = Line(SpaceOptions(jobs_at_once=1 + places))
        line.turns.lead = 0.0
        long = asyncio.create_task(collect_events(line, "long", steps_of("long", 12, 0.02, record)))
        await until(lambda: record)
        line.turns.used["long"] += 100.0
        await asyncio.gather(*(collect_events(line, name, steps_of(name, 1, 0.02, record)) for name in "abcd"))
        await long

    asyncio.run(asyncio.wait_for(main(), 20))
    assert "".join(name for name in record if name != "long") == "abcd"
    first, last = record.index("a"), record.index("d")
    assert last - first == 3, record


def test_addresses_with_long_jobs_in_all_places_do_not_keep_others_out(monkeypatch):
    monkeypatch.setattr("showo_hf.app.line.POLL", 0.02)
    record = []

    async def main():
        line = Line(SpaceOptions(jobs_at_once=2))
        line.turns.lead = 0.05
        long = [asyncio.create_task(collect_events(line, name, steps_of(name, 60, 0.01, record))) for name in "xy"]
        await until(lambda: {"x", "y"} <= set(record))
        for name in "abc":
            assert (await collect_events(line, name, steps_of(name, 2, 0.01, record)))[-1] == f"{name} is done"
            assert len(line.running["images"]) == 2, "the long ones are not done yet"
        await asyncio.gather(*long)

    asyncio.run(asyncio.wait_for(main(), 20))


def test_who_waits_between_two_steps_is_told_the_place(monkeypatch):
    monkeypatch.setattr("showo_hf.app.line.POLL", 0.02)
    begun, told = threading.Event(), threading.Event()

    async def main():
        line = Line(SpaceOptions())
        line.turns.lead = 0.0
        line.turns.used["long"] = 100.0

        def first_step(job):
            begun.set()
            while not line.turns.waiting:
                time.sleep(0.005)
            job.end_step()
            job.emit("done")

        async def read():
            places = []
            async for event in line.run(Visitor("tab", "long"), "images", first_step):
                if begun.is_set() and event != Working():
                    places.append(event)
                    told.set()
            return places

        long = asyncio.create_task(read())
        await until(begun.is_set)
        await collect_events(line, "short", lambda job: told.wait(10))
        places = await long
        assert places[0] == Waiting(1, 1) and places[-1] == "done"

    asyncio.run(asyncio.wait_for(main(), 20))


@pytest.mark.parametrize("how", ["leaves", "stops"])
def test_a_visitor_who_waits_between_two_steps_ends_at_once(how):
    record, free = [], threading.Event()

    def blocking(job):
        free.wait(10)
        job.emit("done")

    async def main():
        line = Line(SpaceOptions())
        line.turns.lead = 0.0
        paused = line.run(Visitor("tab", "paused"), "images", first_step_then(record))
        assert await anext(paused) == "step"
        other = asyncio.create_task(collect_events(line, "other", blocking))
        await until(lambda: line.turns.holders["images"].address == "other")
        if how == "leaves":
            await paused.aclose()
        else:
            assert line.stop("tab") == 1
            assert [event async for event in paused if event == "step"] == []
        await until(lambda: len(line.tickets()) == 1)  # while the other one computes
        free.set()
        assert await other == ["done"]

    def first_step_then(record):
        def work(job):
            while True:
                job.emit("step") if not record else None
                record.append(1)
                time.sleep(0.02)
                job.end_step()

        return work

    asyncio.run(asyncio.wait_for(main(), 20))


def test_the_time_limit_does_not_count_the_time_of_others(clock):
    def steps(count):
        def work(job):
            for _ in range(count):
                clock.now += 1
                job.end_step()
            job.emit("done")

        return work

    async def main():
        line = Line(SpaceOptions(job_seconds=11))
        line.turns.lead = 0.0
        jobs = [collect_events(line, name, steps(10)) for name in "abc"]
        assert await asyncio.gather(*jobs) == [["done"]] * 3
        assert clock.now == 30
        with pytest.raises(OutOfTime):
            await collect_events(line, "d", steps(12))

    asyncio.run(asyncio.wait_for(main(), 20))


# With the pipelines


@pytest.fixture(scope="module")
def pipe():
    return tiny.pipeline(tiny.processor())


def test_images_and_answers_are_the_same_step_by_step(pipe):
    """Two draws and two chats that take turns give what each gives alone."""
    engine = Engine(pipe)
    settings = [DrawSettings("a cat", steps=8, seed=seed) for seed in (1, 2)]
    message = {"role": "user", "content": [{"type": "text", "text": "a cat"}]}
    works = [lambda job, one=one: engine.draw(job, one) for one in settings]
    works += [lambda job, seed=seed: engine.answer(job, [], message, 1, seed, 8) for seed in (1, 2)]
    alone = [collect(work) for work in works]

    async def main():
        line = Line(SpaceOptions())
        line.turns.lead = 0.0
        holders = []
        line.turns.hand_over = lambda kind, usual=line.turns.hand_over: (
            usual(kind),
            holders.append(getattr(line.turns.holders.get(kind), "number", None)),
        )
        kinds = ("images", "images", "words", "words")
        jobs = [
            collect_events(line, str(i), work, kind) for i, (work, kind) in enumerate(zip(works, kinds, strict=True))
        ]
        return await asyncio.gather(*jobs), holders

    found, holders = asyncio.run(asyncio.wait_for(main(), 60))
    assert len(holders) > 12  # they did take turns
    for mine, expected in zip(found, alone, strict=True):
        mine = [event for event in mine if not isinstance(event, Waiting | Working)]
        assert [type(event) for event in mine] == [type(event) for event in expected]
        for one, other in zip(mine, expected, strict=True):
            if isinstance(one, Step):
                assert one.image.tobytes() == other.image.tobytes()
            elif isinstance(one, Drawn):
                assert [image.tobytes() for image in one.images] == [image.tobytes() for image in other.images]
            elif isinstance(one, Answered):
                assert str(one.messages) == str(other.messages)


def test_an_offloaded_model_has_one_job_of_a_kind(pipe, monkeypatch):
    """Its calls keep each other out: one that waited for its turn within a call would block the one that computes."""
    options = SpaceOptions(jobs_at_once=3)
    assert build_space(pipe, options, warm_up=False).line.options == options
    settings = DrawSettings("a cat", steps=4)
    add_hook_to_module(pipe.model, ModelHook())
    try:
        space = build_space(pipe, options, warm_up=False)
        assert space.line.options.jobs_at_once == 1
        space.line.turns.lead = 0.0
        message = {"role": "user", "content": [{"type": "text", "text": "a cat"}]}
        works = {
            "images": lambda job: space.engine.draw(job, settings),
            "words": lambda job: space.engine.answer(job, [], message, 0, 1, 8),
        }

        async def main():
            jobs = [collect_events(space.line, name + kind, works[kind], kind) for kind in works for name in "abc"]
            return await asyncio.gather(*jobs)

        for events in asyncio.run(asyncio.wait_for(main(), 60)):
            assert isinstance(events[-1], Drawn | Answered) and not events[-1].stopped
    finally:
        remove_hook_from_module(pipe.model)


def test_lent_gpus_have_one_job_of_a_kind(pipe, monkeypatch):
    monkeypatch.setattr(zero_gpu, "LENDS", True)
    assert build_space(pipe, SpaceOptions(), warm_up=False).line.options.jobs_at_once == 1
