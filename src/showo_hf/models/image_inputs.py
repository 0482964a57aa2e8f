"""Images of a [`ShowoForCausalLM`]: to image tokens and back, to continuous features, and into the embeddings."""

from collections.abc import Callable

import torch
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from ..utils.tensor_checks import check_tensor
from .configuration_showo import ShowoConfig
from .image_tokenizer import ShowoImageTokenizer


class ShowoImageMixin:
    """
    The methods of a [`ShowoForCausalLM`] that read and write images.
    """

    # Attributes of the model that these methods use.
    config: ShowoConfig
    image_tokenizer: ShowoImageTokenizer | None
    vision_tower: CLIPVisionModel | None
    mm_projector: nn.Module | None
    get_input_embeddings: Callable[[], nn.Module]

    @torch.no_grad()
    @apply_forward_hook
    def encode_images(self, pixel_values: torch.Tensor) -> torch.LongTensor:
        """
        Encode images to image tokens.

        Args:
            pixel_values (`torch.Tensor` of shape `(images, 3, H, W)`): pixels in [-1, 1].

        Returns:
            `torch.LongTensor` of shape `(images, h, w)`: codebook indices in 0..codebook_size-1.

        Raises:
            ValueError: if the model has no image tokenizer, or if the image tokenizer cannot encode this size.
        """
        return self.require_image_tokenizer("pixel_values").encode(pixel_values).image_tokens

    @torch.no_grad()
    @apply_forward_hook
    def decode_images(self, image_tokens: torch.LongTensor) -> torch.Tensor:
        """
        Decode image tokens to images.

        Args:
            image_tokens (`torch.LongTensor` of shape `(images, h, w)`): codebook indices in 0..codebook_size-1.

        Returns:
            `torch.Tensor` of shape `(images, 3, H, W)`: pixels in [-1, 1].

        Raises:
            ValueError: if the model has no image tokenizer, or if `image_tokens` are not a grid of codebook indices.
        """
        return self.require_image_tokenizer("image_tokens").decode(image_tokens).sample

    @torch.no_grad()
    @apply_forward_hook
    def image_codes(self, image_tokens: torch.LongTensor) -> torch.Tensor:
        """
        Look image tokens up in the codebook.

        Args:
            image_tokens (`torch.LongTensor` of shape `(images, h, w)`): codebook indices in 0..codebook_size-1.

        Returns:
            `torch.Tensor` of shape `(images, codebook_channels, h, w)`: codebook entries.

        Raises:
            ValueError: if the model has no image tokenizer, or if `image_tokens` are not a grid of codebook indices.
        """
        tokenizer = self.require_image_tokenizer("image_tokens")
        tokenizer.check_tokens(image_tokens)
        return tokenizer.codes_of(image_tokens)

    def require_image_tokenizer(self, argument: str) -> ShowoImageTokenizer:
        """The image tokenizer. Raises `ValueError`, which names the argument that needs it, if there is none."""
        if self.image_tokenizer is None:
            raise ValueError(f"`{argument}` need an image tokenizer, and this model's config has none.")
        return self.image_tokenizer

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """
        Encode images to continuous features.

        The features are the hidden states of the vision tower's last layer but one, without the class token. With
        `continuous_latents` they are the image tokenizer's latents before quantization, row by row.

        Args:
            pixel_values (`torch.Tensor` of shape `(images, 3, H, W)`): pixels after the vision tower's own
                preprocessing; with `continuous_latents`, pixels in [-1, 1].
            return_dict (`bool`, *optional*): whether to return an output object instead of a tuple.
            kwargs: further arguments of the vision tower, such as `output_attentions`.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPooling`]: `.last_hidden_state` of shape
            `(images, tokens, image_feature_size)` are the features, which `forward` takes as `image_features`.
            `.pooler_output` of shape `(images, tokens, hidden_size)` are the embeddings that the projector makes of
            them. `.hidden_states` and `.attentions` come from the vision tower.

        Raises:
            TypeError: if `pixel_values` is no tensor.
            ValueError: if the model has no vision tower and does not use `continuous_latents`, or if `pixel_values` are
                not of the size that the vision tower takes.
        """
        if self.config.continuous_latents:
            outputs = BaseModelOutputWithPooling(last_hidden_state=self.latent_features(pixel_values, **kwargs))
        elif self.vision_tower is not None:
            outputs = self.tower_features(pixel_values, **kwargs)
        else:
            raise ValueError("`get_image_features` needs a vision tower, and this model's config has none.")
        outputs.pooler_output = self.project(outputs.last_hidden_state)
        return outputs

    @torch.no_grad()
    def latent_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The image tokenizer's latents of pixels (images, 3, H, W), as (images, tokens, channels)."""
        return self.image_tokenizer.encode(pixel_values).latents.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def tower_features(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """The vision tower's output, with the features in `.last_hidden_state` (images, tokens, features)."""
        check_tower_images(pixel_values, self.vision_tower.config, kwargs.get("interpolate_pos_encoding", False))
        states = self.vision_tower(pixel_values.to(self.vision_tower.dtype), output_hidden_states=True, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=states.hidden_states[-2][:, 1:],
            hidden_states=states.hidden_states if output_hidden_states else None,
            attentions=states.attentions,
        )

    def project(self, image_features: torch.Tensor) -> torch.Tensor:
        """Image features (..., features) to embeddings (..., hidden)."""
        return self.mm_projector(image_features.to(self.get_input_embeddings().weight.dtype))

    def embed(
        self,
        input_ids: torch.LongTensor,
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        text_from: int | None = None,
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.BoolTensor | None]:
        """
        Embed ids and images. From position `text_from` on, a placeholder is text.

        Returns:
            the ids (batch, length), with image tokens in place of placeholders; the embeddings (batch, length,
            hidden), `inputs_embeds` except at placeholders; and the positions (batch, length) of features that every
            position sees, or None if there are none.
        """
        if image_features is not None and pixel_values is not None:
            raise ValueError("Give `image_features` or `pixel_values`, not both.")
        is_image = input_ids == self.config.image_token_id
        if text_from is not None:
            is_image[:, text_from:] = False
        embed_tokens = self.get_input_embeddings()
        if pixel_values is not None and self.vision_tower is None and not self.config.continuous_latents:
            tokens = self.require_image_tokenizer("pixel_values").encode(pixel_values).image_tokens
            check_placeholders(is_image, tokens.numel(), "pixel_values")
            image_ids = (tokens + self.config.image_token_offset).to(input_ids.device)
            input_ids = input_ids.masked_scatter(is_image, image_ids)
            embeddings = embed_tokens(input_ids)
            if inputs_embeds is not None:
                embeddings = torch.where(is_image.unsqueeze(-1), embeddings, inputs_embeds)
            return input_ids, embeddings, None
        embeddings = embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if pixel_values is None and image_features is None:
            return input_ids, embeddings, None
        if pixel_values is not None:
            projected, name = self.get_image_features(pixel_values, return_dict=True).pooler_output, "pixel_values"
        elif self.mm_projector is not None:
            projected, name = self.project(image_features), "image_features"
        else:
            raise ValueError("`image_features` need a projector, and this model's config has no `image_feature_size`.")
        projected = projected.flatten(0, -2)  # (all features, hidden)
        check_placeholders(is_image, projected.shape[0], name)
        embeddings = embeddings.masked_scatter(is_image.unsqueeze(-1), projected.to(embeddings))
        # Latents form blocks, as image tokens do. Every position sees CLIP's features.
        return input_ids, embeddings, None if self.config.continuous_latents else is_image


def check_tower_images(pixel_values: torch.Tensor, config: CLIPVisionConfig, any_size: bool):
    """Raise `TypeError` or `ValueError` unless a vision tower takes these images."""
    check_tensor("pixel_values", pixel_values)
    height, width = pixel_values.shape[-2:] if any_size and pixel_values.ndim == 4 else (config.image_size,) * 2
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (config.num_channels, height, width):
        raise ValueError(
            f"`pixel_values` must be (images, {config.num_channels}, {height}, {width}), got {tuple(pixel_values.shape)}."
        )


def check_placeholders(is_image: torch.BoolTensor, available: int, name: str):
    """Raise `ValueError` unless there are as many placeholders as image tokens or features to put there."""
    wanted = int(is_image.sum())
    if wanted != available:
        raise ValueError(f"`{name}` give {available} image positions, and the ids have {wanted} placeholders.")
