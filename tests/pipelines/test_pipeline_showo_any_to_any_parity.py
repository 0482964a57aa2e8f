"""What the cache saves changes nothing: a plain loop over whole sequences, and the mask and the scores behind each part."""

import pytest
import talking
import tiny
import torch
from talking import IMAGE_LENGTH, PROCESSOR, Calls, chatty, generator, grid, image, text, user

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


# A plain loop, as the original works: for each word, and twice for each step of an image, the whole sequence


@torch.no_grad()
def plain_answer(pipe, messages, seed, words, images, steps, scale, do_sample):
    model, config = pipe.model, pipe.model.config
    codes = slice(config.image_token_offset, config.image_token_offset + config.codebook_size)
    draws = generator(seed)
    prompt = PROCESSOR.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = prompt["input_ids"]
    empty = PROCESSOR.text_to_image([""])["input_ids"]  # padded to full length
    content, said = [], []

    def end_text():
        if said:
            content.append(text(PROCESSOR.tokenizer.decode(said)))
            said.clear()

    while words:
        scores = model(ids).logits[0, -1, : config.image_token_offset]
        scores[config.pad_token_id :] = -torch.inf
        if images:
            scores[config.soi_token_id] = model(ids).logits[0, -1, config.soi_token_id]
        token = torch.multinomial(scores.softmax(-1), 1, generator=draws) if do_sample else scores.argmax()[None]
        if token == config.eos_token_id:
            break
        if token != config.soi_token_id:
            words -= 1
            said.append(token.item())
            ids = torch.cat([ids, token[None]], dim=1)
            continue
        images -= 1
        end_text()
        unknown = torch.full((1, tiny.SIDE**2), config.mask_token_id)
        soi, eoi = (torch.full((1, 1), i) for i in (config.soi_token_id, config.eoi_token_id))
        pil_image = unknown
        pipe.scheduler.set_timesteps(steps)
        for timestep in pipe.scheduler.timesteps:
            whole = [torch.cat([ids, soi, pil_image, eoi], dim=1), empty]
            whole[1][:, -IMAGE_LENGTH + 1 : -1] = pil_image
            c, u = (model(one).logits[:, -IMAGE_LENGTH + 1 : -1, codes] for one in whole)
            guided = scale * c - (scale - 1) * u if scale > 1 else c
            sample = torch.where(pil_image == config.mask_token_id, config.codebook_size, pil_image - codes.start)
            sample = pipe.scheduler.step(guided, timestep, sample, generator=draws).prev_sample
            pil_image = torch.where(sample == config.codebook_size, config.mask_token_id, sample + codes.start)
        ids = torch.cat([ids, soi, pil_image, eoi], dim=1)
        content.append(image((pil_image - codes.start).view(tiny.SIDE, tiny.SIDE)))
    end_text()
    return content


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("do_sample, scale", [(True, 2.75), (True, 1.0), (False, 6.0)])
def test_saving_work_changes_nothing(backbone, messages, do_sample, scale):
    pipe = chatty(backbone)
    options = {"guidance_scale": scale, "do_sample": do_sample, "output_type": "latent"}
    ours = pipe(
        messages, max_new_tokens=10, max_images=3, num_inference_steps=4, generator=generator(1), **options
    ).content
    assert talking.same_parts(ours, plain_answer(pipe, messages, 1, 10, 3, 4, scale, do_sample))


def test_the_tests_above_see_images_in_the_middle_of_text():
    content = chatty()(
        "an owl", max_new_tokens=10, do_sample=True, generator=generator(1), num_inference_steps=2
    ).content
    assert {"text", "image"} <= {part["type"] for part in content[1:]} and content[0]["type"] == "text"


# The scores behind each part, and who sees whom


class Heard:
    """What goes through the model inside a `with`: ids and scores, but for the steps of images and the empty prompt."""

    def __init__(self, model):
        self.model, self.ids, self.scores = model, [], {}

    def __enter__(self):
        self.hook = self.model.register_forward_hook(self.note, with_kwargs=True)
        return self

    def __exit__(self, *error):
        self.hook.remove()

    def note(self, model, args, kwargs, output):
        if not kwargs.get("codebook_only"):
            self.ids += args[0][0].tolist()
            self.scores[len(self.ids) - 1] = output.logits[0, -1]


