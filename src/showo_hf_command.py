"""
Starts the command `showo-hf`.

It lies outside of the package because importing `showo_hf` imports torch, transformers and diffusers, which takes
seconds. Help, version, completion and usage errors need none of them. So this module puts the package into
`sys.modules` before its `__init__.py` runs. The first use of a public name runs it.
"""

import sys
import warnings
from importlib.util import find_spec, module_from_spec
from threading import RLock
from types import ModuleType
from typing import Any


class UnloadedPackage(ModuleType):
    """A package whose `__init__.py` runs when a name is read that is not there yet. Submodules can be imported before."""

    lock = RLock()

    def __getattr__(self, name: str) -> Any:
        # Python and its tools look for optional names such as `__wrapped__` in every module.
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with UnloadedPackage.lock:
            if type(self) is UnloadedPackage:
                self.__class__ = ModuleType  # from here on, `__init__.py` and its imports see a usual module
                try:
                    self.__spec__.loader.exec_module(self)
                except BaseException:
                    self.__class__ = UnloadedPackage
                    raise
        return getattr(self, name)


def prepare() -> None:
    """Put the package into `sys.modules`, not loaded. Changes nothing if it is there already."""
    if "showo_hf" not in sys.modules:
        package = module_from_spec(find_spec("showo_hf"))
        package.__class__ = UnloadedPackage
        sys.modules["showo_hf"] = package


def one_line(message: Warning | str, category: type[Warning], *place: object) -> str:
    """A warning in one line, without the line of code that gave it: `warnings.formatwarning` of the command."""
    return f"showo-hf: warning: {' '.join(str(message).split())}\n"


def main() -> int:
    """Run the command on the arguments of the process, and return its exit code."""
    prepare()
    warnings.formatwarning = one_line
    # Pillow's warning of large images: the command has a limit of its own.
    warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")
    from showo_hf.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
