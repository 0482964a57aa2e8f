"""Each entry of `private_interfaces` still finds what it relies on. A failure says what the library changed."""

from types import SimpleNamespace

import pytest
import tiny
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers import AmusedScheduler, DDIMScheduler
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from showo_hf.utils.private_interfaces import (
    HeldLoadReport,
    OwnCheckpoints,
    ShardedByItself,
    TextOnlyAssistant,
    default_config_entries,
    has_offload_hook,
    set_recompile_limit,
)


IMAGES = torch.zeros(1, 3, 16, 16)


def plain_language_model(vocab_size: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny.text_config("llama", vocab_size)).eval()


def prompt(model) -> torch.LongTensor:
    config = model.config
    placeholders = [config.image_token_id] * tiny.SIDE**2
    return torch.tensor([[config.mmu_token_id, config.soi_token_id, *placeholders, config.eoi_token_id, 0, 5]])


def test_transformers_takes_any_object_with_a_model_s_interface_for_an_assistant():
    model = tiny.showo()
    assistant = TextOnlyAssistant(
        plain_language_model(model.config.vocab_size), ("pixel_values", "block_sequence_ids")
    )
    calls = []
    assistant.model.register_forward_pre_hook(lambda *_: calls.append(1))
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pixel_values": IMAGES}
    try:
        found = super(type(model), model).generate(prompt(model), assistant_model=assistant, **options)
    except (TypeError, AttributeError, ValueError) as error:
        pytest.fail(f"transformers no longer takes `TextOnlyAssistant` as an assistant of `generate`: {error}")
    assert calls, "transformers no longer asks `assistant_model.generate` for candidates; see `TextOnlyAssistant`"
    assert torch.equal(found, model.generate(prompt(model), **options))


def test_transformers_still_passes_images_on_to_assistants():
    model = tiny.showo()
    with pytest.raises(ValueError, match="pixel_values"):
        plain_language_model(model.config.vocab_size).generate(torch.tensor([[1, 2]]), pixel_values=IMAGES)
        pytest.fail("Language models now ignore unknown arguments of `generate`, so `TextOnlyAssistant` can go.")


def test_diffusers_lists_default_config_entries():
    named = DDIMScheduler(num_train_timesteps=10, beta_start=0.1)
    defaults = set(named.config) - {"num_train_timesteps", "beta_start"}
    found = set(default_config_entries(named.config))
    assert found and found <= defaults and "beta_end" in found, (
        "diffusers no longer lists the defaults in a config under `_use_default_values`; see `default_config_entries`"
    )


def test_configs_without_the_list_have_no_defaults():
    assert default_config_entries({"mask_token_id": 64}) == []
    assert "mask_token_id" not in default_config_entries(AmusedScheduler(mask_token_id=64).config)


def test_torch_counts_recompilations_up_to_a_limit():
    before = getattr(torch._dynamo.config, "recompile_limit", None)
    assert isinstance(before, int), "torch no longer has `_dynamo.config.recompile_limit`; see `set_recompile_limit`"
    set_recompile_limit(before + 1)
    assert torch._dynamo.config.recompile_limit == before + 1
    set_recompile_limit(before)


def test_accelerate_marks_an_offloaded_module():
    module = torch.nn.Linear(2, 2)
    assert not has_offload_hook(module)
    cpu_offload_with_hook(module, execution_device="cpu")
    assert has_offload_hook(module), "accelerate no longer keeps its hook in `_hf_hook`; see `has_offload_hook`"
    remove_hook_from_module(module)
    assert not has_offload_hook(module)


class Calls(OwnCheckpoints, Trainer):
    """A Trainer that records what it is asked to write and to read."""

    def __init__(self, folder, **kwargs):
        self.calls = []
        args = TrainingArguments(
            str(folder), max_steps=2, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True
        )
        super().__init__(nn.Linear(1, 1), args, train_dataset=[{"x": torch.ones(1)}] * 8, **kwargs)

    def compute_loss(self, model, inputs, **kwargs):
        return model(inputs["x"]).mean()

    def save_checkpoint(self):
        self.calls.append("save")

    def load_weights(self, folder):
        self.calls.append("weights")

    def load_optimizers(self, folder):
        self.calls.append("optimizers")

    def load_random_state(self, folder):
        self.calls.append("random state")


class SaveAlways(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = True


def test_the_trainer_asks_its_own_methods_for_checkpoints(tmp_path):
    trainer = Calls(tmp_path, callbacks=[SaveAlways()])
    trainer.args.remove_unused_columns = False
    trainer.train()
    assert trainer.calls == ["save", "save"], "the Trainer no longer calls `_save_checkpoint`; see `OwnCheckpoints`"
    assert [file.name for file in tmp_path.iterdir()] == [], "the Trainer writes files past `OwnCheckpoints`"


def test_the_trainer_asks_its_own_methods_when_it_resumes(tmp_path):
    trainer = Calls(tmp_path)
    trainer.args.remove_unused_columns = False
    trainer.state.global_step, trainer.state.train_batch_size = 1, 8
    trainer.state.save_to_json(str(tmp_path / "trainer_state.json"))
    trainer.args.ignore_data_skip = True
    trainer.train(resume_from_checkpoint=str(tmp_path))
    assert trainer.state.global_step == 2
    assert trainer.calls == ["weights", "optimizers", "random state"], (
        "the Trainer loads checkpoints in another way; see `OwnCheckpoints`"
    )


class OfTwoParts(nn.Linear):
    """A model that says that two processes share it."""

    tp_size = 2
    config = SimpleNamespace(distributed_config=SimpleNamespace(dp_size=1))


def test_the_trainer_makes_no_mesh_for_a_model_that_is_divided_already(tmp_path):
    class Divided(ShardedByItself, Trainer):
        pass

    args = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    assert Divided(OfTwoParts(1, 1), args).accelerator.parallelism_config is None


def test_transformers_reports_a_load_as_before(tmp_path):
    model = plain_language_model(100)
    model.save_pretrained(tmp_path)
    weights = {name: weight for name, weight in model.state_dict().items() if name != "model.norm.weight"}
    weights["lm_head.weight"] = torch.zeros(2, 1)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with HeldLoadReport() as held, pytest.raises(RuntimeError) as error:
        LlamaForCausalLM.from_pretrained(tmp_path)
    changed = "transformers changed its report of a load, so `HeldLoadReport` no longer finds"
    assert held.text, f"{changed} it: names out of files reach the terminal"
    assert any(line.startswith("model.norm.weight | MISSING") for line in held.lines()), f"{changed} its lines"
    (line,) = held.refused(error.value)
    assert line.startswith("lm_head.weight | MISMATCH"), f"{changed} the weights that cannot be used"
