"""Embeddings of image tokens that a small network computes from the codebook, while a model is trained.

Rows of an embedding are learned apart: the model cannot know that two tokens look alike, so what it learns of one says
nothing about the other. An image that is unlike those of the training, such as a thing in a colour in which it was never
shown, has other tokens than they have, and the model cannot draw or read it. A network that sees the codebook entries gives
tokens that look alike rows that are alike.

After the training, the rows are plain numbers again: the tensors of the model have the names and shapes that they had.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from ..models.image_tokenizer import ShowoImageTokenizer
from ..models.modeling_showo import ShowoForCausalLM


#: The width of the network.
WIDTH = 1024
#: How much of a row is learned apart from the network. Tokens whose entries are almost equal differ by it.
APART = 0.1
#: Rows of which a network that saw one half of them explains this share of the variance of the other half go on as they are.
KNOWN = 0.5
_RIDGE = 1e-6  # of the trace, against a fit that is all noise
_SPREAD = 2.0  # standard deviation of what the network's inner units see: large enough to tell near entries apart


class CodeEmbeddings(nn.Module):
    r"""
    The parametrization of an embedding: row $k$ of the image tokens is $s\,W\,\mathrm{gelu}(U e_k + b) + 0.1\,r_k$.

    $e_k$ is the codebook entry and $r_k$ the row that is learned apart. At the scale $s$, a random $W$ gives the rows
    the mean square of those that they replace. All other rows are learned as they are.

    If the rows of one half of the tokens explain [`KNOWN`] of the variance of the other half, as those of a model that was
    trained in this way do, they go on as they are: $W$ is fitted to them, and $r_k$ is what the fit leaves. Other rows are
    learned anew: $W$ is random, and $r_k$ starts as 0.

    Args:
        entries: the codebook, (codebook_size, channels).
        first: the id of the first image token.
        weight: the embedding, (vocab_size, hidden). Its rows of the image tokens become those that are learned apart.
        generator: a generator on the CPU, for the first weights of the network.
    """

    def __init__(self, entries: torch.Tensor, first: int, weight: nn.Parameter, generator: torch.Generator):
        super().__init__()
        device, entries = weight.device, entries.float()
        entries = (entries - entries.mean(0)) / entries.std()
        self.rows = slice(first, first + len(entries))
        self.inner = nn.Linear(entries.shape[1], WIDTH)
        self.outer = nn.Linear(WIDTH, weight.shape[1], bias=False)
        with torch.no_grad():
            self.inner.weight.normal_(0, _SPREAD / entries.shape[1] ** 0.5, generator=generator)
            self.inner.bias.normal_(0, 1.0, generator=generator)
            self.outer.weight.normal_(0, WIDTH**-0.5, generator=generator)
            self.scale = 1.0
            self.to(device)
            self.register_buffer("entries", entries.to(device), persistent=False)
            replaced = weight[self.rows]
            self.scale = (replaced.square().mean() / self.computed().square().mean()).sqrt().item()
            features, known = self.features().cpu().double(), replaced.cpu().double()  # not every device has float64
            if _explained(features, known) > KNOWN:
                self.outer.weight.copy_(_fitted(features, known).T / self.scale)
                replaced.sub_(self.computed()).div_(APART)
            else:
                replaced.zero_()

    def features(self) -> torch.Tensor:
        """What the network's inner units say of each entry: (codebook_size, WIDTH)."""
        return F.gelu(self.inner(self.entries))

    def computed(self) -> torch.Tensor:
        """What the network computes: (codebook_size, hidden)."""
        return self.scale * self.outer(self.features())

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The learned tensor (vocab_size, hidden) to the embedding of the same shape."""
        with torch.autocast(weight.device.type, enabled=False):  # the saved rows are computed without it, too
            rows = self.computed() + APART * weight[self.rows]
        return torch.cat((weight[: self.rows.start], rows.to(weight.dtype), weight[self.rows.stop :]))


def _fitted(features: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The matrix (features, hidden) that gives rows (count, hidden) from features (count, features), by ridge regression."""
    products = features.T @ features
    products.diagonal().add_(_RIDGE * products.trace())
    return torch.linalg.solve(products, features.T @ rows)


def _explained(features: torch.Tensor, rows: torch.Tensor) -> float:
    """The share of the variance of every second row that a fit to the others explains; less than 0 for a bad fit."""
    left_out = rows[1::2]
    wrong = left_out - features[1::2] @ _fitted(features[::2], rows[::2])
    return 1 - (wrong.square().sum() / (left_out - left_out.mean(0)).square().sum()).item()


class SameWeight(nn.Module):
    """
    The parametrization of a head that is tied to an embedding: it has the embedding's weight, whatever that is.

    Args:
        embedding: the embedding, which does not become a submodule.
    """

    def __init__(self, embedding: nn.Module):
        super().__init__()
        self.embedding = (embedding,)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The embedding's weight, (vocab_size, hidden). `weight` is the learned tensor, which the embedding shares."""
        return self.embedding[0].weight


def codebook_entries(image_tokenizer: ShowoImageTokenizer) -> torch.Tensor:
    """All entries of a codebook, (codebook_size, channels)."""
    tokens = torch.arange(image_tokenizer.config.codebook_size, device=image_tokenizer.device)
    with torch.no_grad():
        return image_tokenizer.codes_of(tokens[None, None])[0, :, 0].T  # (1, channels, 1, codebook_size) before


def embed_codes(model: ShowoForCausalLM, seed: int = 0):
    """
    Compute the rows of image tokens in the embedding and in the head by a network, until [`plain_embeddings`].

    A head that is tied to the embedding stays tied; another one gets a network of its own.

    Args:
        model: has an image tokenizer.
        seed: seed of the network's first weights.

    Raises:
        ValueError: if the model has no image tokenizer.
    """
    if model.image_tokenizer is None:
        raise ValueError(
            "`embed_codes` needs a model with an image tokenizer, got one whose `image_tokenizer` is None."
        )
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    entries, first = codebook_entries(model.image_tokenizer), model.config.image_token_offset
    generator = torch.Generator().manual_seed(seed)
    tied = head.weight is embedding.weight
    codes = CodeEmbeddings(entries, first, embedding.weight, generator)
    own = SameWeight(embedding) if tied else CodeEmbeddings(entries, first, head.weight, generator)
    parametrize.register_parametrization(embedding, "weight", codes)
    parametrize.register_parametrization(head, "weight", own)


@torch.no_grad()
def plain_embeddings(model: ShowoForCausalLM):
    """
    Make the rows that [`embed_codes`] computes plain parameters again, with their present values.

    torch's own function for this would also change a model that `model` was copied from.
    """
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    values = [module.weight for module in modules]  # before the learned tensors change, which a tied head shares
    for module, value in zip(modules, values, strict=True):
        learned, kind = module.parametrizations.weight.original, parametrize.type_before_parametrizations(module)
        del module.parametrizations
        module.__class__ = kind  # the class of a parametrized module belongs to its copies as well
        learned.data, module.weight = value, learned
