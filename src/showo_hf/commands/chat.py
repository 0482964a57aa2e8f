"""`showo-hf chat`: a conversation in text and images."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import traceback
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..utils.argument_types import integer, quoted, scale_number, seed_number, user_path
from ..utils.messages import one_sentence
from .chat_screen import Screen, print_status, stop_on_interrupt
from .conversation_files import Message, conversation_text, open_conversation, read_conversation
from .errors import CommandError, UsageError
from .files import check_output, replace_file, save_numbered
from .image_files import add_max_pixels, is_url, load
from .image_generation import MOST_STEPS, add_decoder_steps, check_decoder_steps, drawn_seed, tell_seed
from .image_questions import MOST_NEW_TOKENS
from .model_loading import add_loading_options, choose_device, load_package, load_pipeline
from .saved_model import read_saved_model
from .scheduler_options import add_scheduler_options, check_model_and_scheduler, check_scheduler_values, set_scheduler
from .terminal_images import terminal_protocol
from .texts import check_text, exists, with_option_names


if TYPE_CHECKING:
    import torch
    from PIL import Image

    from showo_hf.pipelines import AnswerDone, ShowoAnyToAnyPipeline


PROMPT = "> "
MOST_IMAGES = 1000
MANY_REPEATS = 4  # a word this often in a row makes no sense
SENTENCE = 4  # words; shorter answers, such as "yes.", may well come twice

COMMANDS_HELP = """\
/image PATH      attach an image (file or URL) to the next message; can be repeated
/new             start a new conversation
/save FILE.json  save the conversation, for --load and for the pipelines of this package
/help            show this list
/quit            quit, like Ctrl-D
Ctrl-C stops an answer. Put a space before a message that starts with /."""

EXAMPLES = f"""\
Every line is a message. The answer is printed word by word. Its images are saved as image-0.png, image-1.png ...;
existing files are never overwritten. Answers and image names go to stdout, everything else goes to stderr.

{COMMANDS_HELP}

A saved conversation contains the tokens of its images. --load continues it exactly, even if the image files are
gone. Load it with the model that it was saved with.

The lines can also come from a file or a pipe. Then there is no prompt, and Ctrl-C ends the program.

examples:
  showo-hf chat
  showo-hf chat --load said.json
  cat messages.txt | showo-hf chat --output drawings --seed 7

