"""Images from words with the ONNX graphs that lie beside this file. torch is not needed:

    pip install numpy onnxruntime pillow tokenizers
    python generate.py "a red apple, flat style" --output apple.png

In Python, `OnnxShowo(folder)` also turns images into codes and back. This file stands alone, so that a folder made
by `python -m showo_hf.conversion.export_onnx` is whole without the package that made it.
"""

import argparse
import json
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer


CONFIG_FILE = "onnx_config.json"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass
class EncodedPrompts:
    """
    What an image sees of its text, computed once.

    Args:
        keys, values: (layers, rows, heads, length, head_dim). Where there is guidance, the rows of the second half are
            the unconditional ones.
        seen: (rows, length), False at pads.
    """

    keys: np.ndarray
    values: np.ndarray
    seen: np.ndarray


class Draws:
    """The random numbers of an image; with the same seed they are the same."""

    def __init__(self, seed: int | None = None):
        self.generator = np.random.default_rng(seed)

    def codes(self, probabilities: np.ndarray) -> np.ndarray:
        """One draw from each distribution: (batch, tokens, codes) to (batch, tokens)."""
        cumulative = probabilities.cumsum(-1, dtype=np.float64)
        limits = self.generator.random((*probabilities.shape[:-1], 1)) * cumulative[..., -1:]
        return (cumulative < limits).sum(-1)

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform noise in [0, 1) of a shape, float32."""
        return self.generator.random(shape, dtype=np.float32)


class OnnxShowo:
    """
    A text-to-image model as ONNX graphs, run by ONNX Runtime on the CPU. A graph is loaded when it is first used.

    Args:
        folder: where the graphs and `onnx_config.json` lie.
        threads: how many threads compute; as many as there are cores by default.
    """

    def __init__(self, folder: str | Path, threads: int | None = None):
        self.folder = Path(folder)
        if not (self.folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"`folder` must hold {CONFIG_FILE} and the graphs beside it, got '{folder}'.")
        self.config = json.loads((self.folder / CONFIG_FILE).read_text(encoding="utf-8"))
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads or 0
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # names of special tokens in a prompt are plain text

    def load(self, name: str) -> onnxruntime.InferenceSession:
        """Load the graph `name`.onnx."""
        path = str(self.folder / f"{name}.onnx")
        return onnxruntime.InferenceSession(path, self.options, providers=["CPUExecutionProvider"])

    @cached_property
    def transformer(self) -> onnxruntime.InferenceSession:
        return self.load("transformer")

    @cached_property
    def image_encoder(self) -> onnxruntime.InferenceSession:
        return self.load("image_encoder")

    @cached_property
    def image_decoder(self) -> onnxruntime.InferenceSession:
        return self.load("image_decoder")

    # Words

    def prompt_ids(self, text: str) -> list[int]:
        """`t2i sot text eot`; a text that is too long keeps its beginning, with a warning."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        kept = self.config["max_text_length"] - 2
        if len(ids) > kept:
            warnings.warn(f"A text of {len(ids)} ids was cut to {kept}: {text[:60]!r}...", stacklevel=2)
        config = self.config
        return [config["t2i_token_id"], config["sot_token_id"], *ids[:kept], config["eot_token_id"]]

    def encode_prompts(self, prompts: Sequence[str]) -> EncodedPrompts:
        """Keys and values of texts, one row each; a text that comes several times is computed once."""
        texts = list(dict.fromkeys(prompts))
        rows = [self.prompt_ids(text) for text in texts]
        length = max(map(len, rows))
        ids = np.array([[self.config["pad_token_id"]] * (length - len(row)) + row for row in rows])
        seen = np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows])
        # Positions are those of a text of full length, so that an image always begins at the same one.
        end = self.config["max_text_length"] + 1
        past = next(node for node in self.transformer.get_inputs() if node.name == "past_keys")
        layers, _, heads, _, head_dim = past.shape
        nothing = np.zeros((layers, len(rows), heads, 0, head_dim), self.number_type)
        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True  # leave the logits out
        keys, values = self.transformer.run(
            ["keys", "values"],
            {
                "input_ids": ids,
                "position_ids": np.tile(np.arange(end - length, end), (len(rows), 1)),
                "attention_mask": np.tri(length, dtype=bool) & seen[:, None],
                "past_keys": nothing,
                "past_values": nothing,
            },
            options,
        )
        index = [texts.index(prompt) for prompt in prompts]
        return EncodedPrompts(keys[:, index], values[:, index], seen[index])

    @property
    def number_type(self) -> type:
        """The dtype of keys and values."""
        return np.float16 if self.config["dtype"] == "float16" else np.float32

    # Codes

    def predict_codes(self, tokens: np.ndarray, prompts: EncodedPrompts, guidance_scale: float) -> np.ndarray:
        """
        Logits (batch, tokens, codebook_size) of codes (batch, tokens), which are `codebook_size` where unknown.

        With twice as many rows in `prompts` they are guided: `g c - (g - 1) u`.
        """
        config = self.config
        unknown = tokens == config["codebook_size"]
        ids = np.where(unknown, config["mask_token_id"], tokens + config["image_token_offset"])
        ids = np.pad(ids, ((0, 0), (1, 1)), constant_values=((0, 0), (config["soi_token_id"], config["eoi_token_id"])))
        rows = len(prompts.seen)
        ids = np.tile(ids, (rows // len(ids), 1))
        length = ids.shape[1]
        first = config["max_text_length"] + 1
        seen = np.pad(prompts.seen, ((0, 0), (0, length)), constant_values=True)  # an image sees itself in full
        (logits,) = self.transformer.run(
            ["logits"],
            {
                "input_ids": ids,
                "position_ids": np.tile(np.arange(first, first + length), (rows, 1)),
                "attention_mask": np.repeat(seen[:, None], length, axis=1),
                "past_keys": prompts.keys,
                "past_values": prompts.values,
            },
        )
        logits = logits[:, 1:-1]  # without soi and eoi
        if rows == len(tokens):
            return logits
        conditional, unconditional = np.split(logits, 2)
        return guidance_scale * conditional - (guidance_scale - 1) * unconditional

    def fill_in(
        self,
        tokens: np.ndarray,
        prompts: EncodedPrompts,
        steps: int,
        guidance_scale: float,
        temperature: float,
        draws: Draws,
    ) -> np.ndarray:
        """
        Fill in the unknown codes of (batch, tokens), the surest ones first (MaskGIT, arXiv:2202.04200).

        Each step draws a code for every unknown place, scores it by `log p + temperature * gumbel`, and makes the worst
        of them unknown again, as many as the masking schedule says.
        """
        mask = self.config["codebook_size"]
        num_tokens = tokens.shape[1]
        for step, scale in enumerate(temperatures(temperature, steps, self.config["temperature_rule"])):
            unknown = tokens == mask
            if not unknown.any():
                break
            probabilities = softmax(self.predict_codes(tokens, prompts, guidance_scale))
            drawn = draws.codes(probabilities)
            guess = np.where(unknown, drawn, tokens)
            noise = -np.log(np.maximum(-np.log(np.maximum(draws.uniform(tokens.shape), 1e-20)), 1e-20))
            if step == steps - 1:
                return guess
            chosen = np.take_along_axis(probabilities, drawn[..., None], -1)[..., 0]
            confidence = np.log(np.maximum(chosen, 1e-20)) + np.float32(scale) * noise
            confidence = np.where(unknown, confidence, np.inf)  # what is known stays
            share = masking_share(self.config["masking_schedule"], (step + 1) / steps)
            count = np.minimum(unknown.sum(-1, keepdims=True) - 1, int(np.float32(num_tokens) * share)).clip(min=1)
            cut_off = np.take_along_axis(np.sort(confidence, -1), count.clip(max=num_tokens - 1), -1)
            tokens = np.where((confidence < cut_off) & unknown, mask, guess)
        return tokens

    # Images

    def decode(self, tokens: np.ndarray) -> list[Image.Image]:
        """Codes (batch, h, w) to images."""
        (pixels,) = self.image_decoder.run(["pixel_values"], {"image_tokens": tokens})  # (batch, 3, H, W) in [-1, 1]
        pixels = np.round((pixels / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8)
        return [Image.fromarray(image) for image in pixels.transpose(0, 2, 3, 1)]

    def encode(self, images: Sequence[Image.Image], grid: tuple[int, int] | None = None) -> np.ndarray:
        """Images to codes (batch, h, w); they are scaled and cut to the grid, the trained one by default."""
        height, width = (side * self.config["downsampling"] for side in grid or self.config["grid"])
        fitted = [ImageOps.fit(one.convert("RGB"), (width, height), Image.Resampling.BICUBIC) for one in images]
        pixels = np.stack([np.asarray(one, np.float32) for one in fitted]).transpose(0, 3, 1, 2) / 127.5 - 1
        (tokens,) = self.image_encoder.run(["image_tokens"], {"pixel_values": pixels})
        return tokens

    def __call__(
        self,
        prompts: Sequence[str],
        negative_prompt: str = "",
        size: tuple[int, int] | None = None,
        steps: int = 18,
        guidance_scale: float = 2.75,
        temperature: float | None = None,
        draws: Draws | None = None,
    ) -> list[Image.Image]:
        """
        One image for each of `prompts`. The arguments are those of showo-hf's pipeline.

        Args:
            size: height and width in pixels, multiples of the downsampling; the trained size by default.
            temperature: noise on the choice of codes; the model's own by default.

        Raises:
            ValueError: for a size that does not fit.
        """
        factor = self.config["downsampling"]
        if size is not None and any(side < factor or side % factor for side in size):
            raise ValueError(f"`size` must be two positive multiples of {factor}, got {size}.")
        height, width = self.config["grid"] if size is None else (side // factor for side in size)
        texts = list(prompts)
        if guidance_scale > 1:
            texts += [negative_prompt] * len(prompts)
        temperature = self.config["temperature"] if temperature is None else temperature
        unknown = np.full((len(prompts), height * width), self.config["codebook_size"])
        encoded = self.encode_prompts(texts)
        tokens = self.fill_in(unknown, encoded, steps, guidance_scale, temperature, draws or Draws())
        return self.decode(tokens.reshape(-1, height, width))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def temperatures(scale: float, steps: int, rule: str) -> list[float]:
    """The temperature of each step: falling to 0 in a line, or, by the rule "compound", their product so far."""
    left = [1 - (step + 1) / steps for step in range(steps)]
    return [scale * (math.prod(left[: step + 1]) if rule == "compound" else left[step]) for step in range(steps)]


def masking_share(schedule: str, ratio: float) -> np.float32:
    """The share of codes that are unknown when the share `ratio` of the steps is done: "cosine", "linear" and so on."""
    done = np.float32(ratio)
    if schedule == "cosine":
        return np.float32(math.cos(np.float32(done * np.float32(math.pi)) / np.float32(2)))
    if schedule == "sigmoid":
        first, last, here = (np.float32(1 / (1 + math.exp(-x))) for x in (-3.0, 3.0, done * np.float32(6) - 3))
        share = (last - here) / (last - first)
    else:
        share = 1 - done ** np.float32(1 if schedule == "linear" else float(schedule.removeprefix("pow")))
    return np.clip(np.float32(share), np.float32(1e-6), np.float32(1))


# The command


def check_arguments(parser: argparse.ArgumentParser, options: argparse.Namespace):
    """End with the parser's message for a value that makes no sense."""
    for name in ("steps", "num", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"argument --{name}: must be at least 1, got {value}")
    for name in ("guidance", "temperature"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < math.inf:
            parser.error(f"argument --{name}: must be a finite number that is not negative, got {value}")
    if options.seed is not None and options.seed < 0:
        parser.error(f"argument --seed: must not be negative, got {options.seed}")
    if options.output.suffix.lower() not in IMAGE_SUFFIXES:
        parser.error(f"argument --output: must end in {', '.join(IMAGE_SUFFIXES)}, got '{options.output}'")
    if not options.output.parent.is_dir():
        parser.error(f"argument --output: the folder must exist, got '{options.output.parent}'")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Images from words, with ONNX Runtime.")
    add = parser.add_argument
    add("prompt", help="what to show")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="image to write")
    add("--negative-prompt", default="", metavar="WORDS", help="what to keep away from")
    add("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="in pixels (default: the model's)")
    add("--steps", type=int, default=18, metavar="N", help="steps from nothing to an image (default: 18)")
    add("--guidance", type=float, default=2.75, metavar="G", help="pull of the words; 1 is none (default: 2.75)")
    add("--temperature", type=float, metavar="T", help="randomness of the order (default: the model's)")
    add("--seed", type=int, metavar="N", help="makes the result repeatable")
    add("--num", type=int, default=1, metavar="N", help="number of images (default: 1)")
    add("--threads", type=int, metavar="N", help="threads that compute (default: all cores)")
    options = parser.parse_args(arguments)
    check_arguments(parser, options)
    try:
        write_images(OnnxShowo(Path(__file__).resolve().parent, options.threads), options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write_images(model: OnnxShowo, options: argparse.Namespace):
    """Make the images one by one, with seeds counting up, and print the files' names."""
    for index in range(options.num):
        seed = None if options.seed is None else options.seed + index
        (image,) = model(
            [options.prompt],
            options.negative_prompt,
            options.size,
            options.steps,
            options.guidance,
            options.temperature,
            Draws(seed),
        )
        path = options.output
        if options.num > 1:
            path = path.with_name(f"{path.stem}-{index}{path.suffix}")
        image.save(path)
        print(path, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
