"""A model with a codebook of vectors trains like one with the lookup-free quantizer."""

import json

import pytest
import small_run
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from showo_hf import ShowoT2IPipeline, ShowoVQTokenizer
from showo_hf.training.recipe_files import load_recipe
from showo_hf.training.showo_training import load_pipeline


def test_a_run_takes_a_model_with_a_codebook_of_vectors(tmp_path):
    pipe = tiny.pipeline(tiny.processor())
    config = type(pipe.model.config)(
        **pipe.model.config.to_dict() | {"image_tokenizer_config": tiny.vq_config().to_dict()}
    )
    pipe = ShowoT2IPipeline(type(pipe.model)(config), pipe.processor, pipe.scheduler)
    pipe.model.image_tokenizer.load_state_dict(tiny.vq().state_dict())
    pipe.save_pretrained(tmp_path / "model")
    output = small_run.run(tmp_path, model=str(tmp_path / "model"), steps=2, batch_size=2)
    trained = ShowoT2IPipeline.from_pretrained(output)
    assert type(trained.image_tokenizer) is ShowoVQTokenizer
    assert small_run.same_weights(pipe.image_tokenizer.state_dict(), trained.image_tokenizer.state_dict())
    assert not torch.equal(pipe.model.lm_head.weight, trained.model.lm_head.weight)
    assert any("loss_t2i" in row for row in small_run.log_rows(tmp_path))


@pytest.mark.parametrize("kind", ["lfq", "vq", "llama"])
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
            *("batch_size={t2i: 2, lm: 1, mmu: 1}", "steps=1", f"output={tmp_path / 'out'}"),
        ],
    )
    if kind == "llama":
        with pytest.raises(ValueError, match="`image_tokenizer` must be .* a ShowoVQTokenizer, got .* a LlamaModel"):
            load_pipeline(config)
    else:
        assert load_pipeline(config).image_tokenizer.config.model_type == f"showo_{kind}"
