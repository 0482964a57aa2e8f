"""Questions about images: many of them at once, an image read once, and given answers scored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch.nn import functional as F
from transformers import BatchFeature, DynamicCache, LogitsProcessorList

from showo_hf.pipelines.text_sampling import GeneratorSampling, TextOnly
from showo_hf.processing.images import flatten_images, is_token_grid, load_image
from showo_hf.processing.processing_showo import check_texts
from showo_hf.schedulers.scheduling_utils import Generators, check_generators
from showo_hf.utils.validation import check_count

from .caches import join_rows, select_rows
from .pipeline_utils import ShowoPipelineBase


@dataclass
class ShowoMMUPipelineOutput(BaseOutput):
    """
    Output of [`ShowoMMUPipeline`].

    Args:
        texts: one answer a question, without special tokens.
    """

    texts: list[str]


@dataclass
class ShowoScoreOutput(BaseOutput):
    """
    Output of [`ShowoMMUPipeline.score`].

    Args:
        log_likelihoods: for each question, float32 (answers,): the sum of `log p` over an answer's ids and the end of
            text behind them, in nats.
        lengths: for each question, int64 (answers,): how many ids that are.
    """

    log_likelihoods: list[torch.Tensor]
    lengths: list[torch.Tensor]


@dataclass(frozen=True)
class Row:
    """One sequence of a batch: which image it begins with, and the ids behind that image."""

    image: int
    rest: list[int]
    answer_length: int = 0  # ids at the end of `rest` that are scored


class ShowoMMUPipeline(ShowoPipelineBase):
    r"""
    Answers about images (Show-o, arXiv:2408.12528, multimodal understanding), in words alone.

    What it adds to `transformers.pipeline("image-text-to-text")`: an image with several questions goes through the
    model once, draws come from a generator, and [`~ShowoMMUPipeline.score`] gives the log-likelihood of given answers.

    Args:
        model ([`ShowoForCausalLM`]), processor ([`ShowoProcessor`]), scheduler: the parts of every Show-o pipeline; the
            scheduler is not used.

    Example:

    ```python
    >>> from showo_hf import EMBEDDED_MODEL, ShowoMMUPipeline
    >>> pipe = ShowoMMUPipeline.from_pretrained(EMBEDDED_MODEL)
    >>> pipe("apple.png", ["what is this?", "is it food?"]).texts
    ['a red apple.', 'yes.']
    ```
    """

    def check_inputs(self, images, prompts, batch_size: int) -> tuple[list[Any], list[str], list[int]]:
        """
        Images, prompts, and the image that each prompt is about; `ValueError` or `TypeError` for wrong arguments.
        """
        self.check_processor()
        check_count("batch_size", batch_size)
        prompts = check_texts("prompts", prompts)
        given = flatten_images(images)
        if not given:
            raise ValueError("`images` must hold at least one image, got none.")
        if len(prompts) == 1:
            prompts = prompts * len(given)
        elif len(given) not in (1, len(prompts)):
            raise ValueError(
                f"`images` must be one image or one for each of the {len(prompts)} `prompts`, got {len(given)}."
            )
        # An object or a path that is given several times is one image, which is read once.
        keys = [image if isinstance(image, (str, Path)) else id(image) for image in given]
        different = dict(zip(keys, given, strict=True))
        loaded_images = [self.check_grid(p) if is_token_grid(p) else load_image(p) for p in different.values()]
        places = {key: place for place, key in enumerate(different)}
        about = [places[key] for key in keys] if len(given) > 1 else [0] * len(prompts)
        return loaded_images, prompts, about

    def check_grid(self, grid: torch.LongTensor) -> torch.LongTensor:
        """An image given as codes; `ValueError` where the model would read it otherwise, or a code does not exist."""
        if self.model.mm_projector is not None:
            raise ValueError("`images` must be images for a model that reads continuous features, got a token grid.")
        if grid.numel() == 0 or grid.min() < 0 or grid.max() >= self.model.config.codebook_size:
            raise ValueError(f"`images` as token grids must hold codes below {self.model.config.codebook_size}.")
        return grid

    def conversation(self, image: Any, prompt: str, answer: str | None = None) -> BatchFeature:
        """A question about an image, with or without its answer, as the model's inputs; one row."""
        content = [{"type": "image", "image": image}, {"type": "text", "text": prompt}]
        messages: list[dict] = [{"role": "user", "content": content}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return self.processor.apply_chat_template(
            messages, add_generation_prompt=answer is None, tokenize=True, return_dict=True, return_tensors="pt"
        )

    def split(self, inputs: BatchFeature) -> tuple[list[int], list[int]]:
        """A row's ids up to the image's end, and those behind it."""
        ids = inputs["input_ids"][0].tolist()
        end = ids.index(self.model.config.eoi_token_id) + 1
        return ids[:end], ids[end:]

    def text_ids(self, prompt: str, answer: str | None = None) -> list[int]:
        """The ids behind an image; they do not depend on what it shows."""
        return self.split(self.conversation(torch.zeros(1, 1, dtype=torch.int64), prompt, answer))[1]

    def check_length(self, images: Sequence[Any], rows: Sequence[Row], max_new_tokens: int):
        """Raise `ValueError` if a sequence and its answer are longer than the model's context."""
        context = self.model.config.text_config.max_position_embeddings
        smallest, _ = self.split(self.conversation(torch.zeros(1, 1, dtype=torch.int64), ""))
        tokens = [p.numel() if is_token_grid(p) else self.processor.num_placeholders for p in images]
        longest = len(smallest) - 1 + max(tokens) + max(len(row.rest) for row in rows) + max_new_tokens
        if longest > context:
            raise ValueError(
                f"`prompts` with an image and `max_new_tokens` ({max_new_tokens}) take up to {longest} positions, and "
                f"the model has {context}."
            )

    @torch.no_grad()
    def read_images(self, images: Sequence[Any]) -> tuple[DynamicCache, list[list[int]]]:
        """
        Keys and values of `mmu soi image eoi`, and the ids; rows as the images.

        Raises:
            ValueError: if token grids differ in size.
        """
        inputs = [self.conversation(image, "") for image in images]
        prefixes = [self.split(one)[0] for one in inputs]
        if len({len(prefix) for prefix in prefixes}) > 1:
            raise ValueError("`images` as token grids must have one size.")
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
        Batches of rows, with the cache of their images: (row numbers, cache, prefixes).

        Each image is read once, also where its rows are spread over several batches.
        """
        kept: dict[int, tuple[DynamicCache, list[int]]] = {}
        for start in range(0, len(rows), batch_size):
            numbers = range(start, min(start + batch_size, len(rows)))
            wanted = list(dict.fromkeys(rows[number].image for number in numbers))
            kept = {image: kept[image] for image in wanted if image in kept}
            if fresh := [image for image in wanted if image not in kept]:
                cache, prefixes = self.read_images([images[image] for image in fresh])
                for row, image in enumerate(fresh):
                    kept[image] = (select_rows(cache, [row]), prefixes[row])
            merged = join_rows([kept[rows[number].image][0] for number in numbers])
            yield numbers, merged, [kept[rows[number].image][1] for number in numbers]

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
            images: an image or a list of them: PIL, arrays, tensors, paths, URLs, or token grids (h, w) int64.
            prompts (`str` or `list[str]`): what to ask. Several prompts about one image, one prompt about several
                images, or as many of both.
            max_new_tokens (`int`, defaults to 100): the longest answer, in ids.
            batch_size (`int`, defaults to 8): questions answered at once; bounds the memory.
            do_sample (`bool`, defaults to `False`): draw the words rather than take the likeliest.
            temperature, top_k, top_p: how to draw them, as in transformers.
            generator (`torch.Generator` or a list with one a question, *optional*): makes the draws repeatable. With a list
                each answer comes out as it would alone.
            return_dict (`bool`, defaults to `True`): give a [`ShowoMMUPipelineOutput`] rather than a tuple.
            generate_kwargs: more options of transformers' `generate`, as `num_beams`, `stop_strings` or `streamer`.

        Raises:
            ValueError, TypeError: for arguments that are wrong and for images that cannot be read, before the model
                runs.
        """
        loaded_images, prompts, about = self.check_inputs(images, prompts, batch_size)
        check_count("max_new_tokens", max_new_tokens)
        check_generators(generator, len(prompts))
        rows = [Row(image, self.text_ids(prompt)) for image, prompt in zip(about, prompts, strict=True)]
        self.check_length(loaded_images, rows, max_new_tokens)
        if "stop_strings" in generate_kwargs:
            generate_kwargs.setdefault("tokenizer", self.processor.tokenizer)
        expansion = max(generate_kwargs.get("num_beams") or 1, generate_kwargs.get("num_return_sequences") or 1)
        texts: list[str] = []
        for numbers, cache, prefixes in self.batches(loaded_images, rows, batch_size):
            inputs = self.joined(prefixes, [rows[number].rest for number in numbers], side="left")
            if expansion > 1:
                cache.batch_repeat_interleave(expansion)
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
                **generate_kwargs,
            )
            new_ids = output[:, inputs["input_ids"].shape[1] :]
            texts += [
                text.strip() for text in self.processor.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
            ]
        return ShowoMMUPipelineOutput(texts=texts) if return_dict else (texts,)

    def joined(self, prefixes: list[list[int]], rests: list[list[int]], side: str) -> dict[str, torch.Tensor]:
        """
        Images and what follows them as `input_ids` and `attention_mask` (batch, length).

        Pads stand between the image and the text ("left"), or behind the text, so that the images share their places.
        """
        longest = max(len(rest) for rest in rests)
        pad = self.processor.pad_token_id
        ids = [
            prefix + self.processor.padded(rest, pad, longest, side)
            for prefix, rest in zip(prefixes, rests, strict=True)
        ]
        seen = [
            [1] * len(prefix) + self.processor.padded([1] * len(rest), 0, longest, side)
            for prefix, rest in zip(prefixes, rests, strict=True)
        ]
        device = self._execution_device
        return {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(seen, device=device),
        }

    @torch.no_grad()
    def score(
        self, images, prompts: str | list[str], answers: list[list[str]] | list[str], batch_size: int = 8
    ) -> ShowoScoreOutput:
        r"""
        Log-likelihood of given answers, `sum_i log p(answer_i | image, prompt, answer_<i)`, for multiple choice.

        Args:
            images, prompts: as in [`~ShowoMMUPipeline.__call__`].
            answers (`list[list[str]]` or `list[str]`): the answers to each question; one list of texts is for all.
            batch_size (`int`, defaults to 8): answers scored at once.

        Raises:
            ValueError, TypeError: for arguments that are wrong, before the model runs.
        """
        loaded_images, prompts, about = self.check_inputs(images, prompts, batch_size)
        if not isinstance(answers, (list, tuple)) or not answers:
            raise TypeError(f"`answers` must be a list of texts, or one list for each question, got {answers!r:.80}.")
        shared = all(isinstance(answer, str) for answer in answers)
        lists = [check_texts("answers", list(one)) for one in ([answers] * len(prompts) if shared else answers)]
        if len(lists) != len(prompts):
            raise ValueError(f"`answers` must be one list for each of the {len(prompts)} questions, got {len(lists)}.")
        rows = []
        for image, prompt, choices in zip(about, prompts, lists, strict=True):
            asked = self.text_ids(prompt)
            for answer in choices:
                rest = self.text_ids(prompt, answer)
                common = next((i for i, (a, b) in enumerate(zip(asked, rest, strict=False)) if a != b), len(asked))
                rows.append(Row(image, rest, answer_length=len(rest) - common))
        self.check_length(loaded_images, rows, 0)
        scores = torch.empty(len(rows))
        for numbers, cache, prefixes in self.batches(loaded_images, rows, batch_size):
            scores[numbers.start : numbers.stop] = self.score_rows(
                [rows[number] for number in numbers], cache, prefixes
            )
        counts = [len(choices) for choices in lists]
        lengths = torch.tensor([row.answer_length for row in rows])
        return ShowoScoreOutput(log_likelihoods=list(scores.split(counts)), lengths=list(lengths.split(counts)))

    def score_rows(self, rows: list[Row], cache: DynamicCache, prefixes: list[list[int]]) -> torch.Tensor:
        """Log-likelihoods of the rows' answers, float32 (rows,)."""
        inputs = self.joined(prefixes, [row.rest for row in rows], side="right")
        cached = cache.get_seq_length()
        ids = inputs["input_ids"][:, cached:]  # (rows, longest rest)
        scored = torch.zeros_like(ids, dtype=torch.bool)
        for number, row in enumerate(rows):
            scored[number, len(row.rest) - row.answer_length : len(row.rest)] = True
        before = F.pad(scored[:, 1:], (0, 1), value=False)  # an id is predicted from the place before it
        logits = self.model(
            ids,
            attention_mask=inputs["attention_mask"],
            position_ids=torch.arange(cached, cached + ids.shape[1], device=ids.device).expand_as(ids),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=before,
        ).logits  # (all scored ids, vocab_size)
        found = logits.float().log_softmax(-1).gather(-1, ids[scored][:, None]).squeeze(-1)
        return torch.stack([part.sum() for part in found.split([row.answer_length for row in rows])]).cpu()
