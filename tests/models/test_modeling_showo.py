"""Forward pass and generation: parity with the original, logits, images, losses, invalid inputs."""

import random

import pytest
import tiny
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import CLIPVisionConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from showo_hf.models.omni_attention import image_block_ids


# Warnings of torch and transformers about uncompiled flex attention.
pytestmark = pytest.mark.filterwarnings("ignore:_compile flag", "ignore:flex_attention called without")

CONFIG = tiny.showo_config()
PAD, T2I, MMU, EOS = CONFIG.pad_token_id, CONFIG.t2i_token_id, CONFIG.mmu_token_id, CONFIG.eos_token_id
MODEL = tiny.showo()
PIXELS = tiny.SIDE * tiny.FACTOR


def some_ids():
    """A text-to-image row and an understanding row."""
    first = [PAD, PAD, T2I, EOS, 5, 7, EOS, *tiny.image(CONFIG, 1)]
    second = [MMU, *tiny.image(CONFIG, 2), EOS, 9, 8, 11, EOS]
    return torch.tensor([first, second + [PAD] * (len(first) - len(second))])


def pixel_values(count=1, seed=0):
    return torch.rand(count, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# Parity with the original


@pytest.mark.parametrize("kind, positions", [("t2i", "positions"), ("mmu", "mmu_positions")])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
@torch.no_grad()
def test_logits_match_the_original(reference, reference_model, implementation, kind, positions):
    kept = torch.tensor(reference.cases["forward"][positions])
    reference_model.set_attn_implementation(implementation)
    try:
        with torch.compiler.set_stance("force_eager"):
            ours = reference_model(reference.tensors[f"forward.{kind}.ids"], logits_to_keep=kept).logits
    finally:
        reference_model.set_attn_implementation("sdpa")
    torch.testing.assert_close(ours, reference.tensors[f"forward.{kind}.logits"], rtol=0, atol=1e-4)


@torch.no_grad()
def test_losses_match_the_original(reference, reference_model):
    output = reference_model(reference.tensors["loss.ids"], labels=reference.tensors["loss.labels"], logits_to_keep=1)
    ours = torch.stack([output.loss_t2i, output.loss_lm, output.loss_mmu])
    torch.testing.assert_close(ours, reference.tensors["loss.values"], rtol=1e-4, atol=0)
    torch.testing.assert_close(output.loss, ours[0] + 0.1 * ours[1] + ours[2])


@pytest.mark.parametrize("case", [0, 1])
def test_greedy_answers_match_the_original(reference, reference_model, case):
    input_ids = reference.tensors[f"mmu.{case}.ids_in"]
    new_ids = reference.tensors[f"mmu.{case}.new_ids"]
    ours = reference_model.generate(input_ids, max_new_tokens=new_ids.shape[1], do_sample=False)
    assert ours[:, input_ids.shape[1] :].tolist() == new_ids.tolist()


# Logits


@torch.no_grad()
def test_codebook_only_is_a_slice_of_all_logits(model):
    ids = some_ids()
    whole = model(ids).logits
    assert whole.shape == (*ids.shape, model.config.vocab_size)
    first = model.config.image_token_offset
    codes = model(ids, codebook_only=True).logits
    torch.testing.assert_close(codes, whole[..., first : first + tiny.CODES])


@torch.no_grad()
def test_logits_to_keep_takes_a_number_or_positions_or_a_mask():
    ids = some_ids()
    whole = MODEL(ids).logits
    kept = torch.tensor([2, 0, 5])
    own_positions = torch.tensor([[0, 3], [7, 1]])
    marked = ids >= CONFIG.image_token_offset
    for keep, expected in (
        (1, whole[:, -1:]),
        (4, whole[:, -4:]),
        (kept, whole[:, kept]),
        (own_positions, torch.stack([whole[0, [0, 3]], whole[1, [7, 1]]])),
        (marked, whole[marked]),
    ):
        torch.testing.assert_close(MODEL(ids, logits_to_keep=keep).logits, expected)


@torch.no_grad()
def test_a_tuple_instead_of_an_output():
    ids = some_ids()
    output = MODEL(ids, labels=ids, use_cache=False)
    as_tuple = MODEL(ids, labels=ids, use_cache=False, return_dict=False)
    assert torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits)


@torch.no_grad()
def test_hidden_states_and_attentions():
    model = tiny.showo("llama")
    model.set_attn_implementation("eager")
    ids = some_ids()
    output = model(ids, output_hidden_states=True, output_attentions=True)
    layers, heads = 2, 4
    assert [tuple(state.shape) for state in output.hidden_states] == [(*ids.shape, 32)] * (layers + 1)
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, heads, ids.shape[1], ids.shape[1])] * layers
    # No position sees a pad, and the first position of an image sees its last.
    assert output.attentions[0][0, :, 2:, :2].abs().max() == 0
    assert output.attentions[0][0, :, 7, -1].min() > 0


