"""`showo-hf chat`: a conversation in words and images."""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from ..utils.argument_types import number_from_zero, positive_integer, seed_number, whole_number
from .conversations import Message, conversation_text, read_conversation
from .errors import CommandError, UsageError
from .files import check_output, replace_file, save_numbered
from .loading import add_loading_options, check_model, choose_device, load_pipeline
from .reading import is_url, load, printable
from .scheduling import add_scheduler_options, check_scheduler, set_scheduler


if TYPE_CHECKING:
    import torch
    from PIL import Image
    from tqdm import tqdm

    from showo_hf.pipelines import AnswerDone, ImageStep, ShowoAnyToAnyPipeline


PROMPT = "> "

COMMANDS_HELP = """\
/image PATH   show an image (file or URL) with the next message; once for each image
/new            begin a new conversation
/save FILE.json write the conversation, for --load and for the pipelines of this package
/help           this list
/quit           leave, as Ctrl-D does
Ctrl-C stops an answer. A message that begins with / needs a space before it."""

EXAMPLES = f"""\
A line is a message. The answer comes word by word; its images are saved as image-0.png, image-1.png ..., and what
is there already stays as it is. Answers and the names of images go to stdout, everything else goes to stderr.

{COMMANDS_HELP}

A saved conversation holds the tokens of its images, so --load goes on with it as if it had never ended, also where the
images are gone. It takes the model that it was saved with.

Lines can come from a file or a program as well. Then there is no prompt, and Ctrl-C ends the program.

examples:
  showo-hf chat
  showo-hf chat --load said.json
  cat messages.txt | showo-hf chat --output drawings --seed 7

exit codes: 0 it was left, 1 something failed that came from a file or a program, 2 the command was not understood,
130 interrupted
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "chat",
        help="talk in words and images",
        description="Talk with the model in words and images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-o", "--output", type=Path, default=Path(), metavar="FOLDER", help="for the images (default: this one)")
    add("--load", type=Path, metavar="FILE.json", help="go on with a conversation that /save wrote")
    add("--steps", type=positive_integer, metavar="N", help="steps from nothing to an image (default: the model's)")
    add("--guidance", type=number_from_zero, metavar="G", help="pull of the words on images; 1 is none")
    add("--temperature", type=number_from_zero, metavar="T", help="randomness of images (default: the model's)")
    add("--seed", type=seed_number, metavar="N", help="makes it repeatable (default: a new one, told on stderr)")
    add("--max-new-tokens", type=positive_integer, metavar="N", help="longest answer in words (default: 256 tokens)")
    add("--max-images", type=whole_number, metavar="N", help="most images in an answer (default: 4)")
    add_scheduler_options(parser)
    add_loading_options(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Talk until the lines end. What can be checked without the model is checked before it is loaded."""
    check_options(options)
    check_scheduler(options)
    before, sources = ([], []) if options.load is None else read_conversation("--load", options.load)
    if options.model is not None:
        check_model(options.model)
    device = choose_device(options.device)
    interactive = sys.stdin.isatty()
    seed = options.seed
    if seed is None:
        seed = secrets.randbelow(2**32)
        print(f"seed {seed}", file=sys.stderr)
    pipe = load_pipeline(options.model, options.dtype, device, options.quiet, "ShowoAnyToAnyPipeline")
    set_scheduler(pipe, options)
    pipe.set_progress_bar_config(disable=True)  # `Screen` shows the steps, and knows where the text is
    chat = Chat(pipe, options, seed, interactive)
    if options.load is not None:
        chat.go_on(before, sources)
    if interactive:
        with suppress(ImportError):  # a system may lack it
            import readline  # noqa: F401  # arrow keys, and earlier lines
        tell("Say something. /help lists the commands, Ctrl-D leaves.")
    talk(chat)
    return 1 if chat.failed and not interactive else 0


