"""
The hostile grid covers the public interface: every class of `showo_hf.__all__`, and every call of it that refuses
arguments. The modules `test_hostile_*` try wrong values for every argument of a call, and list the calls as `TRIED`.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

import showo_hf


TESTS = Path(__file__).parent
RESULT = "a result: pipelines make it, and nobody else builds one"
#: The public classes that are not in the grid, with the reason.
WITHOUT_CALLS = dict.fromkeys(
    (
        "AnswerDone",
        "ImageDone",
        "ImageStep",
        "ShowoAnyToAnyPipelineOutput",
        "ShowoImagePipelineOutput",
        "ShowoMMUPipelineOutput",
        "ShowoScoreOutput",
        "TextPiece",
    ),
    RESULT,
)
FILES = "reads or writes files, with transformers' or diffusers' arguments; its own tests have hostile folders"
PART = "a part of a call that is in the grid"
#: Calls that refuse arguments and are not in the grid, by class, with the reason.
NOT_TRIED = {
    "CheckedConfig.get_config_dict": FILES,
    "CheckedWeights.from_pretrained": FILES,
    "ShowoPipeline.from_pretrained": FILES,
    "ShowoLoraMixin.load_lora_weights": FILES,
    "ShowoLoraMixin.save_lora_weights": FILES,
    "ShowoLoraMixin.unfuse_lora": "it has no arguments",
    "ShowoConfig.feature_width": "it has no arguments",
    "MaskedSchedulerMixin.step_index": PART,
    "MaskedSchedulerMixin.sample_tokens": PART,
    "ShowoEditingPipeline.check_image": PART,
    "ShowoEditingPipeline.load_images": PART,
    "ShowoProcessor.image_ids": PART,
    "ShowoProcessor.pad_rows": PART,
}


def public_classes() -> list[type]:
    """The classes of `showo_hf.__all__`. The other names are a path and `load_image`."""
    found = [getattr(showo_hf, name) for name in showo_hf.__all__]
    return [one for one in found if isinstance(one, type)]


@pytest.fixture(scope="module")
def tried() -> set[tuple[type, str]]:
    """Class and name of each call of the grid."""
    calls = set()
    for file in sorted(TESTS.rglob("test_hostile_*.py")):
        if "\nTRIED" in file.read_text(encoding="utf-8"):
            spec = importlib.util.spec_from_file_location(f"tried_{file.stem}", file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            calls.update((kind, call) for kind, of_kind in module.TRIED.items() for call in of_kind)
    return calls


def refusing_calls(kind: type) -> Iterator[tuple[type, str]]:
    """Our class, and the name, of each public call whose documentation, or its class's for a constructor, has errors."""
    for owner in kind.__mro__:
        if not owner.__module__.startswith("showo_hf"):
            continue
        for name, value in vars(owner).items():
            called = getattr(owner, name)
            if isinstance(value, type) or not callable(called) or (name.startswith("_") and name[:2] != "__"):
                continue
            documented = owner if name == "__init__" else called
            if "Raises:" in (documented.__doc__ or ""):
                yield owner, name


@pytest.mark.parametrize("kind", public_classes(), ids=lambda kind: kind.__name__)
def test_every_public_class_is_in_the_grid(kind, tried):
    in_grid = any(issubclass(kind, one) for one, _ in tried)
    assert in_grid != (kind.__name__ in WITHOUT_CALLS), (
        "try wrong values in a `test_hostile_*`, or give a reason above"
    )
    owners = {kind, *kind.__mro__}
    missing = {
        f"{owner.__name__}.{name}"
        for owner, name in refusing_calls(kind)
        if not any(one in owners and call == name for one, call in tried)
    }
    assert missing <= {*NOT_TRIED}, "try wrong values in a `test_hostile_*`, or give a reason above"


def test_the_reasons_are_of_calls_that_exist():
    found = {f"{owner.__name__}.{name}" for kind in public_classes() for owner, name in refusing_calls(kind)}
    assert {*NOT_TRIED} <= found and {*WITHOUT_CALLS} <= {*showo_hf.__all__}
