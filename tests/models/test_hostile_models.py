"""Wrong values for every argument of the models' calls; see `hostile.try_all`."""

from functools import cache
from typing import Any

import pytest
import tiny
import torch
from conversations import PROCESSOR, grid
from hostile import ITSELF, NO_OTHERS, Plain, assert_complete, networks_of, try_all

from showo_hf import ShowoDiffusionDecoder, ShowoForCausalLM, ShowoVQTokenizer
from showo_hf.models.image_tokenizer import ShowoImageTokenizer


@cache
def own_model() -> ShowoForCausalLM:
    """A model of this module: other tests put hooks on the one that they share."""
    return tiny.showo("llama", text_ids=PROCESSOR.pad_token_id)


# The image tokenizers

SIZE = tiny.SIDE * tiny.FACTOR
PIXELS = torch.zeros(1, 3, SIZE, SIZE)
TOKENIZER_CALLS = {
    "encode": {"pixel_values": PIXELS, "return_losses": False},
    "forward": {"pixel_values": PIXELS, "return_losses": False},
    "decode": {"image_tokens": grid()[None]},
    "enable_tiling": {"tile_size": SIZE},
}
TOKENIZER_GRID = [
    (kind, call, name) for kind in tiny.TOKENIZERS for call, valid in TOKENIZER_CALLS.items() for name in valid
]
#: Tiles that are larger than any image.
TILES: Plain = {"none": SIZE, "2**63": 2**20, "5000 digits": 2**20}


@pytest.mark.parametrize(("kind", "call", "name"), TOKENIZER_GRID)
def test_image_tokenizers(kind, call, name):
    tokenizer = tiny.TOKENIZERS[kind]()

    def run(**arguments):
        found = getattr(tokenizer, call)(**arguments)
        return tokenizer.encode(torch.zeros(1, 3, SIZE, 2 * SIZE)).image_tokens if found is None else [*found.values()]

    plain = {"tile_size": TILES, "return_losses": {"true": ITSELF}}.get(name, NO_OTHERS)
    networks = (tokenizer.encoder, tokenizer.decoder)
    try_all(run, TOKENIZER_CALLS[call], name, lambda found: len(found) > 0, plain, networks)


UPDATE = {
    "latents": torch.zeros(1, 4, tiny.SIDE, tiny.SIDE),
    "image_tokens": grid()[None],
    "generator": torch.Generator(),
}


@pytest.mark.parametrize("name", UPDATE)
def test_updates_of_codebooks(name):
    tokenizer = tiny.vq(codebook_learning="ema")
    try_all(tokenizer.update_codebook, UPDATE, name, lambda restarted: restarted >= 0)


# The diffusion decoder

DECODER_CALL = {
    "codes": torch.zeros(1, tiny.BITS, tiny.SIDE, tiny.SIDE),
    "image": PIXELS,
    "num_inference_steps": 1,
    "generator": None,
    "callback": None,
}
DECODER_PLAIN: dict[str, Plain] = {
    "num_inference_steps": {"none": 2, "zero": ITSELF},
    "generator": {"none": torch.Generator()},
    "callback": {"none": lambda step, variable: None},
}


@pytest.mark.parametrize("name", DECODER_CALL)
def test_diffusion_decoders(name):
    decoder = tiny.image_decoder()

    def is_right(found) -> bool:
        return found.sample.shape == PIXELS.shape and bool((found.sample.abs() <= 1).all())

    try_all(decoder.decode, DECODER_CALL, name, is_right, DECODER_PLAIN.get(name, NO_OTHERS), [decoder.unet])


def test_tiles_of_diffusion_decoders():
    decoder = tiny.image_decoder()

    def run(tile_size):
        decoder.enable_tiling(tile_size)
        return decoder.tile_size >= SIZE

    try_all(run, {}, "tile_size", bool, TILES)


PREDICTION = {"sample": PIXELS, "timestep": torch.tensor(500.0), "codes": DECODER_CALL["codes"], "image": PIXELS}
TIMES: Plain = {"zero": torch.tensor(0.0), "fraction": torch.tensor(1.5)}


@pytest.mark.parametrize("name", PREDICTION)
def test_predictions_of_diffusion_decoders(name):
    decoder = tiny.image_decoder()

    def is_right(found) -> bool:
        return found.shape == PIXELS.shape and bool(found.isfinite().all())

    plain = TIMES if name == "timestep" else NO_OTHERS
    with torch.no_grad():
        try_all(decoder, PREDICTION, name, is_right, plain, [decoder.unet])


def test_schedulers_of_diffusion_decoders():
    try_all(tiny.image_decoder().set_scheduler, {}, "scheduler", bool)


# The transformer

