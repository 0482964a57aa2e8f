"""The CLIP-ViT variant: its processor, and model and processor in one folder."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPImageProcessorPil, CLIPVisionModel

from showo_hf import MaskGITScheduler, ShowoForCausalLM, ShowoProcessor, ShowoT2IPipeline
from showo_hf.models.omni_attention import without_seen


PROCESSOR = tiny.clip_processor()
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), "uint8"))
PROMPT = "<|mmu|> owl <|sov|> what?"


@pytest.fixture(scope="module")
def clip_model() -> ShowoForCausalLM:
    return tiny.clip_showo(text_ids=PROCESSOR.pad_token_id)


@torch.no_grad()
def logits(model: ShowoForCausalLM, processor: ShowoProcessor) -> torch.Tensor:
    return model(**processor(images=IMAGE, text=PROMPT)).logits


# Processor


def test_pixels_and_placeholders_fit_the_tower():
    batch = PROCESSOR(images=IMAGE, text=PROMPT)
    own = CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    assert torch.equal(batch["pixel_values"], own(IMAGE, return_tensors="pt")["pixel_values"])
    assert (batch["input_ids"] == PROCESSOR.image_token_id).sum() == 4


def test_generated_images_have_their_own_size():
    assert PROCESSOR.image_processor(IMAGE, return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)
    ids = PROCESSOR.text_to_image(["owl"])["input_ids"]
    assert (ids == PROCESSOR.mask_token_id).sum() == tiny.SIDE**2


def test_without_a_tower_images_go_to_the_image_tokenizer():
    plain = tiny.processor()
    batch = plain(images=IMAGE, text=PROMPT)
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
    assert (batch["input_ids"] == plain.image_token_id).sum() == tiny.SIDE**2


@pytest.mark.parametrize("given", [{"vision_processor": PROCESSOR.vision_processor}, {"num_image_features": 4}])
def test_vision_processor_and_feature_count_need_each_other(given):
    with pytest.raises(ValueError, match="`vision_processor` and `num_image_features`"):
        tiny.processor(**given)


def test_the_processor_alone_saves_and_loads(tmp_path):
    PROCESSOR.save_pretrained(tmp_path)
    expected = PROCESSOR(images=IMAGE, text=PROMPT)
    for loader in (ShowoProcessor, AutoProcessor):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded.vision_processor) is CLIPImageProcessorPil
        for name, value in loaded(images=IMAGE, text=PROMPT).items():
            assert torch.equal(value, expected[name]), name
    loaded.save_pretrained(tmp_path / "again")
    one, other = ((folder / "processor_config.json").read_text() for folder in (tmp_path, tmp_path / "again"))
    assert one == other


# Model and processor


@pytest.mark.parametrize("max_shard_size", ["5GB", "20KB"])
def test_model_and_processor_save_and_load_in_one_folder(clip_model, max_shard_size, tmp_path):
    expected = logits(clip_model, PROCESSOR)
    clip_model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    PROCESSOR.save_pretrained(tmp_path)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 5) == (max_shard_size == "20KB")
    processor = AutoProcessor.from_pretrained(tmp_path)
    for loader in (ShowoForCausalLM, AutoModelForImageTextToText):
        loaded, report = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert torch.equal(logits(loaded, processor), expected)
        assert not any(weight.requires_grad for weight in loaded.train().vision_tower.parameters())


def test_missing_weights_of_the_tower_are_those_of_a_fresh_tower(clip_model, tmp_path):
    """CLIP scales the weights of each layer by its role in the tower."""
    clip_model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: weight for name, weight in weights.items() if not name.startswith("vision_tower.encoder.")}
    assert 0 < len(kept) < len(weights)
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = ShowoForCausalLM.from_pretrained(tmp_path)
    fresh = CLIPVisionModel(clip_model.config.vision_config)
    for name, weight in fresh.named_parameters():
        found = loaded.vision_tower.get_parameter(name)
        if not name.startswith("encoder."):
            assert torch.equal(found, clip_model.vision_tower.get_parameter(name)), name
        elif weight.ndim == 2:
            assert found.std().item() == pytest.approx(weight.std().item(), rel=0.2), name
        else:
            assert torch.equal(found, weight), name  # norms and biases


def test_a_pipeline_saves_and_loads_both(clip_model, tmp_path):
    def codes(pipe: ShowoT2IPipeline) -> torch.LongTensor:
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe("owl", num_inference_steps=3, generator=generator, output_type="latent").images

    pipe = ShowoT2IPipeline(clip_model, PROCESSOR, MaskGITScheduler(mask_token_id=tiny.CODES))
    pipe.save_pretrained(tmp_path)
    loaded = ShowoT2IPipeline.from_pretrained(tmp_path)
    assert torch.equal(codes(loaded), codes(pipe))
    assert torch.equal(logits(loaded.model, loaded.processor), logits(clip_model, PROCESSOR))
    alone = AutoProcessor.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(loaded.model, alone), logits(clip_model, PROCESSOR))


def with_image_row(inputs: dict) -> dict:
    """A row with image tokens, and the row of `inputs` with features, both padded on the left to one length."""
    first, end = PROCESSOR.image_token_offset, PROCESSOR.image_token_offset + tiny.CODES
    image = [PROCESSOR.soi_token_id, *range(end - 1, first - 1, -4), PROCESSOR.eoi_token_id]
    rows = [[PROCESSOR.mmu_token_id, *image, 30, 31], inputs["input_ids"][0].tolist()]
    length = max(map(len, rows)) + 1
    ids = torch.tensor([[PROCESSOR.pad_token_id] * (length - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != PROCESSOR.pad_token_id).long()}


@torch.no_grad()
def test_a_row_with_image_tokens_is_the_same_beside_one_with_features(clip_model):
    """Each image keeps its kind of attention: full within image tokens, from everywhere to features."""
    inputs = PROCESSOR(images=IMAGE, text=PROMPT)
    both, pixel_values = with_image_row(inputs), inputs["pixel_values"]
    first, second = ({name: values[row : row + 1] for name, values in both.items()} for row in range(2))
    mixed = clip_model(**both, pixel_values=pixel_values).logits
    seen = both["attention_mask"].bool()
    torch.testing.assert_close(mixed[0][seen[0]], clip_model(**first).logits[0][seen[0]], rtol=1e-4, atol=1e-4)
    alone = clip_model(**second, pixel_values=pixel_values).logits
    torch.testing.assert_close(mixed[1][seen[1]], alone[0][seen[1]], rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    answers = clip_model.generate(**both, pixel_values=pixel_values, **options)
    assert answers[0].tolist() == clip_model.generate(**first, **options)[0].tolist()
    assert answers[1].tolist() == clip_model.generate(**second, pixel_values=pixel_values, **options)[0].tolist()


def test_a_block_with_a_feature_is_none():
    blocks = torch.tensor([[-1, 0, 0, -1, 1, 1], [0, 0, 1, 1, 2, -1], [-1, -1, 0, 0, 0, 0]])
    seen = torch.tensor([[0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)
    expected = [[-1, 0, 0, -1, -1, -1], [-1, -1, 1, 1, -1, -1], [-1, -1, 0, 0, 0, 0]]
    assert without_seen(blocks, seen).tolist() == expected


def test_an_answer_depends_on_the_image(clip_model):
    def answer(image: Image.Image, **options) -> list[int]:
        inputs = PROCESSOR(images=image, text=PROMPT)
        ids = clip_model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, **options)
        return ids[0, inputs["input_ids"].shape[1] :].tolist()

    assert answer(IMAGE) != answer(Image.new("RGB", (9, 12), "red"))
    assert answer(IMAGE, num_beams=3) == answer(IMAGE, num_beams=3, use_cache=False)
