"""Small models that answer in text and images, and what the tests of such answers share."""

from functools import cache
from pathlib import Path

import numpy as np
import tiny
import torch
from PIL import Image

from showo_hf import MaskGITScheduler, ShowoAnyToAnyPipeline, ShowoForCausalLM, ShowoProcessor


IMAGE_LENGTH = tiny.SIDE**2 + 2  # soi, codes, eoi
GOLDEN = Path(__file__).parent / "golden"
PROCESSOR = tiny.processor()
BYTES = slice(1, 257)  # the ids of single bytes


OPTIONS = {"num_inference_steps": 3, "max_new_tokens": 10, "max_images": 2, "do_sample": True, "output_type": "latent"}


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def image(pil_image) -> dict:
    return {"type": "image", "image": pil_image}


def grid(seed=0, shape=(tiny.SIDE, tiny.SIDE)) -> torch.LongTensor:
    return torch.randint(tiny.CODES, shape, generator=generator(seed))


def pixels(seed=0, size=(16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), "uint8"))


def user(*parts) -> dict:
    return {"role": "user", "content": [text(part) if isinstance(part, str) else image(part) for part in parts]}


def make_pipeline(model: ShowoForCausalLM, processor: ShowoProcessor = PROCESSOR, **options) -> ShowoAnyToAnyPipeline:
    pipe = ShowoAnyToAnyPipeline(model, processor, MaskGITScheduler(mask_token_id=tiny.CODES, **options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def chatty(backbone="phi", soi=5.0, context=512, **bias: float) -> ShowoAnyToAnyPipeline:
    """
    A random model that writes letters, and often opens an image: `soi` and `bias` of other special ids are added to
    their scores.
    """
    options = {"max_position_embeddings": context}
    model = tiny.showo(backbone, text_ids=PROCESSOR.pad_token_id, lm_head_bias=True, text_options=options)
    with torch.no_grad():
        model.lm_head.bias.zero_()
        model.lm_head.bias[BYTES] = -1e4  # single bytes are no letters
        for name, value in {"soi": soi, **bias}.items():
            model.lm_head.bias[getattr(PROCESSOR, f"{name}_token_id")] = value
    return make_pipeline(model)


def lessons() -> list[list[dict]]:
    """Conversations in which each kind of answer comes, before and after others; the images are any."""

    def said(*parts: str | torch.Tensor) -> dict:
        return {**user(*parts), "role": "assistant"}

    hearts = [user("two hearts"), said("a heart:", grid(), "one more:", grid())]
    owl = [user("an owl"), said(grid())]
    return [
        [*hearts, user("what?"), said("two red hearts.")],
        [*owl, *hearts],
        [user(grid(), "what?"), said("an owl."), *owl],
    ]


@cache
def taught_model() -> ShowoForCausalLM:
    """A model that has learnt the lessons: it answers "two hearts" with text and two images, "what?" with text."""
    batch = PROCESSOR.apply_chat_template(
        lessons(),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding_side": "right"},
    )
    ids = batch["input_ids"]
    is_code = ids >= PROCESSOR.image_token_offset
    said = torch.as_tensor(batch["assistant_masks"]).bool() & ~is_code & (ids != PROCESSOR.eoi_token_id)
    torch.manual_seed(0)
    model = ShowoForCausalLM(tiny.showo_config("phi", text_ids=PROCESSOR.pad_token_id))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    draws = generator()
    for _ in range(150):
        codes = torch.randint(tiny.CODES, ids.shape, generator=draws) + PROCESSOR.image_token_offset
        shown = torch.where(is_code, codes, ids)
        model(shown, labels=torch.where(said, shown, -100), use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def taught() -> ShowoAnyToAnyPipeline:
    """A pipeline of its own around the taught model."""
    return make_pipeline(taught_model())


def answer(pipe: ShowoAnyToAnyPipeline, messages="an owl", seed=0, **kwargs):
    """A short answer with drawn words; `kwargs` go before `OPTIONS`."""
    return pipe(messages, **({"generator": generator(seed)} | OPTIONS | kwargs))


class Calls(list):
    """The shape of the ids at each call of the model."""

    def __init__(self, pipe: ShowoAnyToAnyPipeline):
        super().__init__()
        self.handle = pipe.model.register_forward_pre_hook(self.note, with_kwargs=True)

    def note(self, model, args, kwargs):
        self.append(tuple((args[0] if args else kwargs["input_ids"]).shape))


def parts_of(content: list[dict]) -> list[str | torch.Tensor]:
    """Texts and images alone."""
    return [part[part["type"]] for part in content]


def same_parts(one: list[dict], other: list[dict]) -> bool:
    """Whether two contents have the same texts and the same token grids."""
    pairs = list(zip(parts_of(one), parts_of(other), strict=False))
    return len(one) == len(other) and all(
        torch.equal(a, b)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else a is b or str(a) == str(b)
        for a, b in pairs
    )
