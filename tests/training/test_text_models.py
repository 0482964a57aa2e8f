"""Stage 1's start: any text model of transformers becomes a Show-o model."""

import io
import json
import shutil
import statistics
from pathlib import Path

import pytest
import sentencepiece
import tiny
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from showo_hf import MaskGITScheduler, ShowoForCausalLM, ShowoT2IPipeline
from showo_hf.processing.processing_showo import SPECIAL_TOKENS
from showo_hf.processing.text_tokenizers import load_text_tokenizer
from showo_hf.training.text_models import start_from_text_model


ROWS = 400  # of the text models, for a text tokenizer of 370 ids: 30 padding rows
TEXT_IDS = 370
STD = 0.3
SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": STD,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "phi": PhiConfig(**SIZES),
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES, pad_token_id=0),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
}
BPE = Path(__file__).parents[1] / "golden" / "phi-1_5-tokenizer"


def save_text_model(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
    model.save_pretrained(folder)
    tiny.text_tokenizer().save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=CONFIGS)
def text_model(request, tmp_path_factory) -> tuple[PreTrainedModel, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    return save_text_model(CONFIGS[request.param], folder), folder


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    save_text_model(CONFIGS["llama"], folder)
    return folder


@pytest.fixture
def copied(llama_folder, tmp_path) -> Path:
    return shutil.copytree(llama_folder, tmp_path / "model")


def start(folder: Path, seed: int = 0, **options):
    generator = torch.Generator().manual_seed(seed)
    options = {"image_tokenizer": tiny.lfq(), "max_text_length": 10, "generator": generator} | options
    return start_from_text_model(folder, **options)


def change_json(file: Path, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))


# The vocabulary


def test_vocabulary_has_the_published_order(llama_folder):
    model, processor = start(llama_folder)
    config, tokenizer = model.config, processor.tokenizer
    new = ["[PAD]", *SPECIAL_TOKENS]
    assert tokenizer.convert_tokens_to_ids(new) == list(range(TEXT_IDS, TEXT_IDS + 10))
    assert config.image_token_offset == processor.image_token_offset == TEXT_IDS + 10
    assert config.mask_token_id == TEXT_IDS + 10 + tiny.CODES
    assert config.vocab_size == model.lm_head.weight.shape[0] == config.mask_token_id + 1
    assert config.special_token_ids() == processor.special_token_ids()
    assert (config.num_image_tokens, config.codebook_size) == (tiny.SIDE**2, tiny.CODES)
    assert (config.bos_token_id, config.eos_token_id) == (0, 0)


