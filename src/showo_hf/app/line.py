"""The line: who is next, how many jobs one visitor may have, and how a job ends."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from .settings import Refusal, SpaceOptions


logger = logging.getLogger(__name__)

FAILED = "That did not work. Please try again with other settings."
TOO_LARGE = "There is not enough memory for that. Please try a smaller size or fewer images."
POLL = 1.0  # seconds between two looks whether a waiting visitor is still there


@dataclass(frozen=True)
class Visitor:
    """Who asks: a browser tab (or a client's session), and a network address."""

    session: Hashable
    address: str


@dataclass(frozen=True)
class Waiting:
    """The place in the line, from 1, and the length of the line."""

    place: int
    length: int


class OutOfTime(Refusal):
    """A job took longer than a job may."""


@dataclass(eq=False)
class Job:
    """
    One piece of work, as the model's thread sees it.

    Args:
        emit: passes an event on to the visitor. Any thread may call it.
        seconds (`float`): the time that the job has, from when it starts.
        stop_requested: tells the job to stop; a `threading.Event`, or what has its `set` and `is_set`.
    """

    emit: Callable[[Any], Any]
    seconds: float
    stop_requested: Any = field(default_factory=threading.Event)
    started: float = 0.0

    @property
    def over_time(self) -> bool:
        return time.monotonic() - self.started > self.seconds

    @property
    def stopping(self) -> bool:
        """Whether the work should end at its next step."""
        return self.stop_requested.is_set() or self.over_time

    def check_time(self):
        """Raise [`OutOfTime`] if the job ended because of its time."""
        if self.over_time and not self.stop_requested.is_set():
            raise OutOfTime(f"That took longer than {self.seconds:g} s and was stopped. Please try fewer steps.")


class Ticket:
    """A place in the line."""

    def __init__(self, visitor: Visitor, kind: str, number: int):
        self.visitor, self.kind, self.number = visitor, kind, number
        self.called = asyncio.Event()
        self.job: Job | None = None
        self.began = 0.0


class Line:
    """
    Gives each kind of work one thread, and lets the visitors take turns.

    The first job of every address comes before the second job of any, and of the first ones that of the address whose jobs
    have taken the least time since the line was empty. So one who sends many or long jobs waits longer, not the others. All
    methods but the work itself run in the server's event loop.

    Args:
        options ([`SpaceOptions`]): the limits.
        kinds: the kinds of work that may run at the same time.
    """

    def __init__(self, options: SpaceOptions, kinds: tuple[str, ...] = ("images", "words")):
        self.options = options
        self.preparing: list[Ticket] = []  # their uploads are being read
        self.waiting: list[Ticket] = []
        self.running: dict[str, Ticket | None] = dict.fromkeys(kinds)
        self.started: dict[str, deque[float]] = defaultdict(deque)  # by address
        self.threads = {kind: ThreadPoolExecutor(1, thread_name_prefix=f"showo-{kind}") for kind in kinds}
        self.readers = ThreadPoolExecutor(2, thread_name_prefix="showo-uploads")
        self.used: dict[str, float] = defaultdict(float)  # by address: seconds of its jobs since the line was empty
        self.count = 0

    # Who is next

    def tickets(self) -> list[Ticket]:
        """All jobs that are not done."""
        return self.preparing + self.waiting + [ticket for ticket in self.running.values() if ticket is not None]

    def order(self, kind: str) -> list[Ticket]:
        """The waiting jobs of a kind in the order in which they will run."""
        turn: dict[str, int] = defaultdict(int)
        keys = {}
        for ticket in sorted((one for one in self.waiting if one.kind == kind), key=lambda one: one.number):
            address = ticket.visitor.address
            keys[ticket] = (turn[address], self.used.get(address, 0.0), ticket.number)
            turn[address] += 1
        return sorted(keys, key=keys.__getitem__)

    def join(self, visitor: Visitor, kind: str) -> Ticket:
        """
        Let a visitor in. The job takes its place in the line with [`enter`].

        Raises:
            Refusal: if the line is full, or the visitor has too many jobs or asked too often.
        """
        options, tickets = self.options, self.tickets()
        now = time.monotonic()
        recent = self.started[visitor.address]
        while recent and now - recent[0] > 60:
            recent.popleft()
        if len(recent) >= options.jobs_per_minute:
            raise Refusal(f"That was more than {options.jobs_per_minute} requests in a minute. Please wait a little.")
        of_session = sum(one.visitor.session == visitor.session for one in tickets)
        of_address = sum(one.visitor.address == visitor.address for one in tickets)
        if of_session >= options.jobs_per_session or of_address >= options.jobs_per_address:
            raise Refusal("You already have requests in the line. Please wait until one is done.")
        if (length := len(self.waiting) + len(self.preparing)) >= options.max_waiting:
            raise Refusal(f"The line is full: {length} requests are waiting. Please try again in a minute.")
        if len(self.started) > 10_000:  # addresses that have not asked for a minute
            for address in [one for one, times in self.started.items() if not times or now - times[-1] > 60]:
                del self.started[address]
        self.started[visitor.address].append(now)
        self.count += 1
        ticket = Ticket(visitor, kind, self.count)
        self.preparing.append(ticket)
        return ticket

    def enter(self, ticket: Ticket):
        """Take the place in the line."""
        self.preparing.remove(ticket)
        self.waiting.append(ticket)
        self.advance(ticket.kind)

    def advance(self, kind: str):
        """Call the next one if nobody is being served."""
        if self.running[kind] is None and (order := self.order(kind)):
            self.waiting.remove(order[0])
            self.running[kind] = order[0]
            order[0].began = time.monotonic()
            order[0].called.set()

    def leave(self, ticket: Ticket):
        """Give up a place: a job is done, or its visitor is gone."""
        for places in (self.preparing, self.waiting):
            if ticket in places:
                places.remove(ticket)
        if self.running[ticket.kind] is ticket:
            self.running[ticket.kind] = None
            self.used[ticket.visitor.address] += time.monotonic() - ticket.began
            self.advance(ticket.kind)
        if not self.tickets():
            self.used.clear()

    def stop(self, session: Hashable) -> int:
        """Stop the running jobs of a session within a step, and drop the waiting ones. Returns how many there were."""
        own = [ticket for ticket in self.tickets() if ticket.visitor.session == session]
        for ticket in own:
            if ticket.job is not None:
                ticket.job.stop_requested.set()
            if ticket in self.waiting:
                self.leave(ticket)
                ticket.called.set()
        return len(own)

    # Work

    async def run(
        self, visitor: Visitor, kind: str, work: Callable[..., Any], prepare: Callable[[], tuple] = tuple
    ) -> AsyncIterator[Any]:
        """
        Wait for a turn, run the work in the kind's thread, and give its events: [`Waiting`], then what it emits.

        Args:
            visitor ([`Visitor`]): who asks.
            kind (`str`): the kind of work.
            work: called as `work(job, *prepared)`.
            prepare: gives `prepared`. It runs in a thread of its own kind, before the turn: it reads uploads.

        Closing this iterator ends the work within a step. The next job starts when the thread is free.

        Raises:
            Refusal: as `join`, and for every failure of the work, with one sentence. Details go to the log, without the
                visitor's words.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue = asyncio.Queue()
        job = Job(lambda event: loop.call_soon_threadsafe(events.put_nowait, (event, None)), self.options.job_seconds)
        ticket = self.join(visitor, kind)
        ticket.job = job
        handed_over = False
        try:
            try:
                prepared = await loop.run_in_executor(self.readers, prepare)
            except Exception as error:
                raise as_refusal(error) from error
            self.enter(ticket)
            while not await called_within(ticket, POLL):
                order = self.order(kind)
                yield Waiting(order.index(ticket) + 1 if ticket in order else 1, len(order))
            if job.stop_requested.is_set():
                return

            def work_in_thread():
                job.started = time.monotonic()
                failure: BaseException | None = None
                try:
                    if not job.stop_requested.is_set():
                        work(job, *prepared)
                except BaseException as error:
                    failure = error
                finally:
                    loop.call_soon_threadsafe(self.leave, ticket)
                    loop.call_soon_threadsafe(events.put_nowait, (None, failure or StopIteration()))

            context = contextvars.copy_context()
            self.threads[kind].submit(context.run, work_in_thread)
            handed_over = True
            while True:
                event, end = await events.get()
                if isinstance(end, StopIteration):
                    return
                if end is not None:
                    raise as_refusal(end) from end
                yield event
        finally:
            job.stop_requested.set()
            if not handed_over:
                self.leave(ticket)


async def called_within(ticket: Ticket, seconds: float) -> bool:
    """Wait for a turn, at most some seconds. Returns whether it came."""
    try:
        await asyncio.wait_for(ticket.called.wait(), seconds)
    except TimeoutError:
        return False
    return True


def as_refusal(error: BaseException) -> Refusal:
    """A failure as one sentence for the visitor. The log gets its type and its lines, but no values."""
    if isinstance(error, Refusal):
        return error
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("A job failed with %s:\n%s", type(error).__name__, frames)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        if torch.accelerator.is_available():
            torch.accelerator.memory.empty_cache()
        return Refusal(TOO_LARGE)
    return Refusal(FAILED)
