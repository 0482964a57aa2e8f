"""The key-value cache does not change answers, logits or attention masks. Compared with plain loops over whole sequences."""

import conversations
import pytest
import tiny
import torch
from conversations import (
    IMAGE_LENGTH,
    PROCESSOR,
    ForwardCalls,
    generator,
    grid,
    image,
    random_chat_pipeline,
    text,
    user,
)

from showo_hf import ImageDone, ImageStep


CONVERSATIONS = {
    "text": [user("an owl")],
    "image": [user(grid(1), "a cat")],
    "turns": [
        {"role": "system", "content": "flat style"},
        user(grid(1), grid(2), "two"),
        {"role": "assistant", "content": [text("a"), image(grid(3)), text("b")]},
        user(grid(4), "c"),
    ],
}


# A plain loop, as in the original: each text id runs the whole sequence once, and each image step runs it twice


@torch.no_grad()
def plain_answer(pipe, messages, seed, new_tokens_left, images_left, steps, guidance_scale, do_sample):
    model, config = pipe.model, pipe.model.config
    codebook = slice(config.image_token_offset, config.image_token_offset + config.codebook_size)
    rng = generator(seed)
    prompt = PROCESSOR.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = prompt["input_ids"]
    empty = PROCESSOR.text_to_image([""])["input_ids"]  # padded to full length
    content, text_ids = [], []

    def end_text():
        if text_ids:
            content.append(text(PROCESSOR.tokenizer.decode(text_ids)))
            text_ids.clear()

    while new_tokens_left:
        logits = model(ids).logits[0, -1, : config.image_token_offset]
        logits[config.pad_token_id :] = -torch.inf
        if images_left:
            logits[config.soi_token_id] = model(ids).logits[0, -1, config.soi_token_id]
        token = torch.multinomial(logits.softmax(-1), 1, generator=rng) if do_sample else logits.argmax()[None]
        if token == config.eos_token_id:
            break
        if token != config.soi_token_id:
            new_tokens_left -= 1
            text_ids.append(token.item())
            ids = torch.cat([ids, token[None]], dim=1)
            continue
        images_left -= 1
        end_text()
        masked = torch.full((1, tiny.SIDE**2), config.mask_token_id)
        soi, eoi = (torch.full((1, 1), i) for i in (config.soi_token_id, config.eoi_token_id))
        image_ids = masked
        pipe.scheduler.set_timesteps(steps)
        for timestep in pipe.scheduler.timesteps:
            whole = [torch.cat([ids, soi, image_ids, eoi], dim=1), empty]
            whole[1][:, -IMAGE_LENGTH + 1 : -1] = image_ids
            c, u = (model(one).logits[:, -IMAGE_LENGTH + 1 : -1, codebook] for one in whole)
            guided = guidance_scale * c - (guidance_scale - 1) * u if guidance_scale > 1 else c
            sample = torch.where(image_ids == config.mask_token_id, config.codebook_size, image_ids - codebook.start)
            sample = pipe.scheduler.step(guided, timestep, sample, generator=rng).prev_sample
            image_ids = torch.where(sample == config.codebook_size, config.mask_token_id, sample + codebook.start)
        ids = torch.cat([ids, soi, image_ids, eoi], dim=1)
        content.append(image((image_ids - codebook.start).view(tiny.SIDE, tiny.SIDE)))
    end_text()
    return content


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("do_sample, guidance_scale", [(True, 2.75), (True, 1.0), (False, 6.0)])
def test_cached_answers_equal_the_plain_loop(backbone, messages, do_sample, guidance_scale):
    pipe = random_chat_pipeline(backbone)
    options = {"guidance_scale": guidance_scale, "do_sample": do_sample, "output_type": "latent"}
    ours = pipe(
        messages, max_new_tokens=10, max_images=3, num_inference_steps=4, generator=generator(1), **options
    ).content
    assert conversations.same_parts(ours, plain_answer(pipe, messages, 1, 10, 3, 4, guidance_scale, do_sample))


def test_the_cases_above_contain_images_between_text():
    content = random_chat_pipeline()(
        "an owl", max_new_tokens=10, do_sample=True, generator=generator(1), num_inference_steps=2
    ).content
    assert {"text", "image"} <= {part["type"] for part in content[1:]} and content[0]["type"] == "text"


# Logits and attention masks


class RecordedCalls:
    """Records the ids and logits of model calls in a `with` block, without image steps and the empty prompt."""

    def __init__(self, model):
        self.model, self.ids, self.logits = model, [], {}

    def __enter__(self):
        self.hook = self.model.register_forward_hook(self.record, with_kwargs=True)
        return self

    def __exit__(self, *error):
        self.hook.remove()

    def record(self, model, args, kwargs, output):
        if not kwargs.get("codebook_only"):
            self.ids += args[0][0].tolist()
            self.logits[len(self.ids) - 1] = output.logits[0, -1]


