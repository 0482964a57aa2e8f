"""The line: who is next, how many jobs one visitor may have, and how a job ends."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
import traceback
from collections import Counter, defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from .settings import Refusal, SpaceOptions
from .turns import Turn, Turns


logger = logging.getLogger(__name__)

FAILED = "That did not work. Please try again with other settings."
TOO_LARGE = "There is not enough memory for that. Please try a smaller size or fewer images."
POLL = 1.0  # seconds after which a visitor is told how it stands, which shows whether they are still there


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


@dataclass(frozen=True)
class Working:
    """The upload is being read, or the job computes, and nothing else was told for a while."""


class OutOfTime(Refusal):
    """A job took longer than a job may."""


class Stopped(Exception):
    """A job was stopped. It ends without computing any further."""


@dataclass(eq=False)
class Job:
    """
    One piece of work, as the model's thread sees it.

    Args:
        emit: passes an event on to the visitor. Any thread may call it.
        seconds (`float`): for how long the job may compute.
        stop_requested: tells the job to stop; a `threading.Event`, or what has its `set` and `is_set`.
        turn ([`Turn`]): the time in which it computes. By itself, it begins now.
        turns ([`Turns`], *optional*): with whom it takes turns.
    """

    emit: Callable[[Any], Any]
    seconds: float
    stop_requested: Any = field(default_factory=threading.Event)
    turn: Turn = field(default_factory=Turn)
    turns: Turns | None = None

    @property
    def over_time(self) -> bool:
        return self.turn.seconds > self.seconds

    @property
    def stopping(self) -> bool:
        """Whether the work should end at its next step."""
        return self.stop_requested.is_set() or self.over_time

    def stop(self):
        """Ask the job to end: within a step if it computes, at once if it waits."""
        self.stop_requested.set()
        if self.turns is not None:
            self.turns.wake()

    def end_step(self):
        """
        Let others compute after a step of this job, if it is their turn. The work calls this after every step.

        Raises:
            Stopped: if the job was stopped. It does not hold the turn then, or gives it up when the work ends.
            OutOfTime: if the job has computed for too long.
        """
        if self.turns is not None:
            self.turns.pass_on(self.turn)
        if self.stop_requested.is_set():
            raise Stopped
        if self.over_time:
            raise OutOfTime(f"That took longer than {self.seconds:g} s and was stopped. Please try fewer steps.")


class Ticket:
    """A place in the line, and the job that will be done for it."""

    def __init__(self, visitor: Visitor, kind: str, job: Job):
        self.visitor, self.kind, self.job = visitor, kind, job
        self.called = asyncio.Event()
        self.reading: asyncio.Future | None = None  # its upload
        self.refusal = ""  # why it lost its place


class Line:
    """
    Calls some jobs of each kind of work at the same time, and lets the visitors take turns.

    Each called job has a thread of its own, but one computes, or one of each kind. After a step, it lets another job go on
    whose address is behind in computing time since the line was empty; see [`Turns`]. So one who sends many or long jobs
    waits longer, not the others. A job that waits between two steps keeps its memory: so only `jobs_at_once` of a kind are
    called, and one of each address. One more is called if its address is behind all of them, so that they cannot keep others
    out. The first job of every address comes before the second job of any. Among the first jobs, the address that has
    computed for the least time comes first.

    All methods but the work itself run in the server's event loop.

    Args:
        options ([`SpaceOptions`]): the limits.
        kinds: the kinds of work.
        kinds_together (`bool`): whether a job of each kind may compute at the same time. On a CPU, one job has all cores.
    """

    def __init__(
        self, options: SpaceOptions, kinds: tuple[str, ...] = ("images", "words"), kinds_together: bool = True
    ):
        self.options, self.kinds_together = options, kinds_together
        self.preparing: list[Ticket] = []  # their uploads are being read
        self.waiting: list[Ticket] = []
        self.running: dict[str, list[Ticket]] = {kind: [] for kind in kinds}
        self.started: dict[str, deque[float]] = defaultdict(deque)  # by address
        at_once = options.jobs_at_once
        self.threads = {kind: ThreadPoolExecutor(at_once + 1, thread_name_prefix=f"showo-{kind}") for kind in kinds}
        self.readers = ThreadPoolExecutor(2, thread_name_prefix="showo-uploads")
        self.turns = Turns()
        self.count = 0

    # Who is next

    def tickets(self) -> list[Ticket]:
        """All jobs that are not done."""
        return self.preparing + self.waiting + [ticket for tickets in self.running.values() for ticket in tickets]

    def order(self, kind: str) -> list[Ticket]:
        """The waiting jobs of a kind in the order in which they will be called."""
        before = Counter(ticket.visitor.address for ticket in self.running[kind])
        keys = {}
        for ticket in sorted((one for one in self.waiting if one.kind == kind), key=lambda one: one.job.turn.number):
            address = ticket.visitor.address
            keys[ticket] = (before[address], self.turns.key(ticket.job.turn))
            before[address] += 1
        return sorted(keys, key=keys.__getitem__)

    def place(self, ticket: Ticket) -> Waiting:
        """The place of a job that does not compute, among the called ones and those that wait to be called."""
        paused = [one for one in self.running[ticket.kind] if not self.turns.holds(one.job.turn)]
        line = sorted(paused, key=lambda one: self.turns.key(one.job.turn)) + self.order(ticket.kind)
        return Waiting(line.index(ticket) + 1 if ticket in line else 1, len(line))

    def join(self, visitor: Visitor, kind: str, emit: Callable[[Any], Any]) -> Ticket:
        """
        Let a visitor in. The job takes its place in the line with [`enter`]; `emit` gets its events.

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
        if len(self.waiting) + len(self.preparing) >= options.max_waiting:
            self.make_room(visitor.address)
        if len(self.started) > 10_000:  # addresses that have not asked for a minute
            for address in [one for one, times in self.started.items() if not times or now - times[-1] > 60]:
                del self.started[address]
        self.started[visitor.address].append(now)
        self.count += 1
        stop = threading.Event()
        turn = Turn(kind if self.kinds_together else "", visitor.address, self.count, stop.is_set)
        ticket = Ticket(visitor, kind, Job(emit, options.job_seconds, stop, turn, self.turns))
        self.preparing.append(ticket)
        return ticket

    def make_room(self, address: str):
        """
        In a full line, drop the newest job of the address with most jobs, if it has more than `address` will have.

        Raises:
            Refusal: if no address has.
        """
        waiting = self.waiting + self.preparing
        jobs = Counter(one.visitor.address for one in waiting)
        droppable = [one for one in self.waiting if jobs[one.visitor.address] > jobs[address] + 1]
        if not droppable:
            raise Refusal(f"The line is full: {len(waiting)} requests are waiting. Please try again in a minute.")
        dropped = max(droppable, key=lambda one: (jobs[one.visitor.address], one.job.turn.number))
        dropped.refusal = "The line is full, and others had fewer requests in it. Please try again in a minute."
        self.leave(dropped)
        dropped.called.set()

    def enter(self, ticket: Ticket):
        """Take the place in the line."""
        self.preparing.remove(ticket)
        self.waiting.append(ticket)
        self.advance(ticket.kind)

    def places(self, ticket: Ticket) -> int:
        """How many jobs of a kind may be called if `ticket` is the next one."""
        used = [self.turns.key(one.job.turn)[0] for one in self.running[ticket.kind]]
        behind = self.turns.key(ticket.job.turn)[0] + self.turns.lead < min(used, default=0.0)
        most = self.options.jobs_at_once
        return most + (behind and most > 1)

    def advance(self, kind: str):
        """Call the next ones, as far as there is room."""
        running = self.running[kind]
        while (order := self.order(kind)) and len(running) < self.places(order[0]):
            if order[0].visitor.address in [ticket.visitor.address for ticket in running]:
                return  # all others that wait are later jobs of such addresses
            self.waiting.remove(order[0])
            running.append(order[0])
            self.turns.enlist(order[0].job.turn)
            order[0].called.set()

    def leave(self, ticket: Ticket):
        """Give up a place: a job is done, or its visitor is gone."""
        for places in (self.preparing, self.waiting, self.running[ticket.kind]):
            if ticket in places:
                places.remove(ticket)
        self.advance(ticket.kind)
        # After the next one is called: else a job that is behind it in the line would compute for a step in between.
        self.turns.give_up(ticket.job.turn)
        if not self.tickets():
            self.turns.forget()

    def stop(self, session: Hashable) -> int:
        """Stop the jobs of a session: one that computes within a step, the others at once. Returns how many there were."""
        own = [ticket for ticket in self.tickets() if ticket.visitor.session == session]
        for ticket in own:
            ticket.job.stop()
            if ticket in self.waiting or ticket in self.preparing:
                self.leave(ticket)
                ticket.called.set()
                if ticket.reading is not None:
                    ticket.reading.cancel()
        return len(own)

    # Work

    async def run(
        self, visitor: Visitor, kind: str, work: Callable[..., Any], prepare: Callable[[], tuple] = tuple
    ) -> AsyncIterator[Any]:
        """
        Wait for a call, run the work in a thread, and give its events: what it emits, [`Waiting`] while it waits, and
        [`Working`] in the middle of long steps. So there is one at least every second.

        Args:
            visitor ([`Visitor`]): who asks.
            kind (`str`): the kind of work.
            work: called as `work(job, *prepared)`. It calls [`Job.end_step`] after each step.
            prepare: gives `prepared`. It runs in a thread of its own kind, before the call: it reads uploads.

        Closing this iterator ends the work within a step. The next job is called when the thread is free.

        Raises:
            Refusal: as `join`, and for every failure of the work, with one sentence. Details go to the log, without the
                visitor's words.
        """
        loop = asyncio.get_running_loop()
        events: asyncio.Queue = asyncio.Queue()
        ticket = self.join(visitor, kind, lambda event: loop.call_soon_threadsafe(events.put_nowait, (event, None)))
        job = ticket.job
        handed_over = False
        try:
            ticket.reading = loop.run_in_executor(self.readers, prepare)
            while not (await asyncio.wait([ticket.reading], timeout=POLL))[0]:
                yield Working()
            if job.stop_requested.is_set():
                return
            try:
                prepared = ticket.reading.result()
            except Exception as error:
                raise as_refusal(error) from error
            self.enter(ticket)
            while not await within(POLL, ticket.called.wait()):
                self.advance(kind)  # the called ones may be ahead by now
                if not ticket.called.is_set():
                    yield self.place(ticket)
            if ticket.refusal:
                raise Refusal(ticket.refusal)
            if job.stop_requested.is_set():
                return

            def work_in_thread():
                failure: BaseException | None = None
                try:
                    self.turns.take(job.turn)
                    if not job.stop_requested.is_set():
                        work(job, *prepared)
                except Stopped:
                    pass
                except BaseException as error:
                    failure = error
                finally:
                    loop.call_soon_threadsafe(self.leave, ticket)
                    loop.call_soon_threadsafe(events.put_nowait, (None, failure or StopIteration()))

            context = contextvars.copy_context()
            self.threads[kind].submit(context.run, work_in_thread)
            handed_over = True
            while True:
                if (next_one := await within(POLL, events.get())) is None:
                    yield Working() if self.turns.holds(job.turn) else self.place(ticket)
                    continue
                event, end = next_one
                if isinstance(end, StopIteration):
                    return
                if end is not None:
                    raise as_refusal(end) from end
                yield event
        finally:
            job.stop()
            if ticket.reading is not None:
                ticket.reading.cancel()
            if not handed_over:
                self.leave(ticket)


async def within(seconds: float, result: Awaitable[Any]) -> Any:
    """Wait for a result, at most some seconds. None if it did not come."""
    try:
        return await asyncio.wait_for(result, seconds)
    except TimeoutError:
        return None


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