# Images


@torch.no_grad()
def test_pixel_values_replace_placeholders():
    row = [MMU, CONFIG.soi_token_id, *[CONFIG.image_token_id] * 16, CONFIG.eoi_token_id, EOS, 4]
    ids = torch.tensor([row, row])
    pixels = pixel_values(2)
    codes = MODEL.image_tokenizer.encode(pixels).image_tokens.flatten(1)
    filled = ids.clone()
    filled[:, 2:18] = codes + CONFIG.image_token_offset
    tokens = MODEL.encode_images(pixels)
    assert tokens.shape == (2, 4, 4) and tokens.dtype == torch.int64
    assert torch.equal(tokens.flatten(1) + CONFIG.image_token_offset, filled[:, 2:18])
    torch.testing.assert_close(MODEL(ids, pixel_values=pixels).logits, MODEL(filled).logits)
    generated = MODEL.generate(ids, pixel_values=pixels, max_new_tokens=3, do_sample=False)
    expected = MODEL.generate(filled, max_new_tokens=3, do_sample=False)
    assert torch.equal(generated[:, len(row) :], expected[:, len(row) :])


def clip_model():
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    return tiny.showo("phi", vision_config=vision, images=False)


@torch.no_grad()
def test_features_of_a_vision_tower_replace_placeholders():
    model = clip_model()
    pixels = pixel_values(1)[..., :8, :8]
    ids = torch.tensor([[MMU, 3, CONFIG.soi_token_id, *[CONFIG.image_token_id] * 4, CONFIG.eoi_token_id, 4, 5]])
    features = model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    assert torch.equal(model.get_image_features(pixels).last_hidden_state, features)
    by_pixels = model(ids, pixel_values=pixels).logits
    torch.testing.assert_close(by_pixels, model(ids, image_features=features).logits)
    # Every position sees the features, even positions before them. The rest is causal.
    other = model(ids, image_features=features.flip(1) * 2).logits
    assert ((by_pixels - other).abs().amax(-1) > 1e-4).all()
    changed = ids.clone()
    changed[0, -2] = 9
    difference = (by_pixels - model(changed, image_features=features).logits).abs().amax(-1)[0]
    assert difference[:-2].max() < 1e-5 and difference[-2:].min() > 1e-4


