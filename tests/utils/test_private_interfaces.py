"""The private interfaces that we use still exist and behave as we expect."""

from diffusers import AmusedScheduler, DDIMScheduler

from showo_hf.utils.private_interfaces import default_config_entries


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