def expected_attention_mask(ids, config) -> torch.Tensor:
    """
    The mask of shape (length, length): text is causal, and the positions of an image (with its `mmu`) see each other.
    """
    block, number, inside = [], 0, False
    for i, token in enumerate(ids):
        if token == config.soi_token_id or (token == config.mmu_token_id and ids[i + 1] == config.soi_token_id):
            inside, number = True, number + (not inside)
        block.append(number if inside else -i - 1)
        inside &= token != config.eoi_token_id
    return torch.tensor([[j <= i or block[i] == block[j] for j in range(len(ids))] for i in range(len(ids))])


@torch.no_grad()
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_cached_logits_equal_one_forward_pass(backbone, messages):
    pipe = random_chat_pipeline(backbone, soi=8.0)
    options = {"do_sample": True, "generator": generator(2), "num_inference_steps": 3}
    with RecordedCalls(pipe.model) as recorded:
        pipe(messages, max_new_tokens=12, max_images=3, **options)
    ids, logits = recorded.ids, recorded.logits
    assert sum(token == PROCESSOR.soi_token_id for token in ids) >= 2
    visible = expected_attention_mask(ids, pipe.model.config)
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    whole = pipe.model(torch.tensor([ids]), attention_mask=mask[None, None]).logits[0]
    for position, row in logits.items():
        torch.testing.assert_close(row, whole[position], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole, pipe.model(torch.tensor([ids])).logits[0], rtol=1e-4, atol=1e-4)


def test_every_token_of_a_previous_image_changes_later_logits():
    pipe = random_chat_pipeline(soi=-1e4)
    image_tokens = grid(1)
    logits = {}
    for position in [None, (0, 0), (1, 2), (tiny.SIDE - 1, tiny.SIDE - 1)]:
        changed = image_tokens.clone()
        if position is not None:
            changed[position] = (changed[position] + 1) % tiny.CODES
        messages = [user("a"), {"role": "assistant", "content": [image(changed)]}, user("b")]
        with RecordedCalls(pipe.model) as recorded:
            pipe(messages, max_new_tokens=1)
        (logits[position],) = recorded.logits.values()
    plain = logits.pop(None)
    assert all((row - plain).abs().max() > 1e-3 for row in logits.values())


# Number of model calls


@pytest.mark.parametrize("guidance_scale, branches", [(1.0, 1), (2.75, 2)])
def test_each_position_runs_through_the_model_only_once(guidance_scale, branches):
    pipe = random_chat_pipeline()
    calls, positions = ForwardCalls(pipe), []
    pipe.model.model.register_forward_hook(
        lambda module, args, kwargs, output: positions.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    messages = CONVERSATIONS["turns"]
    steps = 4
    events = list(
        pipe.stream(
            messages,
            max_new_tokens=8,
            max_images=2,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            do_sample=True,
            generator=generator(1),
        )
    )
    prompt = len(pipe.token_ids(messages))
    empty = PROCESSOR.text_to_image_prefix([""])["input_ids"].shape[1]
    num_images = sum(isinstance(event, ImageDone) for event in events)
    assert num_images == 2 and sum(isinstance(event, ImageStep) for event in events) == num_images * steps
    # Every text id runs except the last one. Each image runs once per step, with all branches, and once when finished.
    expected = prompt + 7 + num_images * IMAGE_LENGTH * (steps + 1) + (empty if branches == 2 else 0)
    assert sum(positions) == expected
    assert calls.count((1, prompt)) == 1 and calls.count((1, empty)) == branches - 1
    step_calls = num_images * steps
    assert calls.count((branches, IMAGE_LENGTH)) == step_calls + (num_images if branches == 1 else 0)
    assert calls.count((1, IMAGE_LENGTH)) == num_images + (step_calls if branches == 1 else 0)


def test_image_logits_cover_only_masked_tokens_and_the_codebook():
    pipe, shapes, num_masked = random_chat_pipeline(), [], [tiny.SIDE**2]
    pipe.model.register_forward_hook(
        lambda module, args, kwargs, output: shapes.append((kwargs.get("codebook_only"), tuple(output.logits.shape))),
        with_kwargs=True,
    )
    options = {"max_images": 1, "num_inference_steps": 3, "do_sample": True, "generator": generator(1)}
    for event in pipe.stream("an owl", max_new_tokens=6, **options):
        if isinstance(event, ImageStep):
            num_masked.append(int((event.tokens == tiny.CODES).sum()))
    vocab_size = pipe.model.config.vocab_size
    assert {shape for codebook_only, shape in shapes if not codebook_only} == {(1, 1, vocab_size)}
    step_shapes = [shape for codebook_only, shape in shapes if codebook_only][1:]  # the first is the empty prompt
    # Factor 2: a conditional and an unconditional row.
    assert step_shapes == [(2 * count, tiny.CODES) for count in num_masked[:-1]]
