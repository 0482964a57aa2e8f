"""Pickles of a few bytes that take any memory or time, and archives that read differently for Python and for torch."""

import io
import os
import re
import resource
import signal
import struct
import warnings
import zipfile
from collections.abc import Callable

import pytest
import torch

from showo_hf.conversion.checkpoint import Checkpoint
from showo_hf.conversion.errors import ConversionError
from showo_hf.conversion.pickle_check import MAX_BYTES, MAX_INSTRUCTIONS, PickleError, check_pickle
from showo_hf.conversion.pickles import PickleFile


needs_proc = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
SECONDS, MEMORY = 5, 150_000  # of processor time and in KB: what a refusal may take
START = b"\x80\x02"


def saved(content, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def archive(pickle: bytes, name: str = "archive/data.pkl") -> bytes:
    """A file of `torch.save` with three numbers and with this pickle."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as new:
        new.writestr(name, pickle)
        new.writestr("archive/version", "3\n")
        new.writestr("archive/data/0", torch.zeros(3).numpy().tobytes())
    return packed.getvalue()


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def storage(key: bytes, count: int = 3, kind: str = "FloatStorage") -> bytes:
    return b"(" + word("storage") + name("torch", kind) + key + word("cpu") + number(count) + b"tQ"


def tensor(rows: int, columns: int, source: bytes) -> bytes:
    sizes = number(rows) + number(columns) + b"\x86" + number(columns) + number(1) + b"\x86"
    hooks = name("collections", "OrderedDict") + b")R"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + source + number(0) + sizes + b"\x89" + hooks + b"tR"


def dictionary(key: bytes, value: bytes) -> bytes:
    return START + b"}" + key + value + b"s."


FEW = storage(word("0"))
DEEP = b")" + b"\x85" * 1_000_000
DOUBLED = b")q\x00" + b"h\x00\x86q\x00" * 60

HOSTILE = {
    "bytearray": START + name("__builtin__", "bytearray") + number(2**30) + b"\x85R.",
    "builtins": START + name("builtins", "bytearray") + number(2**30) + b"\x85R.",
    "tensor class": START + name("torch", "FloatTensor") + number(10**6) + number(10**6) + b"\x86R.",
    "new tensor": START + name("torch", "FloatTensor") + number(10**4) + number(10**4) + b"\x86\x81.",
    "untyped storage": START + name("torch.storage", "UntypedStorage") + number(2**30) + b"\x85R.",
    "storage class": START + name("torch", "FloatStorage") + number(2**30) + b"\x85R.",
    "lists": START + b"]" * (MAX_BYTES - 3) + b".",
    "more lists": START + b"]" * (2**25 - 3) + b".",
    "sets": START + b"\x8f" * (MAX_BYTES - 3) + b".",
    "deep key": dictionary(DEEP, b"N"),
    "doubled key": dictionary(DOUBLED, b"N"),
    "doubled keys": START + b"}(" + DOUBLED + b"Nu.",
    "key in an argument": START + name("collections", "OrderedDict") + b"](" + DOUBLED + b"Ntae\x85R.",
    "doubled name of numbers": dictionary(word("x"), tensor(1, 3, storage(DOUBLED))),
    "other sizes": dictionary(word("x"), tensor(30_000, 30_000, FEW)),
    "other number of numbers": dictionary(word("x"), tensor(30_000, 30_000, storage(word("0"), 2**31 - 1))),
    "other call": START + name("collections", "OrderedDict") + b"N\x85R.",
    "resized tensor": dictionary(word("x"), tensor(1, 3, FEW) + b"(" + FEW + b"K\x00" + b")" + b")" + b"tb"),
    "no value": START + b"R.",
    "no mark": START + b"t.",
    "unknown memo": START + b"h\x07.",
    "two values": START + b"NN.",
    "no end": START + b"N",
    "old code": START + b"(S'true'\nios\nsystem\n.",
    "stack global": START + word("os") + word("system") + b"\x93.",
}


def in_a_child(work: Callable[[], object]) -> tuple[str, int]:
    """How work is refused, or "accepted", and by how many KB it raises the peak of resident memory, in its own process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20 * SECONDS)  # ends a child that waits
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        torch.set_num_threads(1)  # fork copies no threads
        message, before = "accepted", peak()  # the child's own peak: it starts from what the parent has now
        try:
            work()
        except ConversionError as error:
            message = str(error)
        finally:
            os.write(writer, f"{peak() - before} {message}".encode()[:4000])
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    assert status == 0 and text, f"the process ended with status {status}"
    growth, message = text.split(" ", 1)
    return message, int(growth)


def peak() -> int:
    with open("/proc/self/status", encoding="utf-8") as status:
        return int(re.search(r"VmHWM:\s*(\d+)", status.read())[1])


