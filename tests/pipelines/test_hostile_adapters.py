"""Wrong values for every argument of the calls that choose adapters; see `hostile.try_all`."""

from typing import Any

import pytest
from hostile import ITSELF, NO_OTHERS, Plain, assert_complete, try_all
from image_pipelines import make_pipeline
from tiny_adapters import base_model

from showo_hf import ShowoT2IPipeline
from showo_hf.pipelines.lora import ShowoLoraMixin


CALLS: dict[str, dict[str, Any]] = {
    "set_adapters": {"adapter_names": "a", "adapter_weights": 1.0},
    "delete_adapters": {"adapter_names": "a"},
    "fuse_lora": {"lora_scale": 1.0, "safe_fusing": False, "adapter_names": "a"},
}
SCALE: Plain = {"minus one": -1.0, "zero": 0.0, "fraction": ITSELF}
PLAIN: dict[tuple[str, str], Plain] = {
    ("set_adapters", "adapter_names"): {"empty list": ()},
    ("set_adapters", "adapter_weights"): {"none": 1.0, "list of none": [1.0], **SCALE},
    ("delete_adapters", "adapter_names"): {"empty list": ()},
    ("fuse_lora", "lora_scale"): SCALE,
    ("fuse_lora", "safe_fusing"): {"true": ITSELF},
    ("fuse_lora", "adapter_names"): {"none": "a"},
}


@pytest.mark.parametrize(("call", "name"), [(call, name) for call, valid in CALLS.items() for name in valid])
def test_adapters(adapters, call, name):
    pipe = make_pipeline(ShowoT2IPipeline, base_model())
    pipe.load_lora_weights(adapters(), "a")
    layer = pipe.model.model.layers[1].mlp.down_proj
    before = layer.weight.clone()

    def change(**arguments) -> list[Any]:
        getattr(pipe, call)(**arguments)
        found = [pipe.get_active_adapters(), pipe.get_list_adapters(), dict(layer.scaling), layer.weight.clone()]
        if call == "fuse_lora":
            pipe.unfuse_lora()
            layer.weight.data.copy_(before)  # without rounding
        pipe.set_adapters("a", 1.0)
        return found

    def is_right(found: list[Any]) -> bool:
        return found[1] == {"model": ["a"]} and bool(found[3].isfinite().all())

    try_all(change, CALLS[call], name, is_right, PLAIN.get((call, name), NO_OTHERS))
    assert pipe.get_active_adapters() == ["a"]


TRIED = {ShowoLoraMixin: CALLS}


def test_every_argument_is_in_the_grid():
    assert_complete(TRIED)
