import pytest
import small_run
from transformers import TrainingArguments

from showo_hf.training.arguments import training_arguments


def arguments(tmp_path, **entries):
    config = small_run.config(tmp_path, **entries)
    return training_arguments(config, tmp_path)


def test_trackers_that_are_unknown_or_not_installed_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="`report_to`: swandb is not supported, only .*wandb"):
        arguments(tmp_path, report_to="swandb")
    monkeypatch.setattr("showo_hf.training.arguments.get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match="`report_to` names wandb, which is not installed: run `pip install wandb`"):
        arguments(tmp_path, report_to=["tensorboard", "wandb"])
    assert arguments(tmp_path, report_to="tensorboard").report_to == []


def test_a_process_uses_one_device_of_several(tmp_path, monkeypatch, caplog):
    assert arguments(tmp_path).n_gpu <= 1 and not caplog.records
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda self: 3))
    assert arguments(tmp_path).n_gpu == 1
    assert "3 devices are visible, and this run uses one. `accelerate launch" in caplog.text


@pytest.mark.parametrize(("value", "steps"), [(7, 7), (2.0, 2), (0.5, 2), (0.1, 1)])
def test_steps_between_checkpoints_may_be_a_share(tmp_path, value, steps):
    assert arguments(tmp_path, save_steps=value, steps=4, warmup_steps=0).save_steps == steps


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "often"])
def test_steps_between_checkpoints_are_positive(tmp_path, value):
    with pytest.raises(ValueError, match="`save_steps` must be a (number|positive integer, or a share of the steps)"):
        arguments(tmp_path, save_steps=value)


@pytest.mark.parametrize(("name", "value"), [("optim", "adamx"), ("lr_scheduler_type", "cosin"), ("eval_strategy", 5)])
def test_a_value_that_is_no_choice_is_refused_by_name(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"`{name}`: '?{value}'? is not a valid"):
        arguments(tmp_path, **{name: value})