def test_ids_of_phi_are_the_published_ones(tmp_path):
    options = SIZES | {"vocab_size": 51200, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    save_text_model(PhiConfig(**(options | {"max_position_embeddings": 2048})), tmp_path)
    for file in BPE.iterdir():
        shutil.copy(file, tmp_path)
    model, processor = start(tmp_path, image_tokenizer=None, max_text_length=128)
    config = model.config
    assert config.pad_token_id == 50295
    assert (config.soi_token_id, config.lvg_token_id) == (50296, 50304)
    assert (config.image_token_offset, config.mask_token_id, config.vocab_size) == (50305, 58497, 58498)
    assert (config.bos_token_id, config.eos_token_id) == (50256, 50256)
    assert (config.codebook_size, config.num_image_tokens) == (8192, 256)
    assert processor.image_processor.crop_size["height"] == 256
    reference = AutoTokenizer.from_pretrained(BPE)
    for text in ("A cat, sitting  on\n the mat!", "naïve 東京 \U0001f600", "    def f(x):\n        return x"):
        assert processor.text_ids(text) == reference(text)["input_ids"]


# The weights


def test_rows_of_the_text_model_are_kept_and_new_rows_are_drawn(text_model):
    text, folder = text_model
    model, _ = start(folder)
    pairs = [(text.get_input_embeddings().weight, model.get_input_embeddings().weight)]
    pairs += [(text.lm_head.weight, model.lm_head.weight)]
    for old, new in pairs:
        assert torch.equal(new[:ROWS], old)  # padding rows too
        drawn = new[ROWS:]
        assert drawn.shape[0] == TEXT_IDS + 11 + tiny.CODES - ROWS
        assert drawn.std().item() == pytest.approx(STD, rel=0.1)
        assert abs(drawn.mean().item()) < STD / 10
    if text.lm_head.bias is not None:
        assert torch.equal(model.lm_head.bias[:ROWS], text.lm_head.bias)
        assert not model.lm_head.bias[ROWS:].any()
    tied = text.lm_head.weight is text.get_input_embeddings().weight
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied == model.config.tie_word_embeddings


def test_new_rows_follow_the_generator(llama_folder):
    torch.manual_seed(1)
    first, _ = start(llama_folder, seed=3)
    torch.manual_seed(2)
    again, _ = start(llama_folder, seed=3)
    other, _ = start(llama_folder, seed=4)
    for (name, a), b in zip(first.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_text_logits_are_those_of_the_text_model_without_qk_norm(text_model):
    text, folder = text_model
    model, _ = start(folder, qk_layernorm=False)
    ids = torch.randint(TEXT_IDS, (2, 30), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected, logits = text(ids).logits, model(ids).logits
    torch.testing.assert_close(logits[..., :ROWS], expected, rtol=1e-4, atol=1e-4)


def test_qk_norm_starts_at_one_and_zero_and_changes_the_function(text_model):
    text, folder = text_model
    model, _ = start(folder)
    norms = {name: weight for name, weight in model.model.named_parameters() if "norm" in name and "_proj" in name}
    norms |= {name: weight for name, weight in model.model.named_parameters() if "k_layernorm" in name}
    has_own = text.config.model_type == "qwen3"
    assert bool(norms) != has_own
    for name, weight in norms.items():
        assert torch.equal(weight, torch.full_like(weight, float(name.endswith("weight")))), name
    ids = torch.arange(1, 30).unsqueeze(0)
    with torch.no_grad():
        same = torch.allclose(text(ids).logits, model(ids).logits[..., :ROWS], atol=1e-3)
    assert same == has_own


def test_row_of_the_end_of_text_is_trained_although_the_text_model_pads_with_it(tmp_path):
    save_text_model(CONFIGS["qwen2"], tmp_path)
    model, processor = start(tmp_path)
    model.train()
    batch = processor.text_only(["an owl"])
    model(**batch).loss.backward()
    assert model.get_input_embeddings().weight.grad[processor.sot_token_id].abs().sum() > 0


def test_image_tokenizer_is_the_given_one(llama_folder):
    image_tokenizer = tiny.lfq(seed=7)
    model, _ = start(llama_folder, image_tokenizer=image_tokenizer)
    for name, weight in image_tokenizer.state_dict().items():
        assert torch.equal(model.image_tokenizer.state_dict()[name], weight), name
    assert not any(weight.requires_grad for weight in model.image_tokenizer.parameters())


def test_dtype(llama_folder):
    model, _ = start(llama_folder, dtype=torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert start(llama_folder)[0].lm_head.weight.dtype == torch.float32


# Pipeline folders, from which stages 2 and 3 start


def test_saved_pipeline_loads_with_the_same_results(text_model, tmp_path):
    _, folder = text_model
    model, processor = start(folder)
    ShowoT2IPipeline(model, processor, MaskGITScheduler(mask_token_id=tiny.CODES)).save_pretrained(tmp_path / "a")
    pipe = ShowoT2IPipeline.from_pretrained(tmp_path / "a")
    alone = ShowoForCausalLM.from_pretrained(tmp_path / "a" / "model")
    for name, weight in model.state_dict().items():
        assert torch.equal(pipe.model.state_dict()[name], weight), name
        assert torch.equal(alone.state_dict()[name], weight), name
    batch = processor.text_to_image(["an owl"])
    assert torch.equal(pipe.processor.text_to_image(["an owl"])["input_ids"], batch["input_ids"])
    pipe.set_progress_bar_config(disable=True)
    pixels = tiny.SIDE * tiny.FACTOR
    assert pipe("an owl", num_inference_steps=2).images[0].size == (pixels, pixels)


# What starts and ends a text


@pytest.mark.parametrize(
    "named, in_config, expected",
    [
        ({"bos_token": "a", "eos_token": "b"}, {}, "ab"),
        ({"eos_token": "b"}, {}, "bb"),
        ({"bos_token": "a"}, {}, "aa"),
        ({"eos_token": "b"}, {"bos_token_id": "c"}, "cb"),
        ({}, {"bos_token_id": "c", "eos_token_id": ["d", "a"]}, "cd"),
    ],
)
def test_sot_and_eot(copied, named, in_config, expected):
    vocabulary = tiny.text_tokenizer().get_vocab()
    none = {"bos_token": None, "eos_token": None}
    change_json(copied / "tokenizer_config.json", **(none | named))
    ids = {
        name: [vocabulary[v] for v in value] if isinstance(value, list) else vocabulary[value]
        for name, value in in_config.items()
    }
    change_json(copied / "config.json", **({"bos_token_id": -1, "eos_token_id": -1} | ids))
    model, processor = start(copied)
    assert (processor.sot_token_id, processor.eot_token_id) == tuple(vocabulary[token] for token in expected)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (processor.sot_token_id, processor.eot_token_id)


def test_neither_start_nor_end_of_a_text(copied):
    change_json(copied / "tokenizer_config.json", bos_token=None, eos_token=None)
    change_json(copied / "config.json", bos_token_id=-1, eos_token_id=-1)
    with pytest.raises(ValueError, match="must have a `bos_token` or an `eos_token`"):
        start(copied)


# Errors


@pytest.mark.parametrize(
    "config, message",
    [
        (GPT2Config(vocab_size=ROWS, n_embd=32, n_layer=1, n_head=4, n_positions=256), "named 'embed_tokens.weight'"),
        (CohereConfig(**SIZES), "linear layer of the last hidden states"),
        (
            MambaConfig(vocab_size=ROWS, hidden_size=32, num_hidden_layers=1, tie_word_embeddings=False),
            "'mamba' backbone",
        ),
        (LlamaConfig(**(SIZES | {"max_position_embeddings": 28})), "max_position_embeddings=28"),
        (LlamaConfig(**(SIZES | {"vocab_size": 369})), "369 rows for the 370 ids"),
    ],
)
def test_unsupported_text_models(tmp_path, config, message):
    config.bos_token_id = config.eos_token_id = 0
    save_text_model(config, tmp_path)
    with pytest.raises(ValueError, match=message):
        start(tmp_path, qk_layernorm=False)


def test_qk_norm_needs_separate_projections(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    save_text_model(GPTNeoXConfig(vocab_size=ROWS, max_position_embeddings=256, **sizes), tmp_path)
    assert start(tmp_path, qk_layernorm=False)[0].config.text_config.model_type == "gpt_neox"
    with pytest.raises(ValueError, match="Set `qk_layernorm` to False"):
        start(tmp_path)


def test_encoder_decoder_is_refused(copied):
    T5Config().save_pretrained(copied)
    with pytest.raises(ValueError, match="must be a text decoder, got a 't5' model"):
        start(copied)


def test_pickled_weights_are_refused(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ValueError, match="has no .safetensors weights"):
        start(copied)


def test_missing_weights_are_named(copied):
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights: model.layers.1.mlp.up_proj.weight"):
        start(copied)


def test_no_config_and_no_tokenizer(copied):
    (copied / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="has no text tokenizer"):
        start(copied)
    (copied / "config.json").unlink()
    with pytest.raises(ValueError, match="has no `config.json`"):
        start(copied)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_image_tokens": 15}, "`num_image_tokens` must be a square number, got 15"),
        ({"codebook_size": 32}, r"must equal the image tokenizer's \(64\), got 32"),
        ({"max_text_length": 1}, "`max_text_length` must be an integer of at least 2, got 1"),
    ],
)
def test_invalid_sizes(llama_folder, options, message):
    with pytest.raises(ValueError, match=message):
        start(llama_folder, **options)


# SentencePiece

CORPUS = [
    f"{number} {colour} {thing} on the {place}, really! (it's naïve) 東京 Привет"
    for number in ("a", "two", "12", "the")
    for colour in ("red", "green", "dark blue", "white")
    for thing in ("apple", "pears", "smiling cat", "owls", "hearts")
    for place in ("table", "mat", "straße", "café")
]
SPM_OPTIONS = {
    "llama's": {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "byte_fallback": True},
    "defaults": {},
    "no space before": {"add_dummy_prefix": False, "byte_fallback": True},
    "nothing changed": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "byte_fallback": True,
    },
}


def train_sentencepiece(folder: Path, model_type: str, **options) -> sentencepiece.SentencePieceProcessor:
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=written,
        model_type=model_type,
        vocab_size=ROWS - 20 if options.get("byte_fallback") else 120,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.fixture(scope="module", params=[(kind, name) for kind in ("unigram", "bpe") for name in SPM_OPTIONS])
def sentencepiece_pair(request, tmp_path_factory):
    """SentencePiece's own tokenizer and ours of one file."""
    kind, name = request.param
    folder = tmp_path_factory.mktemp("spm")
    own = train_sentencepiece(folder, kind, **SPM_OPTIONS[name])
    return own, load_text_tokenizer(folder)


# No combining marks: behind a character that NFKC replaces, `tokenizers` may lose them.
TEXTS = st.text(
    alphabet=" \t\n\u2581\u00a0\u3000abcdehlnoprst.,!()'12AÉéïß東京猫\ufb01\u2460\uff21Приве\U0001f600<>", max_size=30
)


@settings(max_examples=150, deadline=None)
@example(text="")
@example(text=" ")
@example(text="  two  red\n\napples ")
@example(text="\u2581the mat")
@example(text="<s>red</s><unk> <0x41> <pad>")
@given(text=TEXTS | st.lists(st.sampled_from(CORPUS), max_size=2).map("  ".join))
def test_sentencepiece_ids(sentencepiece_pair, text):
    own, ours = sentencepiece_pair
    ids = own.encode(text)
    assert ours(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] == ids
    if own.unk_id() not in ids:
        assert ours.decode(ids) == own.decode(ids)


def test_sentencepiece_corpus_is_tokenized_into_words(sentencepiece_pair):
    """The models are trained well enough that merges matter: a text has far fewer tokens than characters."""
    own, ours = sentencepiece_pair
    lengths = [len(ours(text, add_special_tokens=False)["input_ids"]) / len(text) for text in CORPUS]
    assert statistics.mean(lengths) < 0.8


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_model_with_sentencepiece_file_alone(copied, tmp_path, kind):
    for file in copied.glob("tokenizer*"):
        file.unlink()
    own = train_sentencepiece(copied, kind, **SPM_OPTIONS["llama's"], user_defined_symbols=["<sep>"])
    model, processor = start(copied)
    assert processor.pad_token_id == own.vocab_size()
    assert (processor.sot_token_id, processor.eot_token_id) == (own.bos_id(), own.eos_id()) == (1, 2)
    ShowoT2IPipeline(model, processor, MaskGITScheduler(mask_token_id=tiny.CODES)).save_pretrained(tmp_path / "a")
    loaded = ShowoT2IPipeline.from_pretrained(tmp_path / "a").processor
    for text in ("two red apples", " \U0001f600 naïve ", "<s> a</s>", "<|soi|>"):
        # As in SentencePiece, names of control symbols are plain text.
        assert loaded.text_ids(text) == processor.text_ids(text) == own.encode(text)
    [separator] = own.encode_as_ids("a<sep>")[-1:]
    assert processor.text_ids("<sep>")[-1] == separator == own.piece_to_id("<sep>")


def test_sentencepiece_models_that_cannot_be_converted(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ValueError, match="is not a SentencePiece model"):
        load_text_tokenizer(tmp_path)
    train_sentencepiece(tmp_path, "char")
    with pytest.raises(ValueError, match="must be of type unigram or BPE"):
        load_text_tokenizer(tmp_path)
    train_sentencepiece(tmp_path, "bpe", treat_whitespace_as_suffix=True)
    with pytest.raises(ValueError, match="treat_whitespace_as_suffix=True"):
        load_text_tokenizer(tmp_path)
