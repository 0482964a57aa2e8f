"""Private interfaces of other libraries that have no public replacement. Every use of one goes through this file."""

from collections.abc import Mapping
from typing import Any


def default_config_entries(config: Mapping[str, Any]) -> list[str]:
    """
    Names of the entries of a diffusers config that hold a default because no argument was passed for them.

    diffusers lists them in the config under a private key. `ConfigMixin.from_config` skips them, so that another class
    uses its own defaults, but no public function returns them.
    """
    return config.get("_use_default_values", [])
