"""The model in the package: it is what its recipe makes, and its text tokenizer and known words are the world's."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks.image_tokenizer_quality import detail_ratios, tokens_back
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open

from recipes import fresh_model
from recipes.world.known_words import known_words
from recipes.world.words import THINGS
from showo_hf import EMBEDDED_MODEL, ShowoDiffusionDecoder, ShowoProcessor, ShowoT2IPipeline, ShowoVQTokenizer
from showo_hf.training.image_tokenizers import tokenizer_config
from showo_hf.training.recipe_files import load_recipe


FOLDER = Path(EMBEDDED_MODEL)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=["processor", "model"])
def processor(request):
    return ShowoProcessor.from_pretrained(EMBEDDED_MODEL, subfolder=request.param)


@pytest.fixture(scope="module")
def pipe():
    pipe = ShowoT2IPipeline.from_pretrained(EMBEDDED_MODEL)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def ids(processor, text):
    return processor.tokenizer(text)["input_ids"]


# What the recipe makes


@pytest.fixture
def root(monkeypatch):
    """Recipes name others by path, from the root of the repository."""
    monkeypatch.chdir(ROOT)


def test_the_recipe_makes_its_image_tokenizer(root, pipe):
    assert type(pipe.image_tokenizer) is ShowoVQTokenizer
    made = tokenizer_config(load_recipe("recipes/world/image_tokenizer.yaml")).to_dict()
    embedded = pipe.image_tokenizer.config.to_dict()
    free = ("dtype", "architectures", "_name_or_path", "transformers_version")
    assert {k: v for k, v in made.items() if k not in free} == {k: v for k, v in embedded.items() if k not in free}


def test_the_recipe_makes_its_transformer(root, pipe):
    made, embedded = fresh_model.small_config(pipe.processor), pipe.model.config
    free = ("dtype", "architectures", "_name_or_path", "transformers_version")
    texts = [{k: v for k, v in one.text_config.to_dict().items() if k not in free} for one in (made, embedded)]
    assert texts[0] == texts[1]
    for name in ("codebook_size", "num_image_tokens", "image_token_offset", "mask_token_id", "tie_word_embeddings"):
        assert getattr(made, name) == getattr(embedded, name), name
    assert Path(load_recipe("recipes/world/showo-redrawn.yaml").output).name == FOLDER.name


def test_the_recipe_makes_its_diffusion_decoder(root, pipe):
    recipe, embedded = load_recipe("recipes/world/diffusion_decoder.yaml"), pipe.image_decoder.config
    assert type(pipe.image_decoder) is ShowoDiffusionDecoder
    assert {name: getattr(embedded, name) for name in recipe.architecture} == recipe.architecture
    assert (embedded.num_inference_steps, embedded.low_band_sigma) == (recipe.decoder_steps, recipe.low_band_sigma)


def test_its_images_have_12_x_12_tokens_of_8_pixels(pipe):
    assert pipe.default_grid == (12, 12) and pipe.patch == 8
    assert pipe.mask_token_id == pipe.scheduler.config.mask_token_id == 2048
    with torch.no_grad():
        tokens = pipe.image_tokenizer.encode(torch.zeros(1, 3, 96, 96)).image_tokens
        assert tokens.shape == (1, 12, 12) and pipe.image_tokenizer.decode(tokens).sample.shape == (1, 3, 96, 96)


# The folder


@pytest.mark.slow
@torch.no_grad()
def test_its_diffusion_decoder_is_small_sharpens_what_is_there_and_keeps_the_tokens(pipe):
    """Against the images of the image tokenizer's own decoder; the figures against originals are in docs/benchmarks.md."""
    assert (FOLDER / "image_decoder" / "model.safetensors").stat().st_size < 12e6
    prompts = [
        "a red apple to the left of a blue car",
        "a cat at night",
        "two stars on the grass",
        "an owl above a key",
    ]
    seed = torch.Generator().manual_seed(0)
    tokens = pipe(prompts, generator=seed, output_type="latent").images
    plain, sharp = (
        2 * pipe.decode_latents(tokens, "pt", torch.Generator().manual_seed(1), decoder_steps=steps) - 1
        for steps in (0, None)
    )
    assert detail_ratios(sharp, plain).mean() > 1.2
    assert 10 * torch.log10(4 / (sharp - plain).square().mean()) > 28, "dB: it shows the same things"
    assert float(tokens_back(pipe.image_tokenizer, sharp, tokens).rstrip("%")) > 85