exit codes: 0 the conversation ended, 1 a line from a file or a pipe failed, 2 the arguments are not valid,
130 interrupted
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "chat",
        help="chat in text and images",
        description="Chat with the model in text and images.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "-o",
        "--output",
        type=user_path,
        default=Path(),
        metavar="FOLDER",
        help="folder for the images (default: the current one)",
    )
    add("--load", type=user_path, metavar="FILE.json", help="continue a conversation that /save wrote")
    add(
        "--steps",
        type=integer(1, MOST_STEPS),
        metavar="N",
        help="number of denoising steps per image (default: {steps})",
    )
    add(
        "--guidance",
        type=scale_number,
        metavar="G",
        help="guidance scale of images; 1 turns it off (default: {guidance})",
    )
    add(
        "--temperature",
        type=scale_number,
        metavar="T",
        help="sampling temperature of images (default: {temperature})",
    )
    add_decoder_steps(parser)
    add(
        "--seed",
        type=seed_number,
        metavar="N",
        help="random seed; repeats with one number of CPU threads (default: a new one, printed to stderr)",
    )
    add(
        "--max-new-tokens",
        type=integer(1, MOST_NEW_TOKENS),
        metavar="N",
        help="longest answer in text tokens (default: 256)",
    )
    add(
        "--max-images",
        type=integer(0, MOST_IMAGES),
        metavar="N",
        help="largest number of images in an answer (default: 4)",
    )
    add_max_pixels(parser)
    add_scheduler_options(parser)
    add_loading_options(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Chat until the input ends. Everything that does not need the model is checked before the model is loaded."""
    check_options(options)
    saved = [] if options.load is None else read_conversation("--load", options.load)
    check_model_and_scheduler(options)
    check_decoder_steps(options)
    device = choose_device(options.device, options.dtype, options.quiet)
    load_package(options.quiet)
    check_scheduler_values(options)
    before: list[Message] = []
    sources: list[dict[str, str]] = []
    if options.load is not None:
        codes = read_saved_model(options.model).codebook_size
        before, sources = open_conversation("--load", options.load, saved, codes, options.max_pixels)
    interactive = sys.stdin.isatty()
    with suppress(AttributeError):  # another stream than a file
        cast("Any", sys.stdin).reconfigure(errors="surrogateescape")  # a line that is not UTF-8 is one bad message
    pipe = load_pipeline(options.model, options.dtype, device, options.quiet, "ShowoAnyToAnyPipeline")
    set_scheduler(pipe, options)
    check_decoder_steps(options, pipe)
    pipe.set_progress_bar_config(disable=True)  # `Screen` shows the steps, below the text
    seed = drawn_seed(options)
    chat = Chat(pipe, options, seed, interactive)
    if options.load is not None:
        chat.resume(before, sources)
    tell_seed(options, seed)  # what is refused has no seed
    if interactive:
        with suppress(ImportError):  # not available on every system
            import readline  # noqa: F401  # arrow keys and history
        print_status("Type a message. /help lists the commands, Ctrl-D quits.")
    run_lines(chat)
    return 1 if chat.failed and not interactive else 0


def check_options(options: argparse.Namespace) -> None:
    """Raise `UsageError` unless `--output` is a writable folder."""
    if not (exists(options.output) and options.output.is_dir()):
        raise UsageError(f"`--output` must be a folder that exists, got {quoted(options.output)}")
    if not os.access(options.output, os.W_OK):
        raise UsageError(f"`--output` must be a folder that can be written to, but {quoted(options.output)} cannot")


# Input


def run_lines(chat: Chat) -> None:
    """Run every line, until the input ends or `/quit`."""
    while True:
        try:
            if not chat.run_line(read_line(chat.interactive)):
                return
        except EOFError:
            if chat.interactive:
                print_status("")  # the prompt of the shell starts on a new line
            return
        except KeyboardInterrupt:
            if not chat.interactive:
                raise
            print_status("\n(/quit or Ctrl-D quits)")


def read_line(interactive: bool) -> str:
    """The next line. Raises `EOFError` after the last one."""
    if not interactive:
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")
    if sys.stdout.isatty():
        return input(PROMPT)
    print(PROMPT, end="", file=sys.stderr, flush=True)  # stdout is only for answers
    return input()


# The conversation


@dataclass(frozen=True)
class Attachment:
    """An image that is sent with the next message."""

    name: str
    image: Image.Image

    def source(self) -> dict[str, str]:
        """The path or URL, as in a saved message."""
        return {"url" if is_url(self.name) else "path": self.name}


class Chat:
    """
    A conversation and the commands on it.

    Args:
        pipe: generates the answers.
        options: the parsed options of the command.
        seed: seeds one generator for the whole conversation.
        interactive: whether a user types the lines. A user can stop an answer, and errors do not fail the program.
    """

    def __init__(self, pipe: ShowoAnyToAnyPipeline, options: argparse.Namespace, seed: int, interactive: bool):
        import torch

        self.pipe, self.options, self.interactive = pipe, options, interactive
        self.generator: torch.Generator = torch.Generator("cpu").manual_seed(
            seed
        )  # the same random numbers on any device
        self.next_number = 0
        self.failed = False
        self.protocol = terminal_protocol(sys.stdout) if interactive and not options.quiet else None
        self.begin()

    def begin(self, before: Iterable[Message] = (), sources: Iterable[dict[str, str]] = ()) -> None:
        """Start a conversation with the given messages and the sources of their images."""
        self.session = self.pipe.start(list(before))
        self.sources = list(sources)
        self.attachments: list[Attachment] = []
        self.previous = ("", "")  # the last message and its answer
        self.lost_answers = 0  # in a row

    def resume(self, before: list[Message], sources: list[dict[str, str]]) -> None:
        """Continue the conversation of `--load`. Raises `UsageError` if it is not valid for this model."""
        try:
            self.begin(before, sources)
        except (ValueError, TypeError) as error:
            raise UsageError(f"`--load` cannot continue {quoted(self.options.load)}: {one_sentence(error)}") from error
        print_status(f"({len(before)} messages from {self.options.load})")

    def run_line(self, line: str) -> bool:
        """Run a command or answer a message. Returns False for `/quit`."""
        command, _, argument = line.rstrip().partition(" ")
        if command == "/quit":
            return False
        try:
            if command.startswith("/"):
                self.run_command(command, argument.strip())
            elif line.strip():
                self.answer(line.strip())
            elif self.attachments:
                print_status("(the image is sent with your next message)")
        except (UsageError, CommandError, ValueError, TypeError, RuntimeError) as error:
            self.failed = True
            if self.options.debug:
                traceback.print_exc()
            print_status(f"showo-hf: error: {one_sentence(ValueError(with_option_names(one_sentence(error))))}")
        return True

    def run_command(self, command: str, argument: str) -> None:
        """Run a line that starts with a slash. Raises `UsageError` for an unknown command."""
        if command == "/image":
            self.attach(argument)
        elif command == "/save":
            self.save(argument)
        elif command == "/new":
            self.begin()
            print_status("(a new conversation)")
        elif command == "/help":
            print_status(COMMANDS_HELP)
        else:
            raise UsageError(
                f"there is no command {command}; /help lists all commands. Put a space before a message that starts with /"
            )

    def attach(self, argument: str) -> None:
        """Attach an image to the next message. Raises `UsageError` if it cannot be read."""
        if not argument:
            raise UsageError("/image needs the path of an image")
        loaded = load(image_name(argument), self.options.max_pixels)
        if loaded.image is None:
            raise UsageError(f"{quoted(loaded.name)} cannot be read: {loaded.problem}")
        self.attachments.append(Attachment(loaded.name, loaded.image))
        width, height = loaded.image.size
        print_status(f"({loaded.name}, {width}x{height}, is sent with your next message)")

    def save(self, argument: str) -> None:
        """Save the conversation. Raises `UsageError` if the path is not writable."""
        if not argument:
            raise UsageError("/save needs the name of a file")
        path = user_path(argument)
        check_output("/save", path, (".json",))
        messages = self.session.messages
        text = conversation_text(messages, self.sources)
        replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        print_status(f"({len(messages)} messages in {path})")

    def given_options(self) -> dict[str, Any]:
        """The options of an answer. Options that were not given keep the pipeline's defaults."""
        wanted = {
            "max_new_tokens": self.options.max_new_tokens,
            "max_images": self.options.max_images,
            "num_inference_steps": self.options.steps,
            "guidance_scale": self.options.guidance,
            "temperature": self.options.temperature,
            "decoder_steps": self.options.decoder_steps,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def answer(self, text: str) -> None:
        """
        Send a message, and print the answer as it is generated.

        If the answer is stopped or fails, the conversation, the attached images and the generator are unchanged.
        """
        check_text("message", text)
        text_part = {"type": "text", "text": text}
        images = [{"type": "image", "image": attachment.image} for attachment in self.attachments]
        message = {"role": "user", "content": [*images, text_part]}
        state = self.generator.get_state()
        done = None
        try:
            done, saved = self.stream_answer(message)
        except KeyboardInterrupt:  # the second Ctrl-C, which does not wait for a clean stop
            if not self.interactive:
                raise
        finally:
            if done is None:
                self.generator.set_state(state)
        if done is None:
            print_status("(stopped; your message and the answer are discarded)")
            return
        self.sources += [attachment.source() for attachment in self.attachments]
        self.sources += [{"path": str(path)} for path in saved]
        self.attachments = []
        if not done.message["content"]:
            print_status("(no answer)")
        elif done.finish_reason == "length":
            print_status("(the answer reached a limit: --max-new-tokens, or the context length of the model)")
        self.offer_new(text, done.message["content"])

    def offer_new(self, asked: str, content: list[dict[str, Any]]) -> None:
        """Offer a new conversation after two answers in a row that make no sense, or repeat the previous sentence."""
        words = " ".join(part["text"] for part in content if part["type"] == "text")
        pictures = any(part["type"] == "image" for part in content)
        repeated = len(words.split()) >= SENTENCE and self.previous[0] != asked and self.previous[1] == words
        lost = not pictures and (repeated or not is_sensible(words))
        self.lost_answers = self.lost_answers + 1 if lost else 0
        self.previous = (asked, words)
        if self.lost_answers == 2:
            print_status("(the model seems to have lost the thread; /new starts a new conversation)")
            self.lost_answers = 0

    def stream_answer(self, message: dict[str, Any]) -> tuple[AnswerDone | None, list[Path]]:
        """Print an answer and save its images. Returns the last event, or None if stopped, and the image paths."""
        from showo_hf.pipelines import AnswerDone, ImageDone, ImageStep

        events = self.session.stream(message, generator=self.generator, **self.given_options())
        saved: list[Path] = []
        with (
            stop_on_interrupt(self.interactive) as stop,
            closing(events),
            closing(Screen(self.options.quiet, self.protocol)) as screen,
        ):
            for event in events:
                if isinstance(event, AnswerDone):
                    return event, saved
                if stop.requested:
                    break
                if isinstance(event, ImageStep):
                    screen.step(event)
                elif isinstance(event, ImageDone):
                    image = cast("Image.Image", event.image)
                    saved.append(self.save_image(image))
                    screen.image(saved[-1], image)
                else:
                    screen.text(event.text)
        return None, saved

    def save_image(self, image: Image.Image) -> Path:
        """Save an image under the next free name."""
        path, number = save_numbered(self.options.output, "image", ".png", self.next_number, image.save)
        self.next_number = number + 1
        return path


def is_sensible(text: str) -> bool:
    """Whether a text has words, and does not repeat one word over and over."""
    words = text.split()
    runs = [len(list(same)) for _, same in groupby(words)]
    return any(character.isalnum() for character in text) and max(runs) < MANY_REPEATS


def image_name(text: str) -> str:
    """The path or URL that a user typed, which may be quoted or escaped as in a shell."""
    if is_url(text):
        return text
    plain = user_path(text)
    if not exists(plain):
        with suppress(ValueError):  # an unclosed quote
            parts = shlex.split(text)
            if len(parts) == 1:
                return str(user_path(parts[0]))
    return str(plain)