def seen_by_the_paper_s_rule(ids, config) -> torch.Tensor:
    """(length, length): text sees what came before, an image's positions (and its `mmu`) each other as well."""
    block, number, inside = [], 0, False
    for i, token in enumerate(ids):
        if token == config.soi_token_id or (token == config.mmu_token_id and ids[i + 1] == config.soi_token_id):
            inside, number = True, number + (not inside)
        block.append(number if inside else -i - 1)
        inside &= token != config.eoi_token_id
    return torch.tensor([[j <= i or block[i] == block[j] for j in range(len(ids))] for i in range(len(ids))])


@torch.no_grad()
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_scores_behind_each_part_are_those_of_one_pass_over_all(backbone, messages):
    pipe = chatty(backbone, soi=8.0)
    options = {"do_sample": True, "generator": generator(2), "num_inference_steps": 3}
    with Heard(pipe.model) as heard:
        pipe(messages, max_new_tokens=12, max_images=3, **options)
    ids, scores = heard.ids, heard.scores
    assert sum(token == PROCESSOR.soi_token_id for token in ids) >= 2
    seen = seen_by_the_paper_s_rule(ids, pipe.model.config)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    whole = pipe.model(torch.tensor([ids]), attention_mask=mask[None, None]).logits[0]
    for place, score in scores.items():
        torch.testing.assert_close(score, whole[place], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole, pipe.model(torch.tensor([ids])).logits[0], rtol=1e-4, atol=1e-4)


def test_every_code_of_a_past_image_matters_to_what_follows():
    pipe = chatty(soi=-1e4)
    pil_image = grid(1)
    scores = {}
    for place in [None, (0, 0), (1, 2), (tiny.SIDE - 1, tiny.SIDE - 1)]:
        changed = pil_image.clone()
        if place is not None:
            changed[place] = (changed[place] + 1) % tiny.CODES
        messages = [user("a"), {"role": "assistant", "content": [image(changed)]}, user("b")]
        with Heard(pipe.model) as heard:
            pipe(messages, max_new_tokens=1)
        (scores[place],) = heard.scores.values()
    plain = scores.pop(None)
    assert all((score - plain).abs().max() > 1e-3 for score in scores.values())


# The work that is done


@pytest.mark.parametrize("guidance_scale, branches", [(1.0, 1), (2.75, 2)])
def test_nothing_of_the_past_goes_through_the_model_again(guidance_scale, branches):
    pipe = chatty()
    calls, positions = Calls(pipe), []
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
    images = sum(isinstance(event, ImageDone) for event in events)
    assert images == 2 and sum(isinstance(event, ImageStep) for event in events) == images * steps
    # All but the last word are read; each image at each step, all branches at once, and when it is finished.
    expected = prompt + 7 + images * IMAGE_LENGTH * (steps + 1) + (empty if branches == 2 else 0)
    assert sum(positions) == expected
    assert calls.count((1, prompt)) == 1 and calls.count((1, empty)) == branches - 1
    of_steps = images * steps
    assert calls.count((branches, IMAGE_LENGTH)) == of_steps + (images if branches == 1 else 0)
    assert calls.count((1, IMAGE_LENGTH)) == images + (of_steps if branches == 1 else 0)


def test_only_unknown_tokens_and_codes_run_through_the_head():
    pipe, shapes, unknown = chatty(), [], [tiny.SIDE**2]
    pipe.model.register_forward_hook(
        lambda module, args, kwargs, output: shapes.append((kwargs.get("codebook_only"), tuple(output.logits.shape))),
        with_kwargs=True,
    )
    options = {"max_images": 1, "num_inference_steps": 3, "do_sample": True, "generator": generator(1)}
    for event in pipe.stream("an owl", max_new_tokens=6, **options):
        if isinstance(event, ImageStep):
            unknown.append(int((event.tokens == tiny.CODES).sum()))
    vocab_size = pipe.model.config.vocab_size
    assert {shape for codes, shape in shapes if not codes} == {(1, 1, vocab_size)}
    of_steps = [shape for codes, shape in shapes if codes][1:]  # the first is the empty prompt
    assert of_steps == [(2 * count, tiny.CODES) for count in unknown[:-1]]  # with the words, and without