def test_weights_are_stored_in_bfloat16_but_the_image_tokenizers_and_load_in_float32(pipe):
    with safe_open(FOLDER / "model" / "model.safetensors", "pt") as weights:
        dtypes = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}
    assert all(dtype == ("F32" if name.startswith("image_tokenizer.") else "BF16") for name, dtype in dtypes.items())
    with safe_open(FOLDER / "image_decoder" / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}
    parts = (pipe.model, pipe.image_decoder)
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.float32}


def test_no_file_names_a_folder_of_the_machine_that_made_it():
    for file in FOLDER.rglob("*.json"):
        assert "_name_or_path" not in file.read_text(encoding="utf-8"), file


def test_the_card_names_its_words_sizes_and_recipe(pipe):
    card = ModelCard.load(FOLDER / "README.md")
    assert card.data.license == "apache-2.0" and card.text.lstrip().startswith(f"# {FOLDER.name}")
    words = " ".join(card.text.split())
    assert f"draws {len(THINGS)} things" in words and all(thing in words for thing in THINGS)
    text, tokenizer = pipe.model.config.text_config, pipe.image_tokenizer.config
    assert f"hidden size {text.hidden_size}, {text.num_hidden_layers} layers" in words
    assert f"a codebook of {tokenizer.codebook_size:,} entries" in words
    assert f"byte-pair encoding with {len(pipe.processor.tokenizer):,} ids" in words
    assert f"diffusion decoder | {pipe.image_decoder.config.num_inference_steps} steps" in words
    assert "docs/embedded_model.md" in words and (ROOT / "docs" / "embedded_model.md").is_file()
    with Image.open(FOLDER / "scene.png") as scene:
        assert scene.size == (96, 96)


def test_its_defaults_are_settings_of_the_pipeline(pipe):
    config = json.loads((FOLDER / "model" / "config.json").read_text(encoding="utf-8"))
    assert pipe.with_defaults(None, None) == (config["image_num_inference_steps"], config["image_guidance_scale"])


# Known words


def test_it_knows_the_words_of_the_world(processor):
    assert processor.known_words == known_words()


@pytest.mark.parametrize(
    "prompt",
    [
        "a red apple to the left of a blue car",
        "THREE STARS AT NIGHT",
        "please draw kitties.",
        "something on the grass",
    ],
)
def test_a_prompt_with_a_known_word_gets_no_warning(pipe, prompt, caplog):
    pipe(prompt, num_inference_steps=1, output_type="latent")
    assert not caplog.records


@pytest.mark.parametrize("prompt", ["a lighthouse", "three of them", "left of it"])
def test_a_prompt_without_known_words_gets_a_warning_that_names_some(pipe, prompt, caplog):
    pipe(prompt, num_inference_steps=1, output_type="latent")
    (record,) = caplog.records
    message = record.getMessage()
    assert (
        repr(prompt) in message and "has no word that this model knows" in message and "animals: dog, cat" in message
    )


# The text tokenizer


def test_the_size_of_the_text_tokenizer(processor):
    assert processor.tokenizer.vocab_size == 1024
    assert len(processor.tokenizer) == processor.image_token_offset == 1034  # ten ids of Show-o


@pytest.mark.parametrize("words", ["A Red Apple At Night, Flat Style", "A RED APPLE AT NIGHT, FLAT STYLE"])
def test_case_does_not_matter_in_a_prompt(processor, words):
    assert ids(processor, words) == ids(processor, "a red apple at night, flat style")
    assert processor.tokenizer.decode(ids(processor, words)) == "a red apple at night, flat style"


@pytest.mark.parametrize("word", ["colour", "color", "grey", "gray", "colorado", "doughnut", "lighthouse"])
def test_words_are_spelt_as_they_were(processor, word):
    assert processor.tokenizer.decode(ids(processor, word)) == word


def test_frequent_words_have_one_id_each(processor):
    scene = "a red apple to the left of a blue car"
    assert processor.tokenizer.tokenize(scene) == [f" {word}" for word in scene.split()]


def conversation(question, answer):
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": question},
    ]


def test_case_does_not_matter_in_a_conversation(processor):
    def tokens(*texts):
        text = processor.apply_chat_template(conversation(*texts), add_generation_prompt=True, tokenize=False)
        return processor.tokenizer.tokenize(text)

    made = tokens("What Is This?", "A Pear.")
    assert made == tokens("what is this?", "a pear.")
    assert (made.count(" user"), made.count(" assistant")) == (2, 2)  # the marks of the training, in lower case too
