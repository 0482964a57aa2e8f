"""Text to image with the ONNX graphs beside this file. torch is not needed:

    pip install numpy onnxruntime pillow tokenizers
    python generate.py "a red apple to the left of a blue car" --output scene.png

In Python, `OnnxShowo(folder)` also encodes images to image tokens and decodes them. This file imports nothing from
showo-hf, so that a folder written by `python -m showo_hf.conversion.export_onnx` works without it.
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
    The key-value cache of the prompts, computed once for all steps.

    Args:
        keys, values: (layers, rows, heads, length, head_dim). With guidance, the second half of the rows is
            unconditional.
        seen: (rows, length), False at pads.
    """

    keys: np.ndarray
    values: np.ndarray
    seen: np.ndarray


class Draws:
    """The random numbers of an image. The same seed gives the same numbers."""

    def __init__(self, seed: int | None = None):
        self.generator = np.random.default_rng(seed)

    def tokens(self, probabilities: np.ndarray) -> np.ndarray:
        """Sample each distribution once: (batch, tokens, codebook_size) to (batch, tokens)."""
        cumulative = probabilities.cumsum(-1, dtype=np.float64)
        limits = self.generator.random((*probabilities.shape[:-1], 1)) * cumulative[..., -1:]
        return (cumulative < limits).sum(-1)

    def uniform(self, shape: tuple[int, ...]) -> np.ndarray:
        """Uniform noise in [0, 1) of the given shape, float32."""
        return self.generator.random(shape, dtype=np.float32)


