"""A conversation that keeps its turns in the key-value cache."""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from showo_hf.utils.validation import check_flag

from .answers import Answer, Event, ImageStep
from .call_state import one_at_a_time_if_offloaded
from .conversation_cache import ConversationCache
from .denoising import denoise, image_input_ids
from .encoded_prompts import join_prompts
from .messages import Message, copy_messages, load_message_images, normalize_message, normalize_messages


if TYPE_CHECKING:
    from .pipeline_showo_any_to_any import AnswerParams, ShowoAnyToAnyPipeline, ShowoAnyToAnyPipelineOutput


class Conversation:
    """
    A conversation with a [`ShowoAnyToAnyPipeline`] that keeps its turns in the key-value cache; see its `start`.

    A turn reads only its new token ids. All ids follow the chat template. If the template encodes an answer differently
    than the model generated it (with an `eot` after an answer that met a limit, say), the differing end is read again.

    A turn that fails, is stopped, or is not iterated to its end leaves the conversation as it was before. One thread at a
    time uses a conversation; several conversations may share the pipeline.

    Args:
        pipe ([`ShowoAnyToAnyPipeline`]): its model must not change during the conversation. Its adapters may change between
            turns: the next turn then reads all messages again.
        messages: earlier messages.
    """

    def __init__(self, pipe: "ShowoAnyToAnyPipeline", messages: str | Message | Sequence[Message] = ()):
        self._pipe = pipe
        self._messages = load_message_images(normalize_messages(messages, pipe.mask_token_id))
        self._cache = ConversationCache(pipe.model)
        self._answering = False

    @property
    def messages(self) -> list[Message]:
        """All messages so far. Images of answers are token grids; so are images of users once they were read."""
        return copy_messages(self._messages)

    def send(
        self, message: str | Message, return_dict: bool = True, **options
    ) -> "ShowoAnyToAnyPipelineOutput | tuple":
        """
        Send a message, and return the answer.

        Args:
            message (`str` or `dict`): a user's text or message.
            options: the arguments of [`~ShowoAnyToAnyPipeline.__call__`].

        Raises:
            ValueError, TypeError, RuntimeError: as the pipeline's call.
        """
        check_flag("return_dict", return_dict)
        with one_at_a_time_if_offloaded(self._pipe):
            *_, done = self.stream(message, **options)  # the last event is the whole answer
        return self._pipe.output(done, return_dict)

    def stream(self, message: str | Message, **options) -> Generator[Event, None, None]:
        """
        Send a message, and return the events of the answer, as the pipeline's `stream`.

        Raises:
            ValueError, TypeError: as the pipeline's call, already from this call.
            RuntimeError: while another answer is streamed.
        """
        self.check_free()
        params = self._pipe.answer_params(**options)
        normalized = normalize_message(message, self._pipe.mask_token_id)
        self._pipe.check_inputs(messages=[*self._messages, normalized], params=params)
        (loaded,) = load_message_images([normalized])
        return self.answer(loaded, params)

    def check_free(self):
        """Raise `RuntimeError` while an answer is streamed."""
        if self._answering:
            raise RuntimeError(
                "An answer is being streamed: iterate to its end, or `close()` it, before the next turn."
            )

    def answer(self, message: Message, params: "AnswerParams") -> Generator[Event, None, None]:
        """
        Answer a checked message. Each forward pass reads the last ids and predicts the next one.

        Images are denoised in place. Each finished image is then read in one pass.
        """
        self.check_free()
        pipe, cache, device = self._pipe, self._cache, self._pipe._execution_device
        kept = len(cache)
        answer, finish_reason = Answer(pipe.processor.tokenizer), "length"
        processors = {may_draw: pipe.text_processors(params, may_draw) for may_draw in (False, True)}
        try:
            self._answering = True
            messages = pipe.encode_message_images([*self._messages, message])
            unread = cache.reuse_prefix(pipe.token_ids(messages))
            kept = min(kept, len(cache))
            while answer.num_words < params.max_new_tokens and pipe.has_room(cache, len(unread) + 1):
                logits = cache.read(unread, device)
                may_draw = answer.num_images < params.max_images and pipe.has_room(cache, pipe.image_length)
                token = pipe.choose_token(logits, processors[may_draw], params)
                if token == pipe.processor.eot_token_id:
                    finish_reason = "stop"
                    break
                if token != pipe.processor.soi_token_id:
                    yield from answer.add_word(token)
                    unread = [token]
                    continue
                yield from answer.close_text()
                latents, prompts = pipe.prepare_latents(), self.image_prompts(params)
                for step in denoise(pipe, latents, prompts, params.sampling):
                    yield ImageStep(answer.num_images, step.index, step.num_timesteps, step.latents[0].cpu())
                if step.interrupted:
                    finish_reason = "interrupted"
                if not bool((step.latents == pipe.mask_token_id).any()):
                    image = pipe.decode_latents(
                        step.latents, params.output_type, params.generator, params.decoder_steps
                    )[0]
                    yield answer.add_image(image, step.latents[0].cpu())
                if step.interrupted:
                    break
                unread = image_input_ids(step.latents.flatten(1), pipe.model.config)[0].tolist()
            yield from answer.close_text()
            done = answer.finish(finish_reason)
            # Commit before yielding: the caller may stop iterating here.
            self._messages, kept = [*messages, done.message], len(cache)
            yield done
        finally:
            self._answering = False
            cache.crop(kept)
            pipe.maybe_free_model_hooks()

    def image_prompts(self, params: "AnswerParams"):
        """The conversation so far as the prompt of an image and, for guidance, the empty text-to-image prompt."""
        prompts = [self._cache.as_prompt(self._pipe._execution_device)]
        if params.sampling.do_classifier_free_guidance:
            if self._cache.unconditional is None:
                self._cache.unconditional = self._pipe.encode_prompt("", do_classifier_free_guidance=False)
            prompts.append(self._cache.unconditional)
        return join_prompts(prompts)
