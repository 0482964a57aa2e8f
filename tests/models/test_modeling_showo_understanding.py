"""Recorded answers of the original, token for token: with image tokens and with CLIP features."""

import pytest
import torch
from originals import recorded_showo
from transformers import CLIPImageProcessorPil, PhiConfig

from showo_hf import ShowoConfig, ShowoForCausalLM, ShowoProcessor
from showo_hf.conversion.weight_names import showo_name


CACHES = {
    "no cache": {"use_cache": False},
    "dynamic": {"cache_implementation": "dynamic"},
    "static": {"cache_implementation": "static"},
}
ways_to_compute = [
    pytest.mark.parametrize("cache", CACHES),
    pytest.mark.parametrize("implementation", ["eager", "sdpa"]),
]


def every_way(test):
    """Run a test with each attention implementation and each cache."""
    for mark in ways_to_compute:
        test = mark(test)
    return test


def answers(
    model: ShowoForCausalLM, inputs: dict, length: int, implementation="sdpa", cache="dynamic"
) -> list[list[int]]:
    """The `length` ids that greedy decoding adds to each row."""
    options = {"max_new_tokens": length, "do_sample": False, "eos_token_id": None}
    model.set_attn_implementation(implementation)
    try:
        ids = model.generate(**inputs, **CACHES[cache], **options)
    finally:
        model.set_attn_implementation("sdpa")
    return ids[:, inputs["input_ids"].shape[1] :].tolist()


# Image tokens


@pytest.fixture(scope="module")
def discrete(reference) -> list[tuple[list[int], list[int]]]:
    """Input ids and new ids of each case."""
    names = [f"mmu.{case}" for case in range(len(reference.cases["mmu"]))]
    return [
        (reference.tensors[f"{name}.ids_in"][0].tolist(), reference.tensors[f"{name}.new_ids"][0].tolist())
        for name in names
    ]


@every_way
@pytest.mark.parametrize("case", [0, 1])
def test_answers_about_image_tokens(discrete, reference_model, case, implementation, cache):
    ids, expected = discrete[case]
    inputs = {"input_ids": torch.tensor([ids])}
    assert answers(reference_model, inputs, len(expected), implementation, cache) == [expected]


@every_way
def test_answers_about_image_tokens_in_a_padded_batch(
    discrete, reference_model, reference_processor, implementation, cache
):
    rows, expected = zip(*discrete, strict=True)
    assert len(rows[0]) != len(rows[1])
    inputs = dict(reference_processor.pad_rows(rows, side="left"))
    assert answers(reference_model, inputs, len(expected[0]), implementation, cache) == list(expected)


@pytest.mark.parametrize("case", [0, 1])
def test_a_conversation_about_image_tokens_has_the_recorded_ids(reference, discrete, reference_processor, case):
    ids, _ = discrete[case]
    codes = torch.tensor(ids[2:258]) - reference_processor.image_token_offset
    inputs = ask(reference_processor, codes.view(16, 16), reference.cases["mmu"][case]["question"])
    assert inputs["input_ids"].tolist() == [ids]
    assert "pixel_values" not in inputs


def ask(processor: ShowoProcessor, image, question: str) -> dict:
    """Model inputs of a question about an image."""
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


# CLIP features


@pytest.fixture(scope="module")
def clip_model(reference) -> ShowoForCausalLM:
    """The recorded variant: projector and transformer. The features of the tower are recorded too."""
    options = dict(reference.phi)
    rope = {name: options.pop(name) for name in ("rope_theta", "partial_rotary_factor")}
    text_config = PhiConfig(**options, rope_parameters={"rope_type": "default", **rope})
    model = ShowoForCausalLM(ShowoConfig(text_config=text_config, image_feature_size=64)).eval()
    model.load_state_dict({showo_name(name): weight for name, weight in recorded_showo("showo_clip").items()})
    return model


@pytest.fixture(scope="module")
def clip_processor(reference, reference_processor) -> ShowoProcessor:
    """The processor for the tower of the published models, which takes 336 x 336 pixels."""
    size = {"height": 336, "width": 336}
    return ShowoProcessor(
        reference_processor.image_processor,
        reference_processor.tokenizer,
        vision_processor=CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=size),
        num_image_features=reference.cases["mmu_clip"]["num_features"],
    )


@pytest.fixture(scope="module")
def clip(reference, clip_processor) -> tuple[list[int], torch.Tensor, list[int]]:
    """Input ids with a placeholder for each feature, the features, and the new ids."""
    ids, features, new_ids = (reference.tensors[f"mmu_clip.{name}"] for name in ("ids_in", "features", "new_ids"))
    without = ids[0].tolist()
    soi = without.index(clip_processor.soi_token_id)
    assert without[soi + 1] == clip_processor.eoi_token_id
    return [*without[:soi], *clip_processor.placeholder_ids(), *without[soi + 2 :]], features, new_ids[0].tolist()


@every_way
def test_answers_about_features(clip, clip_model, implementation, cache):
    ids, features, expected = clip
    inputs = {"input_ids": torch.tensor([ids]), "image_features": features}
    assert answers(clip_model, inputs, len(expected), implementation, cache) == [expected]


@every_way
def test_answers_about_features_in_a_padded_batch(clip, clip_model, clip_processor, implementation, cache):
    ids, features, expected = clip
    other_ids = [*ids[:-3], *clip_processor.text_ids(" and what is behind it?"), *ids[-3:]]
    other_features = features.flip(1)
    (other_expected,) = answers(
        clip_model, {"input_ids": torch.tensor([other_ids]), "image_features": other_features}, len(expected)
    )
    assert other_expected != expected
    inputs = dict(clip_processor.pad_rows([ids, other_ids], side="left"))
    inputs["image_features"] = torch.cat([features, other_features])
    assert answers(clip_model, inputs, len(expected), implementation, cache) == [expected, other_expected]


def test_a_conversation_about_features_has_the_recorded_ids(reference, clip, clip_processor):
    ids, _, _ = clip
    question = reference.cases["mmu_clip"]["question"].removeprefix("USER: ").removesuffix(" ASSISTANT:")
    pixels = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))
    inputs = ask(clip_processor, pixels, question)
    assert inputs["input_ids"].tolist() == [ids]
    assert inputs["pixel_values"].shape == (1, 3, 336, 336)
