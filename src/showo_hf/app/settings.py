"""What a visitor may ask for, and what the person who runs the app may set."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any


MAX_PROMPT_LENGTH = 300  # characters
MAX_STEPS = 50
MAX_GUIDANCE = 20.0
MAX_TEMPERATURE = 10.0
MAX_IMAGES = 4
MAX_SEED = 2**31 - 1
MAX_ROUNDS = 3  # of extending an image
MAX_ANSWER = 64  # text tokens of an answer
MAX_SCALE = 2  # the largest side is this many times the trained one
OWN_SAMPLER = "the model's own"

#: The key of a PNG's text chunk that holds the settings of the image, as JSON.
PNG_KEY = "showo_hf"


class Refusal(Exception):
    """A request that cannot be served. The message is one sentence for the visitor."""


@dataclass(frozen=True)
class SpaceOptions:
    """
    What the person who runs the app may set; each by an environment variable with the prefix `SHOWO_`.

    Args:
        model (`str`): a model folder or Hub name; the embedded model if empty.
        max_waiting (`int`): jobs in the line, of all visitors.
        jobs_per_session, jobs_per_address (`int`): jobs of one visitor that wait or run: of one browser tab, and of one
            network address.
        jobs_at_once (`int`): jobs of one kind, images or words, that take turns step by step; the others wait until one of
            them ends. Each keeps its memory between its turns. It is 1 on ZeroGPU, and for a model whose weights accelerate
            moves for each call.
        jobs_per_minute (`int`): jobs that one address may start within a minute.
        requests_per_minute (`int`): requests of any kind of one address within a minute; uploads count too.
        job_seconds (`float`): a job ends within a step after it has computed for this time.
        gpu_seconds (`float`): how long a job has a GPU on a ZeroGPU Space, its start included.
        compile (`str`): "decoder" compiles the image tokenizer's decoder when the app starts, on a ZeroGPU Space.
        file_megabytes (`float`): the largest file.
        upload_megabytes (`float`): what one address may upload within ten minutes.
        upload_seconds (`float`): an upload ends after this time.
        forwarded_header (`str`): the header that names the visitor's address behind a proxy, such as `X-Forwarded-For`.
            Without it, the address of the connection counts. Set it only behind a proxy that sets it: visitors could
            write any address into it.
        proxies (`int`): how many proxies append to that header; the visitor's address is that many from its end.
        keep_minutes (`float`): files of images and uploads are deleted after this time.
    """

    model: str = ""
    max_waiting: int = 20
    jobs_per_session: int = 3
    jobs_per_address: int = 6
    jobs_at_once: int = 4
    jobs_per_minute: int = 60
    requests_per_minute: int = 600
    job_seconds: float = 120.0
    gpu_seconds: float = 30.0
    compile: str = ""
    file_megabytes: float = 10.0
    upload_megabytes: float = 100.0
    upload_seconds: float = 60.0
    forwarded_header: str = ""
    proxies: int = 1
    keep_minutes: float = 60.0

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str) and not value > 0:
                raise ValueError(f"`{field.name}` must be above 0, got {value!r}.")
        if self.compile not in ("", "decoder"):
            raise ValueError(f"`compile` must be 'decoder' or empty, got {self.compile!r}.")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> SpaceOptions:
        """Read the options. `ValueError` names a variable whose value is not a number above 0."""
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {}
        for field in fields(cls):
            name = f"SHOWO_{field.name.upper()}"
            text = environment.get(name, "").strip()
            if not text:
                continue
            kind: Any = type(field.default)
            try:
                values[field.name] = kind(text)
            except ValueError:
                raise ValueError(f"{name} must be a number above 0, got {text!r}.") from None
        return cls(**values)


@dataclass(frozen=True)
class DrawSettings:
    """
    One request for images. [`DrawSettings.checked`] raises a [`Refusal`] for values out of range.

    Args:
        prompt (`str`): what to show, up to 300 characters.
        negative_prompt (`str`): what not to show.
        steps (`int`): 1 to 50.
        guidance (`float`): 1 to 20; 1 turns guidance off.
        temperature (`float`, *optional*): 0 to 10; the sampler's own by default.
        sampler (`str`): a name of `SCHEDULERS`, or "the model's own".
        height, width (`int`, *optional*): in pixels; the trained size by default.
        count (`int`): number of images, 1 to 4; image i has the seed `seed + i`.
        seed (`int`): 0 to 2**31 - 1, for the last image too.
    """

    prompt: str
    negative_prompt: str = ""
    steps: int = 18
    guidance: float = 2.75
    temperature: float | None = None
    sampler: str = OWN_SAMPLER
    height: int | None = None
    width: int | None = None
    count: int = 1
    seed: int = 0

    def checked(self, samplers: tuple[str, ...] | list[str]) -> DrawSettings:
        """The settings with stripped texts and whole numbers. Raises [`Refusal`] for what is not allowed."""
        values = replace(
            self,
            prompt=check_text(self.prompt, "Please write what the image should show."),
            negative_prompt=check_text(self.negative_prompt, None),
            steps=whole("Steps", self.steps, 1, MAX_STEPS),
            guidance=number("Guidance", self.guidance, 1, MAX_GUIDANCE),
            count=whole("Images", self.count, 1, MAX_IMAGES),
            seed=whole("Seed", self.seed, 0, MAX_SEED),
        )
        if values.seed + values.count - 1 > MAX_SEED:
            raise Refusal(f"Seed must be at most {MAX_SEED - values.count + 1} for {values.count} images.")
        if values.temperature is not None:
            values = replace(values, temperature=number("Temperature", values.temperature, 0, MAX_TEMPERATURE))
        if values.sampler not in samplers:
            raise Refusal(f"The sampler must be one of: {', '.join(samplers)}.")
        return values

    def with_seed(self, seed: int) -> DrawSettings:
        """The settings of one image of several."""
        return replace(self, seed=seed, count=1)

    def to_json(self) -> str:
        """All settings as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DrawSettings:
        """Settings of a file. Unknown names are left out. Raises [`Refusal`] for anything that is not settings."""
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        names = {field.name: field.type for field in fields(cls)}
        if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
            raise Refusal("This file holds no settings of this app.")
        values = {name: value for name, value in found.items() if name in names}
        for name, value in values.items():
            texts = name in ("prompt", "negative_prompt", "sampler")
            optional = name in ("temperature", "height", "width") and value is None
            if not optional and (isinstance(value, bool) or not isinstance(value, str if texts else (int, float))):
                raise Refusal("The settings in this file cannot be read.")
        return cls(**values)


def check_text(text: Any, missing: str | None) -> str:
    """
    Strip a text of a visitor.

    Raises:
        Refusal: if it is too long, holds what is no text, or is empty; `missing` is the message then. None allows it.
    """
    text = "" if text is None else text
    if not isinstance(text, str):
        raise Refusal("Please write a text.")
    text = text.strip()
    if not text and missing is not None:
        raise Refusal(missing)
    if len(text) > MAX_PROMPT_LENGTH:
        raise Refusal(f"Please use at most {MAX_PROMPT_LENGTH} characters.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Refusal("The text holds characters that are not valid.") from None
    if "\0" in text:
        raise Refusal("The text holds characters that are not valid.")
    return text


def number(name: str, value: Any, least: float, most: float) -> float:
    """A number from `least` to `most`. Raises [`Refusal`] for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
        raise Refusal(f"{name} must be a number from {least:g} to {most:g}.")
    return float(value)


def whole(name: str, value: Any, least: int, most: int) -> int:
    """A whole number from `least` to `most`. Raises [`Refusal`] for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most or value % 1:
        raise Refusal(f"{name} must be a whole number from {least} to {most}.")
    return int(value)