def test_get_image_features_follows_transformers_5():
    model = clip_model()
    pixels = pixel_values(2)[..., :8, :8]
    output = model.get_image_features(pixels, output_hidden_states=True)
    assert isinstance(output, BaseModelOutputWithPooling)
    assert output.last_hidden_state.shape == (2, 4, 24) and output.pooler_output.shape == (2, 4, 32)
    assert torch.equal(output.pooler_output, model.mm_projector(output.last_hidden_state))
    assert len(output.hidden_states) == 3 and output.hidden_states[0].shape == (2, 5, 24)
    assert not output.last_hidden_state.requires_grad and output.pooler_output.requires_grad
    as_tuple = model.get_image_features(pixels, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 2
    assert torch.equal(as_tuple[0], output.last_hidden_state) and torch.equal(as_tuple[1], output.pooler_output)


def test_decode_images_uses_the_image_tokenizer():
    tokens = MODEL.encode_images(pixel_values(2))
    pixels = MODEL.decode_images(tokens)
    assert pixels.shape == (2, 3, PIXELS, PIXELS) and pixels.abs().max() <= 1
    assert not pixels.requires_grad
    assert torch.equal(pixels, MODEL.image_tokenizer.decode(tokens).sample)


def test_encoding_and_decoding_wake_an_offloaded_model():
    class Counter(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            self.calls += 1
            return args, kwargs

    model, hook = tiny.showo(), Counter()
    add_hook_to_module(model, hook)
    tokens = model.encode_images(pixel_values())
    assert hook.calls == 1
    model.decode_images(tokens)
    assert hook.calls == 2


# Embeddings together with images


def embedded_prompt(model, features: int) -> dict:
    """A prompt with an image, and embeddings of its text that belong to no ids."""
    config = model.config
    block = [config.soi_token_id, *[config.image_token_id] * features, config.eoi_token_id]
    ids = torch.tensor([[MMU, *block, EOS, 4, 5]])
    embeddings = model.get_input_embeddings()(ids).detach()
    embeddings[:, -2:] = embeddings[:, -2:].flip(-1)
    return {"input_ids": ids, "inputs_embeds": embeddings}


@torch.no_grad()
def test_embeddings_with_images_as_tokens():
    prompt = embedded_prompt(MODEL, 16)
    pixels = pixel_values()
    filled = prompt["inputs_embeds"].clone()
    image_ids = MODEL.encode_images(pixels).flatten(1) + CONFIG.image_token_offset
    filled[:, 2:18] = MODEL.get_input_embeddings()(image_ids)
    blocks = image_block_ids(prompt["input_ids"], CONFIG)
    expected = MODEL(inputs_embeds=filled, block_sequence_ids=blocks).logits
    torch.testing.assert_close(MODEL(**prompt, pixel_values=pixels).logits, expected)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    found = MODEL.generate(**prompt, pixel_values=pixels, **options)
    expected = MODEL.generate(inputs_embeds=filled, block_sequence_ids=blocks, **options)
    assert found[:, prompt["input_ids"].shape[1] :].tolist() == expected.tolist()


@torch.no_grad()
def test_embeddings_with_images_as_features():
    model = clip_model()
    prompt = embedded_prompt(model, 4)
    pixels = pixel_values()[..., :8, :8]
    by_pixels = model(**prompt, pixel_values=pixels).logits
    features = model.get_image_features(pixels).last_hidden_state
    torch.testing.assert_close(by_pixels, model(**prompt, image_features=features).logits)
    # Embeddings of the ids themselves change nothing, other embeddings do.
    plain = model(prompt["input_ids"], pixel_values=pixels).logits
    own = {"input_ids": prompt["input_ids"], "inputs_embeds": model.get_input_embeddings()(prompt["input_ids"])}
    torch.testing.assert_close(model(**own, pixel_values=pixels).logits, plain)
    assert (by_pixels - plain).abs().max() > 1e-3


# Losses, against a slow loop over positions


def labelled_batch(kinds, left, seed):
    """Rows of the four kinds with texts of random length and some labels removed."""
    choice = random.Random(seed)
    rows, labels = [], []
    for kind in kinds:
        text = choice.choices(range(1, tiny.TEXT_IDS), k=choice.randint(1, 4))
        image = tiny.image(CONFIG, choice.randint(0, 9), tokens=3)
        row = {
            "t2i": [T2I, EOS, *text, EOS, *image],
            "mmu": [MMU, *image, EOS, *text, EOS],
            "text": [EOS, *text, EOS],
            "mixed": [EOS, *text, *image, *text, EOS],
        }[kind]
        rows.append(row)
        labels.append([token if choice.random() < 0.7 else -100 for token in row])
    length = max(map(len, rows))

    def padded(row, fill):
        pads = [fill] * (length - len(row))
        return pads + row if left else row + pads

    return torch.tensor([padded(r, PAD) for r in rows]), torch.tensor([padded(r, -100) for r in labels])


def slow_losses(input_ids, labels):
    """Mean cross-entropy by kind, computed position by position."""
    with torch.no_grad():
        log_p = F.log_softmax(MODEL(input_ids).logits.double(), -1)
    found = {"t2i": [], "lm": [], "mmu": []}
    for b, row in enumerate(input_ids.tolist()):
        start = next(token for token in row if token != PAD)
        in_image = False
        for position, token in enumerate(row):
            in_image = in_image or token == CONFIG.soi_token_id
            label = labels[b, position].item()
            if label != -100 and in_image:
                found["t2i"].append(-log_p[b, position, label])
            is_text = not in_image or token == CONFIG.soi_token_id
            if is_text and label != -100 and start != T2I and position > 0:
                found["mmu" if start == MMU else "lm"].append(-log_p[b, position - 1, label])
            in_image = in_image and token != CONFIG.eoi_token_id
    return {kind: torch.stack(values).mean() if values else None for kind, values in found.items()}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(["t2i", "mmu", "text", "mixed"]), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_losses_are_means_over_their_labels(kinds, left, seed):
    input_ids, labels = labelled_batch(kinds, left, seed)
    expected = slow_losses(input_ids, labels)
    with torch.no_grad():
        output = MODEL(input_ids, labels=labels)
    total = 0.0
    for kind, weight in (("t2i", 1.0), ("lm", 0.1), ("mmu", 1.0)):
        loss = output[f"loss_{kind}"] if f"loss_{kind}" in output else None
        assert (loss is None) == (expected[kind] is None)
        if loss is not None:
            assert loss.item() == pytest.approx(expected[kind].item(), rel=1e-4)
            total += weight * loss.item()
    assert output.loss.item() == pytest.approx(total, rel=1e-5)


def test_weights_of_the_losses_come_from_the_config():
    weights = {"loss_weight_t2i": 2.0, "loss_weight_lm": 3.0, "loss_weight_mmu": 5.0}
    model = tiny.showo(**weights)
    ids = torch.cat([some_ids(), torch.full((1, some_ids().shape[1]), 3)])
    output = model(ids, labels=ids.masked_fill(ids == PAD, -100))
    expected = 2 * output.loss_t2i + 3 * output.loss_lm + 5 * output.loss_mmu
    torch.testing.assert_close(output.loss, expected)


def test_without_any_label_the_loss_is_a_zero_with_a_gradient():
    model = tiny.showo()
    ids = some_ids()
    output = model(ids, labels=torch.full_like(ids, -100))
    assert output.loss.item() == 0 and output.loss_t2i is output.loss_lm is output.loss_mmu is None
    output.loss.backward()
    for weight in (*model.model.parameters(), *model.lm_head.parameters()):  # DDP waits for each of them
        assert weight.grad.abs().sum() == 0


def test_training_with_labels_computes_no_logits():
    model = tiny.showo()
    ids = some_ids()
    assert model.eval()(ids, labels=ids).logits is not None
    assert model.train()(ids, labels=ids).logits is None


# generate()


def prompts():
    row = [MMU, *tiny.image(CONFIG, 3), EOS, 9, 8]
    return torch.tensor([row, [PAD] * 3 + row[:-3]])


def generate(model, ids, **kwargs):
    mask = (ids != PAD).long()
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    return model.generate(ids, **(options | kwargs))[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_a_cache_changes_no_generated_id(model, beams):
    cached = generate(model, prompts(), num_beams=beams)
    assert cached == generate(model, prompts(), num_beams=beams, use_cache=False)
    assert len(set(cached[0])) > 1, "a model that repeats one id would hide a difference"


def test_a_static_cache_changes_no_generated_id(model):
    assert generate(model, prompts(), cache_implementation="static") == generate(model, prompts())


def test_generation_in_a_batch_equals_generation_alone(model):
    ids = prompts()
    together = generate(model, ids)
    assert together == [generate(model, ids[:1])[0], generate(model, ids[1:, 3:])[0]]


def test_generation_is_a_loop_of_forward(model):
    ids = prompts()[:1]
    with torch.no_grad():
        for _ in range(5):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert generate(model, prompts()[:1]) == ids[:, -5:].tolist()


# Invalid inputs


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "exactly one of `input_ids` and `inputs_embeds`"),
        ({"input_ids": [[1, 2]], "inputs_embeds": torch.zeros(1, 2, 32)}, "exactly one of"),
        (
            {"input_ids": [[1, 2]], "inputs_embeds": torch.zeros(1, 3, 32), "pixel_values": pixel_values()},
            r"`inputs_embeds` must have the batch size and length of `input_ids`, got \(1, 3, 32\) and \(1, 2\)",
        ),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, r"`labels` need `input_ids` of their shape, got \(1, 1\)"),
        ({"inputs_embeds": torch.zeros(1, 2, 32), "labels": [[1, 2]]}, "`labels` need `input_ids`"),
        ({"input_ids": [[1, 2]], "pixel_values": pixel_values()}, "16 image positions, and the ids have 0"),
        (
            {"inputs_embeds": torch.zeros(1, 2, 32), "pixel_values": pixel_values()},
            "need `input_ids` with placeholders",
        ),
        ({"input_ids": [[1]], "image_features": torch.zeros(1, 1, 4)}, "no `image_feature_size`"),
        ({"input_ids": [[1]], "image_features": torch.zeros(1, 1, 4), "pixel_values": pixel_values()}, "not both"),
        ({"input_ids": [[1]], "pixel_values": pixel_values()[..., :5]}, "multiples of 4, got 16x5"),
    ],
)
def test_wrong_inputs_are_refused(inputs, message):
    as_tensors = {name: torch.tensor(value) if isinstance(value, list) else value for name, value in inputs.items()}
    with pytest.raises(ValueError, match=message):
        MODEL(**as_tensors)


@pytest.mark.parametrize("name", ["shift_labels", "num_items_in_batch", "atention_mask", "token_type_ids"])
def test_arguments_that_nothing_uses_are_refused(name):
    ids = torch.tensor([[1, 2]])
    with pytest.raises(TypeError, match=f"unexpected keyword arguments: {name}"):
        MODEL(ids, **{name: ids})


def test_shift_labels_are_refused_with_advice():
    ids = torch.tensor([[1, 2]])
    with pytest.raises(TypeError, match="shift_labels. Give `labels`, which are not shifted"):
        MODEL(ids, labels=ids, shift_labels=ids)


def test_images_need_a_tokenizer_or_a_tower():
    model = tiny.showo(images=False)
    with pytest.raises(ValueError, match="image tokenizer"):
        model(torch.tensor([[1]]), pixel_values=pixel_values())
    with pytest.raises(ValueError, match="`pixel_values` need an image tokenizer"):
        model.encode_images(pixel_values())
    with pytest.raises(ValueError, match="`image_tokens` need an image tokenizer"):
        model.decode_images(torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="vision tower"):
        model.get_image_features(pixel_values())