class OnnxShowo:
    """
    A text-to-image model as ONNX graphs, run by ONNX Runtime on the CPU. Each graph is loaded on first use.

    Args:
        folder: contains the graphs and `onnx_config.json`.
        threads: number of threads; by default one for each core.

    Raises:
        FileNotFoundError: if `folder` has no `onnx_config.json`.
    """

    def __init__(self, folder: str | Path, threads: int | None = None):
        self.folder = Path(folder)
        if not (self.folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"`folder` must contain {CONFIG_FILE} and the graphs, got '{folder}'.")
        self.config = json.loads((self.folder / CONFIG_FILE).read_text(encoding="utf-8"))
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads or 0
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.encode_special_tokens = True  # special token names in a prompt are plain text

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

    # Prompts

    def prompt_ids(self, text: str) -> list[int]:
        """The ids of `t2i sot text eot`. A text that is too long is cut at its end, with a warning."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        kept = self.config["max_text_length"] - 2
        if len(ids) > kept:
            warnings.warn(f"A prompt of {len(ids)} ids was cut to {kept}: {text[:60]!r}...", stacklevel=2)
        config = self.config
        return [config["t2i_token_id"], config["sot_token_id"], *ids[:kept], config["eot_token_id"]]

    def encode_prompts(self, prompts: Sequence[str]) -> EncodedPrompts:
        """The keys and values of the prompts, one row each. Equal prompts are computed once."""
        texts = list(dict.fromkeys(prompts))
        rows = [self.prompt_ids(text) for text in texts]
        length = max(map(len, rows))
        ids = np.array([[self.config["pad_token_id"]] * (length - len(row)) + row for row in rows])
        seen = np.array([[False] * (length - len(row)) + [True] * len(row) for row in rows])
        # The text ends at a fixed position, so that the image starts at the same position for every prompt.
        end = self.config["max_text_length"] + 1
        past = next(node for node in self.transformer.get_inputs() if node.name == "past_keys")
        layers, _, heads, _, head_dim = past.shape
        empty = np.zeros((layers, len(rows), heads, 0, head_dim), self.number_type)
        options = onnxruntime.RunOptions()
        options.only_execute_path_to_fetches = True  # skip the logits
        keys, values = self.transformer.run(
            ["keys", "values"],
            {
                "input_ids": ids,
                "position_ids": np.tile(np.arange(end - length, end), (len(rows), 1)),
                "attention_mask": np.tri(length, dtype=bool) & seen[:, None],
                "past_keys": empty,
                "past_values": empty,
            },
            options,
        )
        index = [texts.index(prompt) for prompt in prompts]
        return EncodedPrompts(keys[:, index], values[:, index], seen[index])

    @property
    def number_type(self) -> type:
        """The dtype of keys and values."""
        return np.float16 if self.config["dtype"] == "float16" else np.float32

    # Image tokens

    def predict_logits(self, tokens: np.ndarray, prompts: EncodedPrompts, guidance_scale: float) -> np.ndarray:
        """
        Logits (batch, tokens, codebook_size) for image tokens (batch, tokens), which are `codebook_size` where masked.

        With twice as many rows in `prompts`, the logits are guided: `g c - (g - 1) u`.
        """
        config = self.config
        masked = tokens == config["codebook_size"]
        ids = np.where(masked, config["mask_token_id"], tokens + config["image_token_offset"])
        ids = np.pad(ids, ((0, 0), (1, 1)), constant_values=((0, 0), (config["soi_token_id"], config["eoi_token_id"])))
        rows = len(prompts.seen)
        ids = np.tile(ids, (rows // len(ids), 1))
        length = ids.shape[1]
        first = config["max_text_length"] + 1
        seen = np.pad(
            prompts.seen, ((0, 0), (0, length)), constant_values=True
        )  # every image position sees the whole image
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

    def denoise(
        self,
        tokens: np.ndarray,
        prompts: EncodedPrompts,
        steps: int,
        guidance_scale: float,
        temperature: float,
        draws: Draws,
    ) -> np.ndarray:
        """
        Replace the masked tokens of (batch, tokens), the most confident ones first (MaskGIT, arXiv:2202.04200).

        Each step samples every masked token, with the confidence `log p + temperature * gumbel`. It masks the least
        confident ones again, and the masking schedule gives their number.
        """
        mask = self.config["codebook_size"]
        num_tokens = tokens.shape[1]
        for step, scale in enumerate(temperatures(temperature, steps, self.config["temperature_rule"])):
            masked = tokens == mask
            if not masked.any():
                break
            probabilities = softmax(self.predict_logits(tokens, prompts, guidance_scale))
            drawn = draws.tokens(probabilities)
            guess = np.where(masked, drawn, tokens)
            noise = -np.log(np.maximum(-np.log(np.maximum(draws.uniform(tokens.shape), 1e-20)), 1e-20))
            if step == steps - 1:
                return guess
            chosen = np.take_along_axis(probabilities, drawn[..., None], -1)[..., 0]
            confidence = np.log(np.maximum(chosen, 1e-20)) + np.float32(scale) * noise
            confidence = np.where(masked, confidence, np.inf)  # known tokens stay
            share = masked_share(self.config["masking_schedule"], (step + 1) / steps)
            count = np.minimum(masked.sum(-1, keepdims=True) - 1, int(np.float32(num_tokens) * share)).clip(min=1)
            cut_off = np.take_along_axis(np.sort(confidence, -1), count.clip(max=num_tokens - 1), -1)
            tokens = np.where((confidence < cut_off) & masked, mask, guess)
        return tokens

    # Images

    def decode(self, tokens: np.ndarray) -> list[Image.Image]:
        """Image tokens (batch, h, w) to images."""
        (pixels,) = self.image_decoder.run(["pixel_values"], {"image_tokens": tokens})  # (batch, 3, H, W) in [-1, 1]
        pixels = np.round((pixels / 2 + 0.5).clip(0, 1) * 255).astype(np.uint8)
        return [Image.fromarray(image) for image in pixels.transpose(0, 2, 3, 1)]

    def encode(self, images: Sequence[Image.Image], grid: tuple[int, int] | None = None) -> np.ndarray:
        """
        Images to image tokens (batch, h, w). Images are resized and cropped to the grid, by default the trained one.

        As in showo-hf, the EXIF orientation is applied, and transparent images are put on white.
        """
        height, width = (side * self.config["downsampling"] for side in grid or self.config["grid"])
        fitted = [ImageOps.fit(to_rgb(one), (width, height), Image.Resampling.BICUBIC) for one in images]
        pixels = np.stack([np.asarray(one, np.float32) for one in fitted]).transpose(0, 3, 1, 2) / 127.5 - 1
        (tokens,) = self.image_encoder.run(["image_tokens"], {"pixel_values": pixels})
        return tokens

    def __call__(
        self,
        prompts: Sequence[str],
        negative_prompt: str = "",
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        draws: Draws | None = None,
    ) -> list[Image.Image]:
        """
        One image for each of `prompts`. The arguments mean the same as in showo-hf's pipeline.

        Args:
            size: height and width in pixels, multiples of the downsampling; by default the trained size.
            steps, guidance_scale: by default those of the exported model.
            temperature: scale of the noise on the confidences; by default the exported scheduler's.

        Raises:
            ValueError: if `size` is not two positive multiples of the downsampling, or `steps` is below 1.
        """
        factor = self.config["downsampling"]
        if size is not None and any(side < factor or side % factor for side in size):
            raise ValueError(f"`size` must be two positive multiples of {factor}, got {size}.")
        height, width = self.config["grid"] if size is None else (side // factor for side in size)
        steps = self.config["steps"] if steps is None else steps
        if steps < 1:
            raise ValueError(f"`steps` must be at least 1, got {steps}.")
        guidance_scale = self.config["guidance_scale"] if guidance_scale is None else guidance_scale
        texts = list(prompts)
        if guidance_scale > 1:
            texts += [negative_prompt] * len(prompts)
        temperature = self.config["temperature"] if temperature is None else temperature
        tokens = np.full((len(prompts), height * width), self.config["codebook_size"])
        encoded = self.encode_prompts(texts)
        tokens = self.denoise(tokens, encoded, steps, guidance_scale, temperature, draws or Draws())
        return self.decode(tokens.reshape(-1, height, width))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image as RGB, turned by its EXIF orientation, with transparent pixels on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def temperatures(scale: float, steps: int, rule: str) -> list[float]:
    """
    The temperature of each step. The rule is "linear" or "compound", see `MaskGITScheduler`.

    Raises:
        ValueError: for any other rule.
    """
    if rule not in ("compound", "linear"):
        raise ValueError(f"`temperature_rule` must be 'compound' or 'linear', got {rule!r}.")
    left = [1 - (step + 1) / steps for step in range(steps)]
    return [scale * (math.prod(left[: step + 1]) if rule == "compound" else left[step]) for step in range(steps)]


def masked_share(schedule: str, ratio: float) -> np.float32:
    """
    The share of masked tokens after the share `ratio` of the steps, in [0, 1].

    Computed in float32, as in `MaskGITScheduler`, so that the numbers of tokens are equal.

    Args:
        schedule: "arccos", "cosine", "linear", "sigmoid" or "pow<n>" with a positive number n.

    Raises:
        ValueError: for any other schedule.
    """
    done = np.float32(ratio)
    if schedule == "cosine":
        return np.float32(math.cos(np.float32(done * np.float32(math.pi)) / np.float32(2)))
    if schedule == "arccos":
        return np.float32(np.float32(math.acos(done)) * np.float32(2)) / np.float32(math.pi)
    if schedule == "sigmoid":
        first, last, here = (np.float32(1 / (1 + math.exp(-x))) for x in (-3.0, 3.0, done * np.float32(6) - 3))
        share = (last - here) / (last - first)
    else:
        share = 1 - done ** exponent(schedule)
    return np.clip(np.float32(share), np.float32(1e-6), np.float32(1))


def exponent(schedule: str) -> np.float32:
    """The power of the schedule "linear" or "pow<n>"; `ValueError` for any other."""
    try:
        value = 1.0 if schedule == "linear" else float(schedule.removeprefix("pow"))
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf or not schedule.startswith(("linear", "pow")):
        raise ValueError(
            f"`masking_schedule` must be 'arccos', 'cosine', 'linear', 'sigmoid' or 'pow<n>' with n > 0, got {schedule!r}."
        )
    return np.float32(value)


# The command


def check_arguments(parser: argparse.ArgumentParser, options: argparse.Namespace):
    """End with an error of the parser if a value is out of range."""
    for name in ("steps", "num", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            parser.error(f"argument --{name}: must be at least 1, got {value}")
    for name in ("guidance", "temperature"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < math.inf:
            parser.error(f"argument --{name}: must be a finite number, at least 0, got {value}")
    if options.seed is not None and options.seed < 0:
        parser.error(f"argument --seed: must be at least 0, got {options.seed}")
    if options.output.suffix.lower() not in IMAGE_SUFFIXES:
        parser.error(f"argument --output: must end in {', '.join(IMAGE_SUFFIXES)}, got '{options.output}'")
    if not options.output.parent.is_dir():
        parser.error(f"argument --output: the folder must exist, got '{options.output.parent}'")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Text to image with ONNX Runtime.")
    add = parser.add_argument
    add("prompt", help="what the image shows")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="the image to write")
    add("--negative-prompt", default="", metavar="TEXT", help="what the image must not show")
    add("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="in pixels (default: the model's)")
    add("--steps", type=int, metavar="N", help="number of sampling steps (default: the model's)")
    add("--guidance", type=float, metavar="G", help="guidance scale; 1 is off (default: the model's)")
    add("--temperature", type=float, metavar="T", help="scale of the noise on the confidences (default: the model's)")
    add("--seed", type=int, metavar="N", help="seed of the random numbers; the same seed gives the same image")
    add("--num", type=int, default=1, metavar="N", help="number of images (default: 1)")
    add("--threads", type=int, metavar="N", help="number of threads (default: one for each core)")
    options = parser.parse_args(arguments)
    check_arguments(parser, options)
    try:
        write_images(OnnxShowo(Path(__file__).resolve().parent, options.threads), options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write_images(model: OnnxShowo, options: argparse.Namespace):
    """Write the images one by one, each with the next seed, and print the names of the files."""
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
        encoding = sys.stdout.encoding or "utf-8"  # which may lack a character of the name
        print(str(path).encode(encoding, "backslashreplace").decode(encoding), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