@needs_proc
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_pickle_takes_little_memory_and_time(tmp_path, kind):
    (tmp_path / "pytorch_model.bin").write_bytes(archive(HOSTILE[kind]))
    message, growth = in_a_child(lambda: Checkpoint(tmp_path))
    assert growth < MEMORY, (growth, message)
    assert re.search("was refused|has a pickle of|cannot be read", message) and len(message) < 500, message
    assert kind.startswith("other ") or "cannot be read" not in message


@needs_proc
def test_the_measure_sees_memory_of_torch():
    message, growth = in_a_child(lambda: torch.ones(2**26))
    assert message == "accepted" and growth > MEMORY


@pytest.mark.parametrize(
    "content",
    [
        torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict(),
        dict(torch.nn.Linear(2, 3).named_parameters()),
        {f"{dtype}": torch.ones(2, 3).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)},
        {f"{dtype}": torch.ones(2, 3).to(dtype) for dtype in (torch.int8, torch.uint8, torch.int64, torch.bool)},
        {"a": torch.ones(4, 6)[1:, 2:], "b": torch.ones(3, 2).t(), "c": torch.tensor(1.0), "d": torch.ones(0, 3)},
        {"x" * 200 + str(index): torch.zeros(1) for index in range(300)},
    ],
)
def test_what_torch_writes_is_read(tmp_path, content):
    (tmp_path / "model.bin").write_bytes(saved(content))
    file = PickleFile(tmp_path / "model.bin")
    assert file.names == list(content)
    for key, value in content.items():
        assert file.dtype(key) == value.dtype and torch.equal(file.tensor(key), value)


def test_the_wrapper_of_a_training_is_read(tmp_path):
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {
        "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "epoch": 3,
        "done": True,
    }
    (tmp_path / "last.ckpt").write_bytes(saved(content))
    assert PickleFile(tmp_path / "last.ckpt").names == ["weight", "bias"]


def test_a_file_without_checksums_is_read(tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        (tmp_path / "model.bin").write_bytes(saved({"x": torch.ones(3)}))
    finally:
        torch.serialization.set_crc32_options(before)
    assert PickleFile(tmp_path / "model.bin").names == ["x"]


def test_the_pickle_of_2000_tensors_is_far_below_the_limits(tmp_path):
    with zipfile.ZipFile(io.BytesIO(saved({f"layer.{i}.weight": torch.zeros(1, 1) for i in range(2000)}))) as file:
        content = file.read("archive/data.pkl")
    check_pickle(content)
    assert len(content) < MAX_BYTES / 3
    with pytest.raises(PickleError, match="instructions"):
        check_pickle(START + b"N" * (MAX_INSTRUCTIONS + 1) + b".")


GOOD = saved({"x": torch.zeros(3)})


def with_comment() -> bytes:
    packed = io.BytesIO(GOOD)
    with zipfile.ZipFile(packed, "a") as file:
        file.comment = b"hello"
    return packed.getvalue()


def with_two(second: str) -> bytes:
    packed = io.BytesIO(archive(dictionary(word("x"), tensor(1, 3, FEW))))
    with zipfile.ZipFile(packed, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a second part of the same name
        file.writestr(second, HOSTILE["bytearray"])
    return packed.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (archive(HOSTILE["bytearray"]) + GOOD, "list of its parts|end is not where"),
        (b"PK\x03\x04" + GOOD, "list of its parts|end is not where"),
        (b"x" * 64 + GOOD, "cannot be read"),
        (GOOD + b"x", "cannot be read"),
        (with_comment(), "cannot be read|list of its parts"),
        (with_two("archive/data.pkl"), "one part data.pkl, got 2"),
        (with_two("archive/DATA.PKL"), "one part data.pkl, got 2"),
        (with_two("other/data.pkl"), "one part data.pkl, got 2"),
        (archive(b"N.", "archive/other"), "one part data.pkl, got 0"),
        (b"", "cannot be read"),
        (b"PK\x03\x04", "cannot be read"),
        (b"PK\x03\x04" + b"PK\x05\x06" + bytes(18), "list of its parts"),
    ],
)
def test_an_archive_that_torch_did_not_write_is_refused(tmp_path, monkeypatch, content, message):
    monkeypatch.setattr(torch, "load", lambda *arguments, **options: pytest.fail("it must not be read"))
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(ConversionError, match=message):
        PickleFile(tmp_path / "model.bin")


def test_an_archive_of_very_many_parts_is_refused(tmp_path, monkeypatch):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for index in range(25_000):
            file.writestr(f"archive/{index}/{'x' * 40}", b"")
    (tmp_path / "model.bin").write_bytes(packed.getvalue())
    monkeypatch.setattr(zipfile, "ZipFile", lambda *arguments: pytest.fail("it must not be read"))
    with pytest.raises(ConversionError, match="list of parts of"):
        PickleFile(tmp_path / "model.bin")
