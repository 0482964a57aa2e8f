"""What the files of PyTorch say about devices, against PyTorch itself."""

import sys

import pytest
import torch

from showo_hf.commands import devices


def test_the_files_of_torch_say_what_it_is_built_for():
    built = devices.torch_build()
    assert (built["cuda"], built["hip"]) == (torch.version.cuda, torch.version.hip)
    for kind in devices.DEVICES:
        there = kind == "cpu" or (
            torch.accelerator.is_available() and torch.accelerator.current_accelerator().type == kind
        )
        assert not (there and devices.absence(kind)), kind
    assert not (devices.only_cpu() and torch.accelerator.is_available())


def test_a_package_can_add_a_device_to_torch(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "absence", lambda kind: "torch is not built for it")
    assert devices.only_cpu()
    (tmp_path / "other-1.0.dist-info").mkdir()
    (tmp_path / "other-1.0.dist-info/METADATA").write_text("Name: other\nVersion: 1.0\n")
    (tmp_path / "other-1.0.dist-info/entry_points.txt").write_text("[torch.backends]\nother = other:load\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert not devices.only_cpu()


@pytest.mark.parametrize(
    ("version", "kind", "absent"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", "cuda", True),
        ("cuda = None\nhip = '6.4'\n", "cuda", False),
        ("xpu: Optional[str] = None\n", "xpu", True),
        ("xpu: Optional[str] = '20250000'\n", "xpu", False),
        ("nothing = 1\n", "cuda", False),
        ("not python (", "cuda", False),
    ],
)
def test_a_device_is_refused_where_torch_is_not_built_for_it(tmp_path, monkeypatch, version, kind, absent):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").touch()
    (tmp_path / "torch/version.py").write_text(version)
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(tmp_path)
    assert (devices.absence(kind) is not None) == absent


def test_cuda_needs_a_driver(monkeypatch):
    monkeypatch.setattr(devices, "torch_build", lambda: {"cuda": "12.8", "hip": None})
    monkeypatch.setattr(devices.sys, "platform", "linux")
    monkeypatch.setattr(devices, "CUDA_DRIVER", "libthere_is_none.so.1")
    assert devices.absence("cuda") == "there is no NVIDIA driver"
    monkeypatch.setattr(devices, "CUDA_DRIVER", "libc.so.6")
    assert devices.absence("cuda") is None