def check_options(options: argparse.Namespace) -> None:
    """Raise `UsageError` unless images can be written to `--output`, and the numbers can be used."""
    if not options.output.is_dir():
        raise UsageError(f"`--output` must be a folder that exists, got '{options.output}'")
    if not os.access(options.output, os.W_OK):
        raise UsageError(f"`--output` must be a folder that can be written to, but '{options.output}' cannot")
    for name in ("guidance", "temperature"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise UsageError(f"`--{name}` must not be negative, got {value}")


# Lines


def talk(chat: Chat) -> None:
    """Hand over line by line, until they end or one says so."""
    while True:
        try:
            if not chat.take(read_line(chat.interactive)):
                return
        except EOFError:
            if chat.interactive:
                tell("")  # the shell's prompt begins a line
            return
        except KeyboardInterrupt:
            if not chat.interactive:
                raise
            tell("\n(/quit or Ctrl-D leaves)")


def read_line(interactive: bool) -> str:
    """The next line; `EOFError` behind the last one."""
    if not interactive:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")
    if sys.stdout.isatty():
        return input(PROMPT)
    print(PROMPT, end="", file=sys.stderr, flush=True)  # stdout is for answers
    return input()


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# Interrupts


class Stop:
    """A signal handler that notes the first Ctrl-C, for the answer to end in good order. The second one interrupts."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def stopping(active: bool) -> Iterator[Stop]:
    """Within it, Ctrl-C is noted rather than raised; outside of the main thread, and where not `active`, it is not."""
    stop = Stop()
    if not active or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)


# What is seen of an answer


class Screen:
    """The answer on stdout, and the steps of an image on stderr, so that neither writes over the other."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.at_line_start = True
        self.bar: tqdm | None = None

    def text(self, piece: str) -> None:
        """Some more words."""
        if self.at_line_start:
            piece = piece.lstrip()
        if piece:
            print(printable(piece), end="", flush=True)
            self.at_line_start = piece.endswith("\n")

    def step(self, event: ImageStep) -> None:
        """An image has got on by a step."""
        from tqdm import tqdm

        self.end_line()
        if self.bar is None:
            name = f"image {event.index + 1}"
            self.bar = tqdm(total=event.num_steps, desc=name, unit="step", leave=False, disable=self.quiet)
        self.bar.update(event.step + 1 - self.bar.n)

    def image(self, path: Path) -> None:
        """An image is saved."""
        self.close_bar()
        self.end_line()
        print(printable(str(path)), flush=True)

    def close_bar(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def end_line(self) -> None:
        if not self.at_line_start:
            print(flush=True)
            self.at_line_start = True

    def close(self) -> None:
        self.close_bar()
        self.end_line()


# The conversation


@dataclass(frozen=True)
class Shown:
    """An image that goes with the next message."""

    name: str
    image: Image.Image

    def source(self) -> dict[str, str]:
        """Where it lies, as a saved message has it."""
        return {"url" if is_url(self.name) else "path": self.name}


class Chat:
    """
    A conversation and what a user can do with it.

    Args:
        pipe: makes the answers.
        options: those of the command.
        seed: of all draws, in the order in which they come.
        interactive: whether somebody sits there, who can stop an answer and mend what went wrong.
    """

    def __init__(self, pipe: ShowoAnyToAnyPipeline, options: argparse.Namespace, seed: int, interactive: bool):
        import torch

        self.pipe, self.options, self.interactive = pipe, options, interactive
        self.generator: torch.Generator = torch.Generator("cpu").manual_seed(seed)  # the same draws on any device
        self.next_number = 0
        self.failed = False
        self.begin()

    def begin(self, before: Iterable[Message] = (), sources: Iterable[dict[str, str]] = ()) -> None:
        """A new conversation, behind the messages that came before and with the places of their images."""
        self.session = self.pipe.start(list(before))
        self.sources = list(sources)
        self.shown: list[Shown] = []

    def go_on(self, before: list[Message], sources: list[dict[str, str]]) -> None:
        """Go on with the conversation of `--load`. `UsageError` if it is none that this model can have had."""
        try:
            self.begin(before, sources)
        except (ValueError, TypeError) as error:
            raise UsageError(f"`--load` cannot go on with '{self.options.load}': {error}") from error
        tell(f"({len(before)} messages from {self.options.load})")

    def take(self, line: str) -> bool:
        """Do what a line says. False where it says to leave."""
        command, _, words = line.rstrip().partition(" ")
        if command == "/quit":
            return False
        try:
            if command.startswith("/"):
                self.obey(command, words.strip())
            elif line.strip():
                self.answer(line.strip())
            elif self.shown:
                tell("(the image goes with your next message)")
        except (UsageError, CommandError, ValueError, TypeError, RuntimeError) as error:
            self.failed = True
            if self.options.debug:
                traceback.print_exc()
            tell(f"showo-hf: error: {' '.join(str(error).split())}")
        return True

    def obey(self, command: str, words: str) -> None:
        """A line that begins with a slash. `UsageError` if there is no such command."""
        if command == "/image":
            self.show(words)
        elif command == "/save":
            self.save(words)
        elif command == "/new":
            self.begin()
            tell("(a new conversation)")
        elif command == "/help":
            tell(COMMANDS_HELP)
        else:
            raise UsageError(
                f"there is no command {command}; /help lists them, and a message has a space before its /"
            )

    def show(self, words: str) -> None:
        """Read an image, to go with the next message. `UsageError` if it cannot be read."""
        if not words:
            raise UsageError("/image needs the path of an image")
        loaded = load(image_name(words))
        if loaded.image is None:
            raise UsageError(f"'{loaded.name}' cannot be read: {loaded.problem}")
        self.shown.append(Shown(loaded.name, loaded.image))
        width, height = loaded.image.size
        tell(f"({loaded.name}, {width}x{height}, goes with your next message)")

    def save(self, words: str) -> None:
        """Write the conversation to a file. `UsageError` if it cannot be written to."""
        if not words:
            raise UsageError("/save needs the name of a file")
        path = Path(words).expanduser()
        check_output("/save", path, (".json",))
        messages = self.session.messages
        text = conversation_text(messages, self.sources)
        replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        tell(f"({len(messages)} messages in {path})")

    def given_options(self) -> dict[str, Any]:
        """The options of an answer; what the user left out is left to the pipeline's own defaults."""
        wanted = {
            "max_new_tokens": self.options.max_new_tokens,
            "max_images": self.options.max_images,
            "num_inference_steps": self.options.steps,
            "guidance_scale": self.options.guidance,
            "temperature": self.options.temperature,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def answer(self, text: str) -> None:
        """
        Say something, and show the answer while it comes.

        An answer that is stopped or fails leaves the conversation as it was, with the images that were to go along,
        and the draws as if nothing had been said.
        """
        words = {"type": "text", "text": text}
        images = [{"type": "image", "image": shown.image} for shown in self.shown]
        said = {"role": "user", "content": [*images, words]}
        state = self.generator.get_state()
        done = None
        try:
            done, saved = self.write(said)
        except KeyboardInterrupt:  # the second one, which does not wait
            if not self.interactive:
                raise
        finally:
            if done is None:
                self.generator.set_state(state)
        if done is None:
            tell("(stopped; the conversation is as it was before your message)")
            return
        self.sources += [*(shown.source() for shown in self.shown), *({"path": str(path)} for path in saved)]
        self.shown = []
        if not done.message["content"]:
            tell("(no answer)")
        elif done.finish_reason == "length":
            tell("(the answer met a limit: --max-new-tokens, or what the model can hold in mind)")

    def write(self, said: dict[str, Any]) -> tuple[AnswerDone | None, list[Path]]:
        """Show an answer and save its images; None for an answer that was stopped, and the images' paths."""
        from showo_hf.pipelines import AnswerDone, ImageDone, ImageStep

        events = self.session.stream(said, generator=self.generator, **self.given_options())
        saved: list[Path] = []
        with stopping(self.interactive) as stop, closing(events), closing(Screen(self.options.quiet)) as screen:
            for event in events:
                if isinstance(event, AnswerDone):
                    return event, saved
                if stop.asked:
                    break
                if isinstance(event, ImageStep):
                    screen.step(event)
                elif isinstance(event, ImageDone):
                    saved.append(self.save_image(cast("Image.Image", event.image)))
                    screen.image(saved[-1])
                else:
                    screen.text(event.text)
        return None, saved

    def save_image(self, image: Image.Image) -> Path:
        """Save an image under the next name that is free."""
        path, number = save_numbered(self.options.output, "image", ".png", self.next_number, image.save)
        self.next_number = number + 1
        return path


def image_name(words: str) -> str:
    """The path or URL that a user means, who may have put it in quotes or written it as shells do."""
    if is_url(words):
        return words
    plain = Path(words).expanduser()
    if not plain.exists():
        with suppress(ValueError):  # a quote that is not closed
            parts = shlex.split(words)
            if len(parts) == 1:
                return str(Path(parts[0]).expanduser())
    return str(plain)
