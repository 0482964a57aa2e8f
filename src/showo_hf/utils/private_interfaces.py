"""The only uses of other libraries beyond their documented interfaces. Each entry gives the reason.

`tests/utils/test_private_interfaces.py` fails with a clear sentence when a library changes what an entry relies on.
"""

from typing import Any


class TextOnlyAssistant:
    """
    An assistant for `generate` that is a plain language model: it gets the ids of the prompt, but no images.

    Reason: transformers passes every model argument of the main model on to the assistant's `generate`, which refuses
    arguments that its `forward` does not know. No public option leaves any of them out. This class relies on
    transformers accepting as `assistant_model` any object with the attributes and the `generate` of a model.

    Args:
        model: the assistant, a model of transformers.
        left_out (`tuple[str, ...]`): names of the arguments that it does not get.
    """

    def __init__(self, model: Any, left_out: tuple[str, ...]):
        self.model = model
        self.left_out = left_out

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def generate(self, *args, **kwargs) -> Any:
        """The assistant's own `generate`, without the arguments that are left out."""
        return self.model.generate(
            *args, **{name: value for name, value in kwargs.items() if name not in self.left_out}
        )
