"""Questions about images: many at once, each image read once, and given answers scored."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch.nn import functional as F
from transformers import BatchFeature, DynamicCache, GenerationConfig, GenerationMixin, LogitsProcessorList

from showo_hf.processing.images import flatten_images, is_token_grid, load_image
from showo_hf.processing.processing_showo import check_texts
from showo_hf.schedulers.scheduling_utils import Generators, check_generators
from showo_hf.utils.validation import MAX_COUNT, check_count, shown

from .call_state import one_offloaded_call
from .kv_cache import join_rows, select_rows
from .showo_pipeline import ShowoPipeline
from .text_sampling import GeneratorSampling, TextOnly


#: Arguments of `generate` that the pipeline sets itself.
RESERVED_ARGUMENTS = {
    "attention_mask",
    "input_ids",
    "inputs",
    "logits_processor",
    "past_key_values",
    "pixel_values",
    "return_dict_in_generate",
}
#: How `generate` keeps keys and values. The pipeline gives it a cache with those of the images.
CACHE_ARGUMENTS: dict[str, Any] = {
    "use_cache": True,
    "cache_implementation": None,
    "cache_config": None,
    "prefill_chunk_size": None,
}


@dataclass
class ShowoMMUPipelineOutput(BaseOutput):
    """
    Output of [`ShowoMMUPipeline`].

    Args:
        texts (`list[str]`): one answer per question, without special tokens.
    """

    texts: list[str]


@dataclass
class ShowoScoreOutput(BaseOutput):
    """
    Output of [`ShowoMMUPipeline.score`].

    Args:
        log_likelihoods: for each question, float32 (answers,): the sum of `log p` over the token ids of an answer and the
            end of text, in nats.
        lengths: for each question, int64 (answers,): the number of these ids.
    """

    log_likelihoods: list[torch.Tensor]
    lengths: list[torch.Tensor]


@dataclass(frozen=True)
class Row:
    """
    One sequence of a batch.

    Args:
        image (`int`): index of the image that the sequence begins with.
        text_ids (`list[int]`): token ids after the image.
        num_scored (`int`): number of trailing ids to score.
    """

    image: int
    text_ids: list[int]
    num_scored: int = 0


class ShowoMMUPipeline(ShowoPipeline):
    r"""
    Answers questions about images (Show-o, arXiv:2408.12528, multimodal understanding).

    It adds to `transformers.pipeline("image-text-to-text")`: the model reads an image once for all questions about it,
    sampling takes a generator, and [`~ShowoMMUPipeline.score`] gives the log-likelihood of given answers.

    Args:
        model ([`ShowoForCausalLM`]), processor ([`ShowoProcessor`]), scheduler: the components of every Show-o pipeline. The
            scheduler is not used.

    Example:

    ```python
    >>> from showo_hf import EMBEDDED_MODEL, ShowoMMUPipeline
    >>> pipe = ShowoMMUPipeline.from_pretrained(EMBEDDED_MODEL)
    >>> pipe("scene.png", ["how many things are there?", "what is left of the car?"]).texts
    ['there are two.', 'there is an apple.']
    ```
    """

    # Checks

    def check_inputs(
        self,
        *,
        images: Any,
        prompts: str | list[str],
        batch_size: int,
        max_new_tokens: int = 1,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        generate_kwargs: dict[str, Any] | None = None,
    ):
        """Raise `ValueError` or `TypeError` for arguments that are not allowed. Nothing is read or changed."""
        self.check_processor()
        check_count("batch_size", batch_size, most=MAX_COUNT)
        num_images, num_prompts = len(flatten_images(images)), len(check_texts("prompts", prompts))
        if not num_images:
            raise ValueError("`images` must hold at least one image, got none.")
        if 1 not in (num_images, num_prompts) and num_images != num_prompts:
            raise ValueError(
                f"`images` must be one image or one for each of the {num_prompts} `prompts`, got {num_images}."
            )
        for image in flatten_images(images):
            if is_token_grid(image):
                self.check_grid(image)
        self.check_one_size(images, batch_size)
        check_count("max_new_tokens", max_new_tokens, most=MAX_COUNT)
        check_generators(generator, max(num_images, num_prompts))
        self.check_text_sampling("temperature", do_sample, temperature, top_k, top_p)
        for name in ("num_beams", "num_return_sequences"):
            if name in (generate_kwargs or {}):
                check_count(name, (generate_kwargs or {})[name], most=MAX_COUNT)
        if do_sample and self.generate_option("num_return_sequences", generate_kwargs or {}) != 1:
            raise ValueError("`num_return_sequences` must be 1 with `do_sample=True`; repeat the prompt instead.")
        if do_sample and (beams := self.generate_option("num_beams", generate_kwargs or {})) != 1:
            # The noise of sampling would add up in the scores of the beams.
            raise ValueError(f"`num_beams` must be 1 with `do_sample=True`, got {shown(beams)}.")
        self.check_generate_kwargs(generate_kwargs or {})

    def check_generate_kwargs(self, options: dict[str, Any]):
        """Raise `TypeError` for arguments that `generate` has not or the pipeline sets, `ValueError` for wrong values."""
        reserved = sorted(RESERVED_ARGUMENTS & options.keys())
        if reserved:
            raise TypeError(f"{reserved} cannot be passed to `generate`, because the pipeline sets them.")
        for name, only in CACHE_ARGUMENTS.items():
            given = options.get(name, getattr(options.get("generation_config"), name, None))
            if given not in (None, only):
                raise ValueError(
                    f"`{name}` must be {only}, because the pipeline keeps the cache itself, got {shown(given)}."
                )
        settings = vars(GenerationConfig())
        others = {*inspect.signature(GenerationMixin.generate).parameters, "tokenizer", "assistant_tokenizer"}
        if unknown := sorted(options.keys() - settings.keys() - others):
            raise TypeError(f"`{unknown[0]}` is not an argument of `generate`.")
        together = {name: options[name] for name in options if name in settings}
        try:
            GenerationConfig(**together).validate()
        except (ValueError, TypeError, AttributeError) as error:
            named = ", ".join(f"`{name}`" for name in together)
            raise ValueError(f"{named} cannot be used by `generate`: {error}") from error

    def generate_option(self, name: str, options: dict[str, Any]) -> int:
        """A number that `generate` uses: of its arguments, of their `generation_config`, or of the model's."""
        configs = options.get("generation_config"), self.model.generation_config
        found = (options.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in found if value is not None), 1)

    def check_grid(self, grid: torch.LongTensor):
        """Raise `ValueError` for token grids (h, w) that the model does not read, or that are out of range."""
        if self.model.mm_projector is not None:
            raise ValueError("`images` must be images for a model that reads continuous features, got a token grid.")
        if grid.numel() == 0 or grid.min() < 0 or grid.max() >= self.model.config.codebook_size:
            raise ValueError(f"`images` as token grids must hold tokens below {self.model.config.codebook_size}.")

    def check_one_size(self, images: Any, batch_size: int):
        """Raise `ValueError` for images of different lengths, unless each question is a batch by itself."""
        sizes: dict[int, str] = {}  # by number of tokens
        for image in flatten_images(images):
            if is_token_grid(image):
                sizes.setdefault(image.numel(), f"a token grid {tuple(image.shape)}")
            else:
                sizes.setdefault(
                    self.processor.num_placeholders, f"an image of {self.processor.num_placeholders} tokens"
                )
        if len(sizes) > 1 and batch_size > 1:
            raise ValueError(
                f"`images` must have one size, in tokens, unless `batch_size` is 1, got {' and '.join(sizes.values())}."
            )

    def check_length(self, images: Sequence[Any], rows: Sequence[Row], max_new_tokens: int):
        """Raise `ValueError` if a sequence and its answer are longer than the model's context."""
        context = self.model.config.text_config.max_position_embeddings
        smallest, _ = self.split(self.conversation(torch.zeros(1, 1, dtype=torch.int64), ""))
        tokens = [image.numel() if is_token_grid(image) else self.processor.num_placeholders for image in images]
        longest = len(smallest) - 1 + max(tokens) + max(len(row.text_ids) for row in rows) + max_new_tokens
        if longest > context:
            raise ValueError(
                f"`prompts` with an image and `max_new_tokens` ({max_new_tokens}) take up to {longest} positions, and "
                f"the model has {context}."
            )

    # Sequences

    def load_images(self, images: Any) -> tuple[list[Any], list[int]]:
        """
        Read each distinct image once. An image is the same if the same object, or the same path, is given again.

        Returns:
            the distinct images, PIL images or token grids, and for each given image its index among them.
        """
        given = flatten_images(images)
        keys = [image if isinstance(image, (str, Path)) else id(image) for image in given]
        distinct = dict(zip(keys, given, strict=True))
        indices = {key: index for index, key in enumerate(distinct)}
        loaded = [image if is_token_grid(image) else load_image(image, "images") for image in distinct.values()]
        return loaded, [indices[key] for key in keys]

    def pair(self, images: Any, prompts: str | list[str]) -> tuple[list[Any], list[int], list[str]]:
        """Read the images, and give for each question the index of its image, and its text."""
        loaded, indices = self.load_images(images)
        texts = check_texts("prompts", prompts)
        count = max(len(indices), len(texts))
        return loaded, indices * (count // len(indices)), texts * (count // len(texts))

    def conversation(self, image: Any, prompt: str, answer: str | None = None) -> BatchFeature:
        """Model inputs of a question about an image, with or without its answer; one row."""
        content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
        messages: list[dict] = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return self.processor.apply_chat_template(
            messages, add_generation_prompt=answer is None, tokenize=True, return_dict=True, return_tensors="pt"
        )

    def split(self, inputs: BatchFeature) -> tuple[list[int], list[int]]:
        """Split the ids of a row after the image."""
        ids = inputs["input_ids"][0].tolist()
        end = ids.index(self.model.config.eoi_token_id) + 1
        return ids[:end], ids[end:]

    def text_ids(self, prompt: str, answer: str | None = None) -> list[int]:
        """The ids after an image. They do not depend on the image."""
        return self.split(self.conversation(torch.zeros(1, 1, dtype=torch.int64), prompt, answer))[1]

    @torch.no_grad()
    def read_images(self, images: Sequence[Any]) -> tuple[DynamicCache, list[list[int]]]:
        """Compute keys and values of `mmu soi image eoi`, one row per image of one size. Return them and the ids."""
        inputs = [self.conversation(image, "") for image in images]
        prefixes = [self.split(one)[0] for one in inputs]
        pixels = [one["pixel_values"] for one in inputs if "pixel_values" in one]
        device = self._execution_device
        cache = DynamicCache(config=self.model.config.text_config)
        self.model(
            torch.tensor(prefixes, device=device),
            pixel_values=torch.cat(pixels).to(device) if pixels else None,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            codebook_only=True,
        )
        return cache, prefixes

    def batches(self, images: Sequence[Any], rows: Sequence[Row], batch_size: int) -> Iterator[tuple]:
        """
        Iterate over batches of rows: row numbers, the cache of their images, and the ids of their images.

        Each image is read once, even if its rows are in several batches.
        """
        kept: dict[int, tuple[DynamicCache, list[int]]] = {}
        for start in range(0, len(rows), batch_size):
            numbers = range(start, min(start + batch_size, len(rows)))
            wanted = list(dict.fromkeys(rows[number].image for number in numbers))
            kept = {image: kept[image] for image in wanted if image in kept}
            if fresh := [image for image in wanted if image not in kept]:
                cache, prefixes = self.read_images([images[image] for image in fresh])
                for row, image in enumerate(fresh):
                    kept[image] = (select_rows(cache, torch.tensor([row])), prefixes[row])
            merged = join_rows([kept[rows[number].image][0] for number in numbers])
            yield numbers, merged, [kept[rows[number].image][1] for number in numbers]

    def join(self, prefixes: list[list[int]], texts: list[list[int]], side: str) -> dict[str, torch.Tensor]:
        """
        Join ids of images and texts to `input_ids` and `attention_mask` (batch, length).

        Pads stand between the image and the text ("left"), or after the text ("right"). So all images have the same
        positions.
        """
        longest = max(len(text) for text in texts)
        pad = self.processor.pad_token_id
        ids = [
            prefix + self.processor.padded(text, pad, longest, side)
            for prefix, text in zip(prefixes, texts, strict=True)
        ]
        seen = [
            [1] * len(prefix) + self.processor.padded([1] * len(text), 0, longest, side)
            for prefix, text in zip(prefixes, texts, strict=True)
        ]
        device = self._execution_device
        return {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(seen, device=device),
        }

    # Calls

    @one_offloaded_call
    @torch.no_grad()
    def __call__(
        self,
        images,
        prompts: str | list[str] = "what is this?",
        max_new_tokens: int = 100,
        batch_size: int = 8,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: Generators = None,
        return_dict: bool = True,
        **generate_kwargs,
    ) -> ShowoMMUPipelineOutput | tuple:
        r"""
        Answer questions about images.

        Args:
            images: an image or a list of images: PIL, arrays, tensors, paths, URLs, or token grids (h, w) int64.
            prompts (`str` or `list[str]`): questions: several prompts about one image, one prompt about several images, or
                one prompt per image.
            max_new_tokens (`int`, defaults to 100): maximum length of an answer, in token ids.
            batch_size (`int`, defaults to 8): number of questions answered at once; bounds the memory.
            do_sample (`bool`, defaults to `False`): sample the words instead of taking the likeliest.
            temperature, top_k, top_p: how to sample them, as in transformers.
            generator (`torch.Generator` or a list with one per question, *optional*): makes sampling repeatable. With a
                list, each answer is the one that its generator gives alone.
            return_dict (`bool`, defaults to `True`): return a [`ShowoMMUPipelineOutput`] instead of a tuple.
            generate_kwargs: further arguments of transformers' `generate`, such as `num_beams`, which needs
                `do_sample=False`, or `stop_strings`.

        Raises:
            ValueError, TypeError: for arguments that are not allowed and images that cannot be read, before the model
                runs.
        """
        # 1. Check inputs. Raise an error before any work starts
        self.check_inputs(
            images=images,
            prompts=prompts,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
            generate_kwargs=generate_kwargs,
        )

        # 2. Load the images, and tokenize the questions
        loaded, image_indices, texts = self.pair(images, prompts)
        rows = [Row(image, self.text_ids(text)) for image, text in zip(image_indices, texts, strict=True)]
        self.check_length(loaded, rows, max_new_tokens)

        # 3. Prepare generation
        if "stop_strings" in generate_kwargs:
            generate_kwargs.setdefault("tokenizer", self.processor.tokenizer)
        copies = [self.generate_option(name, generate_kwargs) for name in ("num_beams", "num_return_sequences")]

        # 4. Generate in batches. Each image is read once, whatever the number of its questions
        answers: list[str] = []
        for numbers, cache, prefixes in self.batches(loaded, rows, batch_size):
            inputs = self.join(prefixes, [rows[number].text_ids for number in numbers], side="left")
            if max(copies) > 1:
                cache.batch_repeat_interleave(max(copies))
            processors = LogitsProcessorList([TextOnly(self.processor)])
            if do_sample:
                own = [generator[number] for number in numbers] if isinstance(generator, list) else generator
                processors.append(GeneratorSampling(own or torch.default_generator, temperature, top_k, top_p))
            output = self.model.generate(
                **inputs,
                past_key_values=cache,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                logits_processor=processors,
                return_dict_in_generate=False,
                **{**generate_kwargs, **CACHE_ARGUMENTS},  # also against those of the model's own config
            )

            # 5. Decode the answers
            new_ids = output[:, inputs["input_ids"].shape[1] :]
            answers += [
                text.strip() for text in self.processor.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
            ]

        # 6. Offload the model
        self.maybe_free_model_hooks()

        if not return_dict:
            return (answers,)
        return ShowoMMUPipelineOutput(texts=answers)

    @one_offloaded_call
    @torch.no_grad()
    def score(
        self, images, prompts: str | list[str], answers: list[list[str]] | list[str], batch_size: int = 8
    ) -> ShowoScoreOutput:
        r"""
        Compute the log-likelihood of given answers, `sum_i log p(answer_i | image, prompt, answer_<i)`.

        Args:
            images, prompts: as in [`~ShowoMMUPipeline.__call__`].
            answers (`list[list[str]]` or `list[str]`): the answers to each question; a single list applies to all questions.
            batch_size (`int`, defaults to 8): number of answers scored at once.

        Raises:
            ValueError, TypeError: for arguments that are not allowed, before the model runs.
        """
        # 1. Check inputs. Raise an error before any work starts
        self.check_inputs(images=images, prompts=prompts, batch_size=batch_size)
        choices = self.check_answers(answers, max(len(flatten_images(images)), len(check_texts("prompts", prompts))))

        # 2. Load the images, and tokenize the questions with each answer
        loaded, image_indices, texts = self.pair(images, prompts)
        rows = []
        for image, text, texts_of_answers in zip(image_indices, texts, choices, strict=True):
            question = self.text_ids(text)
            for answer in texts_of_answers:
                ids = self.text_ids(text, answer)
                pairs = enumerate(zip(question, ids, strict=False))
                common = next((i for i, (a, b) in pairs if a != b), len(question))
                rows.append(Row(image, ids, num_scored=len(ids) - common))
        self.check_length(loaded, rows, 0)

        # 3. Score in batches
        scores = torch.empty(len(rows))
        for numbers, cache, prefixes in self.batches(loaded, rows, batch_size):
            chosen = [rows[number] for number in numbers]
            scores[numbers.start : numbers.stop] = self.score_rows(chosen, cache, prefixes)

        # 4. Offload the model
        self.maybe_free_model_hooks()

        counts = [len(one) for one in choices]
        lengths = torch.tensor([row.num_scored for row in rows])
        return ShowoScoreOutput(log_likelihoods=list(scores.split(counts)), lengths=list(lengths.split(counts)))

    def check_answers(self, answers: list[list[str]] | list[str], num_questions: int) -> list[list[str]]:
        """One list of answers per question. `ValueError` or `TypeError` for anything else."""
        if not isinstance(answers, (list, tuple)) or not answers:
            raise TypeError(f"`answers` must be a list of texts, or one list for each question, got {shown(answers)}.")
        shared = all(isinstance(answer, str) for answer in answers)
        choices = [check_texts("answers", one) for one in ([answers] * num_questions if shared else answers)]
        if len(choices) != num_questions:
            raise ValueError(
                f"`answers` must be one list for each of the {num_questions} questions, got {len(choices)}."
            )
        return choices

    def score_rows(self, rows: list[Row], cache: DynamicCache, prefixes: list[list[int]]) -> torch.Tensor:
        """Compute the log-likelihoods of the rows' answers, float32 (rows,)."""
        inputs = self.join(prefixes, [row.text_ids for row in rows], side="right")
        cached = cache.get_seq_length()
        ids = inputs["input_ids"][:, cached:]  # (rows, longest text)
        scored = torch.zeros_like(ids, dtype=torch.bool)
        for number, row in enumerate(rows):
            scored[number, len(row.text_ids) - row.num_scored : len(row.text_ids)] = True
        before = F.pad(scored[:, 1:], (0, 1), value=False)  # the position before an id predicts it
        logits = self.model(
            ids,
            attention_mask=inputs["attention_mask"],
            position_ids=torch.arange(cached, cached + ids.shape[1], device=ids.device).expand_as(ids),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=before,
        ).logits  # (scored ids of all rows, vocab_size)
        found = logits.float().log_softmax(-1).gather(-1, ids[scored][:, None]).squeeze(-1)
        return torch.stack([part.sum() for part in found.split([row.num_scored for row in rows])]).cpu()