IDS = PROCESSOR(text="an owl")["input_ids"]
FORWARD = {
    "input_ids": IDS,
    "attention_mask": None,
    "position_ids": None,
    "past_key_values": None,
    "inputs_embeds": None,
    "labels": None,
    "image_features": None,
    "pixel_values": None,
    "use_cache": False,
    "logits_to_keep": 0,
    "codebook_only": False,
    "block_sequence_ids": None,
}
FORWARD_PLAIN: dict[str, Plain] = {
    **dict.fromkeys(FORWARD, {"none": ITSELF}),
    "input_ids": NO_OTHERS,
    "attention_mask": {"none": torch.ones_like(IDS)},
    "position_ids": {"none": torch.arange(IDS.shape[1])[None]},
    "block_sequence_ids": {"none": torch.full_like(IDS, -1)},
    "use_cache": {"none": ITSELF, "true": ITSELF},
    "logits_to_keep": {"zero": IDS.shape[1], "2**63": IDS.shape[1], "5000 digits": IDS.shape[1], "tensor": ITSELF},
    "codebook_only": {"true": ITSELF},
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward(name):
    model = own_model()

    def run(**arguments):
        with torch.no_grad():
            return model(**arguments).logits

    def is_right(logits: torch.Tensor) -> bool:
        return logits.ndim == 3 and 0 < logits.shape[1] <= IDS.shape[1] and bool(logits.isfinite().all())

    try_all(run, FORWARD, name, is_right, FORWARD_PLAIN[name], networks_of(model))


GENERATE = {
    "inputs": IDS,
    "generation_config": None,
    "logits_processor": None,
    "stopping_criteria": None,
    "prefix_allowed_tokens_fn": None,
    "synced_gpus": None,
    "assistant_model": None,
}
#: Arguments of `forward`, and the length.
GENERATE_OPTIONS = ("attention_mask", "position_ids", "past_key_values", "inputs_embeds", "block_sequence_ids")
GENERATE_OPTIONS = (*GENERATE_OPTIONS, "pixel_values", "image_features", "max_new_tokens")
GENERATE_PLAIN: dict[str, Plain] = {
    "attention_mask": {"none": torch.ones_like(IDS)},
    "logits_processor": {"none": [], "empty list": None},
    "stopping_criteria": {"none": [], "empty list": None},
    "max_new_tokens": {"none": 20},  # the default of transformers
    "synced_gpus": {"none": False},
}


@pytest.mark.parametrize("name", [*GENERATE, *GENERATE_OPTIONS])
def test_generate(name):
    model = own_model()
    valid = GENERATE | {"max_new_tokens": 2, "do_sample": False}

    def is_right(ids: torch.Tensor) -> bool:
        return ids.dtype == torch.int64 and ids.shape[0] == 1 and 0 < ids.shape[1] <= IDS.shape[1] + 20

    try_all(model.generate, valid, name, is_right, GENERATE_PLAIN.get(name, {"none": ITSELF}), networks_of(model))


# Its images

IMAGES: dict[str, dict[str, Any]] = {
    "encode_images": {"pixel_values": PIXELS},
    "decode_images": {"image_tokens": grid()[None]},
    "image_codes": {"image_tokens": grid()[None]},
}


@pytest.mark.parametrize(("call", "name"), [(call, name) for call, valid in IMAGES.items() for name in valid])
def test_images(call, name):
    model = own_model()
    try_all(getattr(model, call), IMAGES[call], name, lambda found: len(found) == 1, NO_OTHERS, networks_of(model))


FEATURES = {"pixel_values": torch.zeros(1, 3, 8, 8)}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("kind", ["vision tower", "latents"])
def test_image_features(kind, name):
    if kind == "latents":
        model = tiny.showo("llama", continuous_latents=True)
        networks: tuple[torch.nn.Module, ...] = networks_of(model)
        valid = {"pixel_values": PIXELS}
    else:
        model = tiny.clip_showo(tiny.TEXT_IDS)
        networks, valid = (model.vision_tower,), FEATURES
    try_all(model.get_image_features, valid, name, lambda found: len(found) > 1, NO_OTHERS, networks)


@pytest.mark.parametrize("shape", [(1, 3, 8, 12), (1, 3, 16, 16), (1, 1, 8, 8), (3, 8, 8)])
def test_images_of_another_size_than_the_vision_tower_s_are_refused(shape):
    model = tiny.clip_showo(tiny.TEXT_IDS)
    with pytest.raises(ValueError, match=r"`pixel_values` must be \(images, 3, 8, 8\)"):
        model.get_image_features(torch.zeros(shape))


TRIED: dict[type, dict[str, Any]] = {
    ShowoImageTokenizer: TOKENIZER_CALLS,
    ShowoVQTokenizer: {"update_codebook": UPDATE},
    ShowoDiffusionDecoder: {
        "decode": DECODER_CALL,
        "forward": PREDICTION,
        "enable_tiling": ("tile_size",),
        "set_scheduler": ("scheduler",),
    },
    ShowoForCausalLM: {"forward": FORWARD, "generate": GENERATE, "get_image_features": FEATURES, **IMAGES},
}


def test_every_argument_is_in_the_grid():
    assert_complete(TRIED)
    assert {*FORWARD} - {*GENERATE_OPTIONS} == {"input_ids", "labels", "use_cache", "logits_to_keep", "codebook_only"}
