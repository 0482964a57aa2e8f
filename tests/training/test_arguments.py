import pytest
import small_run

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


@pytest.mark.parametrize(("name", "value"), [("optim", "adamx"), ("lr_scheduler_type", "cosin"), ("eval_strategy", 5)])
def test_a_value_that_is_no_choice_is_refused_by_name(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"`{name}`: '?{value}'? is not a valid"):
        arguments(tmp_path, **{name: value})
