"""Helpers for tests of conversations: small chat pipelines, messages, and counted model calls."""

from functools import cache
from pathlib import Path

import numpy as np
import tiny
import torch
from PIL import Image

from showo_hf import MaskGITScheduler, ShowoAnyToAnyPipeline, ShowoForCausalLM, ShowoProcessor


IMAGE_LENGTH = tiny.SIDE**2 + 2  # soi, image tokens, eoi
GOLDEN = Path(__file__).parent / "golden"
PROCESSOR = tiny.processor()
BYTE_IDS = slice(1, 257)  # ids of the tokens that stand for one byte


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


def make_chat_pipeline(
    model: ShowoForCausalLM, processor: ShowoProcessor = PROCESSOR, **options
) -> ShowoAnyToAnyPipeline:
    pipe = ShowoAnyToAnyPipeline(model, processor, MaskGITScheduler(mask_token_id=tiny.CODES, **options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def random_chat_pipeline(backbone="phi", soi=5.0, context=512, **bias: float) -> ShowoAnyToAnyPipeline:
    """
    A pipeline with random weights that writes letters and often starts an image.

    `soi` and `bias` are added to the logits of the special tokens with these names.
    """
    options = {"max_position_embeddings": context}
    model = tiny.showo(backbone, text_ids=PROCESSOR.pad_token_id, lm_head_bias=True, text_options=options)
    with torch.no_grad():
        model.lm_head.bias.zero_()
        model.lm_head.bias[BYTE_IDS] = -1e4  # these tokens are not letters
        for name, value in {"soi": soi, **bias}.items():
            model.lm_head.bias[getattr(PROCESSOR, f"{name}_token_id")] = value
    return make_chat_pipeline(model)


def training_conversations() -> list[list[dict]]:
    """Conversations with each kind of answer in several orders. The images are random."""

    def assistant(*parts: str | torch.Tensor) -> dict:
        return {**user(*parts), "role": "assistant"}

    hearts = [user("two hearts"), assistant("a heart:", grid(), "one more:", grid())]
    owl = [user("an owl"), assistant(grid())]
    return [
        [*hearts, user("what?"), assistant("two red hearts.")],
        [*owl, *hearts],
        [user(grid(), "what?"), assistant("an owl."), *owl],
    ]


@cache
def trained_model() -> ShowoForCausalLM:
    """A model trained on `training_conversations`: "two hearts" gives text and two images, "what?" gives text."""
    batch = PROCESSOR.apply_chat_template(
        training_conversations(),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding_side": "right"},
    )
    ids = batch["input_ids"]
    is_image_token = ids >= PROCESSOR.image_token_offset
    is_label = torch.as_tensor(batch["assistant_masks"]).bool() & ~is_image_token & (ids != PROCESSOR.eoi_token_id)
    torch.manual_seed(0)
    model = ShowoForCausalLM(tiny.showo_config("phi", text_ids=PROCESSOR.pad_token_id))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rng = generator()
    for _ in range(150):
        image_tokens = torch.randint(tiny.CODES, ids.shape, generator=rng) + PROCESSOR.image_token_offset
        inputs = torch.where(is_image_token, image_tokens, ids)
        model(inputs, labels=torch.where(is_label, inputs, -100), use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def trained_chat_pipeline() -> ShowoAnyToAnyPipeline:
    """A new pipeline around the shared trained model."""
    return make_chat_pipeline(trained_model())


def answer(pipe: ShowoAnyToAnyPipeline, messages="an owl", seed=0, **kwargs):
    """A short answer with sampled text. `kwargs` override `OPTIONS`."""
    return pipe(messages, **({"generator": generator(seed)} | OPTIONS | kwargs))


class ForwardCalls(list):
    """Records the shape of the input ids at each call of the model. Remove `handle` to stop."""

    def __init__(self, pipe: ShowoAnyToAnyPipeline):
        super().__init__()
        self.handle = pipe.model.register_forward_pre_hook(self.record, with_kwargs=True)

    def record(self, model, args, kwargs):
        self.append(tuple((args[0] if args else kwargs["input_ids"]).shape))


def part_values(content: list[dict]) -> list[str | torch.Tensor]:
    """The texts and images of a content, in order."""
    return [part[part["type"]] for part in content]


def same_parts(one: list[dict], other: list[dict]) -> bool:
    """Whether two contents have the same texts and the same token grids."""
    pairs = list(zip(part_values(one), part_values(other), strict=False))
    return len(one) == len(other) and all(
        torch.equal(a, b)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else a is b or str(a) == str(b)
        for a, b in pairs
    )
