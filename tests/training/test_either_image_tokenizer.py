"""A model with a codebook of vectors trains like one with the lookup-free quantizer."""

import json
import shutil

import pytest
import small_run
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from showo_hf import MaskGITScheduler, ShowoT2IPipeline, ShowoVQTokenizer
from showo_hf.cli import main
from showo_hf.training.recipe_files import load_recipe
from showo_hf.training.run import run_recipe
from showo_hf.training.showo_training import load_pipeline


@pytest.fixture
def pipe(tmp_path) -> ShowoT2IPipeline:
    """A pipeline with a codebook of vectors, which lies in the folder `model` too."""
    processor = tiny.processor()
    model = tiny.showo_with("vq", text_ids=processor.pad_token_id)
    pipe = ShowoT2IPipeline(model, processor, MaskGITScheduler(mask_token_id=tiny.CODES))
    pipe.save_pretrained(tmp_path / "model")
    return pipe


def test_a_run_takes_a_model_with_a_codebook_of_vectors(pipe, tmp_path):
    output = small_run.run(tmp_path, model=str(tmp_path / "model"), steps=2, batch_size=2)
    trained = ShowoT2IPipeline.from_pretrained(output)
    assert type(trained.image_tokenizer) is ShowoVQTokenizer
    assert small_run.same_weights(pipe.image_tokenizer.state_dict(), trained.image_tokenizer.state_dict())
    assert not torch.equal(pipe.model.lm_head.weight, trained.model.lm_head.weight)
    assert any("loss_t2i" in row for row in small_run.log_rows(tmp_path))


@pytest.mark.parametrize(
    "recipe", ["lora", *(pytest.param(name, marks=pytest.mark.slow) for name in ("concept", "instruct"))]
)
def test_fine_tuning_takes_a_model_with_a_codebook_of_vectors(recipe, pipe, tmp_path):
    images = small_run.shared() / "images"
    entries = [
        f"model={tmp_path / 'model'}",
        f"output={tmp_path / 'out'}",
        "steps=2",
        "batch_size=2",
        "warmup_steps=0",
    ]
    if recipe == "concept":
        (tmp_path / "thing").mkdir()
        shutil.copy(images / "00.png", tmp_path / "thing")
        entries += [f"data={tmp_path / 'thing'}", "word=owl"]
    elif recipe == "instruct":
        turns = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": "a red apple."}]
        rows = [{"image": name, "conversations": turns} for name in ("00.png", "01.png")]
        for row in rows:
            shutil.copy(images / row["image"], tmp_path)
        (tmp_path / "conversations.json").write_text(json.dumps(rows))
        entries += [f"data={tmp_path / 'conversations.json'}"]
    else:
        entries += [f"data={images}"]
    assert main(["train", recipe, *entries, "logging_steps=1", "use_cpu=true", "report_to=none"]) == 0
    loss = "loss_mmu" if recipe == "instruct" else "loss_t2i"
    assert [row["step"] for row in small_run.log_rows(tmp_path) if loss in row] == [1, 2]
    if recipe == "instruct":
        trained = ShowoT2IPipeline.from_pretrained(tmp_path / "out")
        assert small_run.same_weights(pipe.image_tokenizer.state_dict(), trained.image_tokenizer.state_dict())
    else:
        pipe.load_lora_weights(tmp_path / "out")
        assert pipe.get_active_adapters()


@pytest.mark.parametrize("kind", ["lfq", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("vq", "llama"))])
def test_a_stage_starts_with_either(kind, tmp_path):
    tokenizer = tiny.text_tokenizer()
    text_model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    )
    for place in ("text", "llama"):
        text_model.save_pretrained(tmp_path / place)
        tokenizer.save_pretrained(tmp_path / place)
    tiny.lfq().save_pretrained(tmp_path / "lfq")
    tiny.vq().save_pretrained(tmp_path / "vq")
    tasks = dict.fromkeys(("t2i", "lm", "mmu"), str(small_run.shared() / "images"))
    config = load_recipe(
        "stage1",
        [
            *(f"text_model={tmp_path / 'text'}", f"image_tokenizer={tmp_path / kind}", f"data={json.dumps(tasks)}"),
            *("batch_size={t2i: 2, lm: 1, mmu: 1}", "steps=1", "warmup_steps=0", f"output={tmp_path / 'out'}"),
            *("logging_steps=1", "use_cpu=true", "report_to=none"),
        ],
    )
    if kind == "llama":
        with pytest.raises(ValueError, match="`image_tokenizer` must be .* a ShowoVQTokenizer, got .* a LlamaModel"):
            load_pipeline(config)
        return
    start = load_pipeline(config)
    assert start.image_tokenizer.config.model_type == f"showo_{kind}"
    if kind == "vq":
        trained = ShowoT2IPipeline.from_pretrained(run_recipe(config))
        assert small_run.same_weights(start.image_tokenizer.state_dict(), trained.image_tokenizer.state_dict())
        assert not torch.equal(start.model.lm_head.weight, trained.model.lm_head.weight)
        losses = {"loss_t2i", "loss_lm", "loss_mmu"}
        assert any(losses <= row.keys() for row in small_run.log_rows(tmp_path))
