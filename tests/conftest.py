"""Fixtures that several files use: recorded numbers of the original, and models with the recorded weights."""

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import conversations
import pytest
import tiny
import torch
from golden.seeded_weights import seeded_tensor
from hub_server import hub, hub_here  # noqa: F401
from safetensors.torch import load_file
from tiny_adapters import adapters  # noqa: F401
from transformers import AutoTokenizer, PhiConfig

from showo_hf import (
    ShowoConfig,
    ShowoForCausalLM,
    ShowoLFQTokenizer,
    ShowoLFQTokenizerConfig,
    ShowoProcessor,
    ShowoT2IPipeline,
)
from showo_hf.conversion.weight_names import (
    MAGVITV2_CONSTANTS,
    is_attention_kernel,
    magvitv2_name,
    showo_name,
)
from showo_hf.processing.processing_showo import add_showo_tokens, showo_image_processor


GOLDEN = Path(__file__).parent / "golden"
#: The minutes after which no further test starts, without limit by default. `.ci/run` has a limit for slow machines.
TEST_MINUTES = float(os.environ.get("TEST_MINUTES", "inf"))
STARTED = time.monotonic()


def pytest_configure():
    """Compute with one thread: `make test` runs two processes, and results depend on the number of threads."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for processes that tests start
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # its pool of processes can wait for ever
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)


def pytest_runtest_setup(item):
    if time.monotonic() - STARTED >= 60 * TEST_MINUTES:
        pytest.skip(f"not run: the tests before it took {TEST_MINUTES:g} minutes")


def pytest_terminal_summary(terminalreporter):
    """Print what tests recorded as `said`, also from other processes."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    for report in reports:
        for name, text in getattr(report, "user_properties", ()):
            if name == "said" and report.when == "call":
                terminalreporter.write_line(text)


def read_json(name: str):
    return json.loads((GOLDEN / name).read_text())


@pytest.fixture(scope="session")
def reference():
    """Recorded numbers of the transformer: `.tensors` by name, `.cases` by name, `.prompts`."""
    recorded = read_json("showo.json")
    return SimpleNamespace(
        tensors=load_file(GOLDEN / "showo.safetensors"),
        cases=recorded["cases"],
        prompts=recorded["prompts"],
        special_ids=recorded["special_ids"],
        phi=recorded["phi_config"],
    )


@pytest.fixture(scope="session")
def reference_model(reference) -> ShowoForCausalLM:
    """The model with the recorded weights. A test that changes it must restore it."""
    options = dict(reference.phi)
    rope = {name: options.pop(name) for name in ("rope_theta", "partial_rotary_factor")}
    text_config = PhiConfig(**options, rope_parameters={"rope_type": "default", **rope})
    model = ShowoForCausalLM(ShowoConfig(text_config=text_config)).eval()
    shapes = read_json("showo_manifest.json")
    model.load_state_dict({showo_name(name): seeded_tensor(name, tuple(shape)) for name, shape in shapes.items()})
    return model


@pytest.fixture(scope="session")
def reference_processor() -> ShowoProcessor:
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "phi-1_5-tokenizer")
    return ShowoProcessor(showo_image_processor(256), add_showo_tokens(tokenizer))


@pytest.fixture(scope="session")
def magvitv2() -> ShowoLFQTokenizer:
    """The full-size image tokenizer with the recorded weights."""
    model = ShowoLFQTokenizer(ShowoLFQTokenizerConfig()).eval()
    weights = {}
    for name, (shape, _) in read_json("magvitv2_manifest.json").items():
        if name not in MAGVITV2_CONSTANTS:
            weight = seeded_tensor(name, tuple(shape))
            weights[magvitv2_name(name)] = weight[:, :, 0, 0] if is_attention_kernel(name) else weight
    model.load_state_dict(weights)
    return model


@pytest.fixture(scope="session")
def magvitv2_records():
    return load_file(GOLDEN / "magvitv2.safetensors")


@pytest.fixture(scope="session")
def processor() -> ShowoProcessor:
    return tiny.processor()


@pytest.fixture(scope="session", params=["phi", "llama"])
def backbone(request) -> str:
    return request.param


@pytest.fixture
def model(backbone) -> ShowoForCausalLM:
    return tiny.showo(backbone)


@pytest.fixture
def pipe(processor) -> ShowoT2IPipeline:
    """A tiny pipeline, new for each test."""
    return tiny.pipeline(processor)


@pytest.fixture
def small_files():
    """Limits the size of the files that this process may write, as a full disk does. -1 is no limit."""
    resource = pytest.importorskip("resource")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size == -1 else size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="session")
def objects():
    """The cut-outs of tests/world_objects.py."""
    from world_objects import drawn_objects  # which other tests need not wait for

    return drawn_objects()


@pytest.fixture(scope="session")
def taught_folder(tmp_path_factory) -> str:
    """A saved pipeline that answers "an owl." to an image and "what?", and two images to "two hearts"."""
    folder = tmp_path_factory.mktemp("models") / "taught"
    conversations.trained_chat_pipeline().save_pretrained(folder)
    return str(folder)
