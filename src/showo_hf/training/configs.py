"""
The typed configs of training recipes.

A recipe is a YAML file, or the name of a shipped one, and `key=value` pairs that override its entries. Keys are the
fields of the recipe's config and those of `transformers.TrainingArguments`. Configs import no torch, so that a command
checks them before it loads the training code.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..utils.masking_schedule_names import schedule_exponent
from ..utils.validation import check_count, check_number, check_share


TASKS = ("t2i", "lm", "mmu", "mixed")
#: The weight of each task's loss, as published. A recipe may give some of them.
LOSS_WEIGHTS = {"t2i": 1.0, "lm": 0.1, "mmu": 1.0, "mixed": 1.0}
LARGEST_SEED = 2**32 - 1  # NumPy takes no larger ones
OBJECTIVES = ("masked", "mask_and_replace")


@dataclass(kw_only=True)
class RunConfig:
    """
    What all recipes have in common.

    Args:
        recipe (`str`): name of the recipe, or its file.
        output (`str`): folder of the result. Checkpoints, log and samples are written beside it.
        steps (`int`): number of optimizer steps, those before a resume included.
        seed (`int`, defaults to 0): seeds every random draw of the run.
        resume (`bool`, defaults to `True`): continue from the newest intact checkpoint, if there is one. False refuses
            to start where checkpoints exist.
        push_to_hub (`str`, *optional*): name of a repository, `org/name`. The result is pushed to it.
        push_steps (`int`, *optional*): push every so many steps as well.
        validation_data (`str` or `dict`, *optional*): data whose losses are computed every `eval_steps`, in the form of
            the recipe's `data`.
        validation_rows (`int`, defaults to 64): rows, of each task, that validation looks at.
        keep_best (`bool`, defaults to `False`): the result is the model with the lowest validation loss.
        early_stop (`int`, *optional*): stop after so many validations without a lower loss.
        muon (`bool`, defaults to `False`): train the weights of linear layers and the kernels of convolutions with Muon,
            and the rest with AdamW; see [`MuonWithAdamW`].
        ema_decay (`float`, *optional*): decay of the averaged weights. The averaged weights are the result.
        bad_step (`str`, defaults to `"stop"`): what happens at a step whose loss or gradient is not finite or whose
            gradient norm exceeds `bad_step_norm`: "skip" leaves the weights unchanged, "stop" ends the run.
        bad_step_norm (`float`, *optional*): largest accepted gradient norm before clipping.
        bad_step_limit (`int`, defaults to 10): a run stops after so many skipped steps in a row.
        max_broken (`int`, defaults to 100): broken examples that each device skips; one more ends the run.
        licence (`str`, *optional*): licence of the result, for its card, such as "apache-2.0".
        max_minutes (`float`, *optional*): save a checkpoint and stop after this time.
        model, data, batch_size: see the configs of the kinds.
        training (`dict`): arguments for `TrainingArguments`, by their own names.
    """

    recipe: str
    output: str
    steps: int
    model: Any = None
    data: Any = None
    batch_size: Any = 8
    seed: int = 0
    resume: bool = True
    push_to_hub: str | None = None
    push_steps: int | None = None
    validation_data: Any = None
    validation_rows: int = 64
    keep_best: bool = False
    early_stop: int | None = None
    muon: bool = False
    ema_decay: float | None = None
    bad_step: str = "stop"
    bad_step_norm: float | None = None
    bad_step_limit: int = 10
    max_broken: int = 100
    licence: str | None = None
    max_minutes: float | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_count("steps", self.steps)
        check_count("seed", self.seed, least=0, most=LARGEST_SEED)
        check_count("max_broken", self.max_broken, least=0)
        check_count("bad_step_limit", self.bad_step_limit)
        check_count("validation_rows", self.validation_rows)
        for name in ("push_steps", "early_stop"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("max_minutes", "bad_step_norm"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name))
        if self.validation_data is None and (self.keep_best or self.early_stop is not None):
            raise ValueError("`keep_best` and `early_stop` need `validation_data`.")
        strategy = self.training.get("eval_strategy", "steps")
        if strategy != "steps" and (self.keep_best or self.early_stop is not None):
            raise ValueError(f"`keep_best` and `early_stop` need the `eval_strategy` 'steps', got {strategy!r}.")
        if self.ema_decay is not None:
            check_share("ema_decay", self.ema_decay)
        check_choice("bad_step", self.bad_step, ("skip", "stop"))
        if Path(self.output).name in ("", ".."):
            raise ValueError(f"`output` must be the path of a folder with a name, got {self.output!r}.")
        self.output = str(Path(self.output))  # without a slash at the end: files beside it have longer names

    def never_reached(self, steps: int) -> list[str]:
        """The entries, such as "image_size.5000=128", whose beginning a run of so many steps does not reach."""
        return []

    @property
    def rows_per_step(self) -> int:
        """Rows in a step, on one device and without accumulation."""
        raise NotImplementedError


@dataclass(kw_only=True)
class FinetuneConfig(RunConfig):
    """
    Training of a whole Show-o model.

    Args:
        model (`str`, defaults to `"embedded"`): a pipeline folder, a name on the Hub, or "embedded".
        data (`str` or `dict`): where the examples are: a path or Hub name for a recipe of one task; else, for each
            task ("t2i", "lm", "mmu", "mixed"), a path, or a list of paths or mappings with the fields of
            [`~sources.DataSource`].
        task (`str`, defaults to `"t2i"`): the task of `data` given as a path.
        batch_size (`int` or `dict`): rows of each task in a step, on one device and without accumulation.
        loss_weights (`dict`): the weight of each task's loss; 1 by default, and 0.1 for "lm".
        objective (`str`, defaults to `"masked"`): "masked" predicts masked tokens, "mask_and_replace" minimises the
            variational bound of mask-and-replace diffusion.
        masking_schedule (`str`, defaults to `"cosine"`): see [`get_masking_schedule`].
        condition_dropout (`float`, defaults to 0.1): share of the prompts that are emptied, for guidance.
        image_dropout (`float`, defaults to 0): largest share of image tokens that are masked in questions.
        image_size (`int`, *optional*): width and height of the images in pixels; by default the model's. The result
            makes images of this size.
        prompts (`list[str]`): images of these prompts are logged.
        questions (`list[list[str]]`): pairs of an image file and a question; the answers are logged.
        sample_steps (`int`, *optional*): samples are made every so many steps, and at the end.
        sample_guidance (`float`, *optional*): guidance of the samples; by default the pipeline's.
        attention (`str`, *optional*): attention implementation, such as "sdpa" or "eager".
        torch_compile (`bool`, defaults to `False`): compile each layer of the transformer. The first steps take longer.
        save_dtype (`str`, defaults to `"float32"`): dtype of the weights in the result. The image
            tokenizer's stay in float32, because others give other tokens.
        embed_codes (`bool`, defaults to `False`): compute the embeddings of image tokens from the codebook by a small
            network, so that tokens that look alike have embeddings that are alike; see [`CodeEmbeddings`]. What the model
            knew of image tokens is learned anew, unless it was trained in this way before. The result has plain embeddings.
        trained (`str`, *optional*): a regular expression; only parameters whose names match it are trained.
        fsdp_size, tp_size (`int`, default to 1): devices that share the weights in FSDP2 and in tensor parallelism.
    """

    model: str = "embedded"
    data: Any = None
    task: str = "t2i"
    batch_size: Any = 8
    loss_weights: dict[str, float] = field(default_factory=LOSS_WEIGHTS.copy)
    objective: str = "masked"
    masking_schedule: str = "cosine"
    condition_dropout: float = 0.1
    image_dropout: float = 0.0
    image_size: int | None = None
    prompts: list[str] = field(default_factory=list)
    questions: list[list[str]] = field(default_factory=list)
    sample_steps: int | None = None
    sample_guidance: float | None = None
    attention: str | None = None
    torch_compile: bool = False
    embed_codes: bool = False
    save_dtype: str = "float32"
    trained: str | None = None
    fsdp_size: int = 1
    tp_size: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_choice("task", self.task, TASKS)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("save_dtype", self.save_dtype, ("float32", "bfloat16", "float16"))
        check_share("condition_dropout", self.condition_dropout)
        check_share("image_dropout", self.image_dropout)
        for name in ("fsdp_size", "tp_size"):
            check_count(name, getattr(self, name))
        for name in ("image_size", "sample_steps"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.data is None:
            raise ValueError("`data` is missing: give the path of a folder, or a source for each task.")
        self.data = by_task("data", self.data, self.task)
        if self.validation_data is not None:
            self.validation_data = by_task("validation_data", self.validation_data, self.task)
        if not isinstance(self.batch_size, dict):
            self.batch_size = dict.fromkeys(self.data, self.batch_size)
        if set(self.batch_size) != set(self.data):
            raise ValueError(
                f"`batch_size` must name the tasks of `data` ({', '.join(self.data)}), got {', '.join(self.batch_size)}."
            )
        for name, rows in self.batch_size.items():
            check_count(f"batch_size.{name}", rows)
        for name, weight in self.loss_weights.items():
            check_choice("loss_weights", name, TASKS)
            check_number(f"loss_weights.{name}", weight)
        self.loss_weights = LOSS_WEIGHTS | self.loss_weights
        check_texts("prompts", self.prompts)
        if not all(isinstance(pair, list) and len(pair) == 2 and are_texts(pair) for pair in self.questions):
            raise ValueError(f"`questions` must be pairs of an image file and a question, got {self.questions!r}.")
        if self.embed_codes:
            self.check_embed_codes()
        if self.sample_guidance is not None:
            check_number("sample_guidance", self.sample_guidance)
        schedule_exponent(self.masking_schedule)  # raises for an unknown one
        try:
            re.compile(self.trained or "")
        except re.error as error:
            raise ValueError(f"`trained` must be a regular expression, got {self.trained!r}: {error}.") from error

    def check_embed_codes(self):
        """Raise `ValueError` for options that do not go with `embed_codes`."""
        sizes = {"fsdp_size": self.fsdp_size, "tp_size": self.tp_size}
        found = [f"{name}={value}" for name, value in sizes.items() if value > 1]
        found += [f"{name}={self.training[name]}" for name in ("fsdp", "deepspeed") if self.training.get(name)]
        found += ["an adapter"] if isinstance(self, LoraConfig) else []
        if found:
            raise ValueError(f"`embed_codes` needs the whole model on each device, got {', '.join(found)}.")
        if self.trained is not None:
            raise ValueError(
                f"`embed_codes` learns the embeddings of image tokens anew, so `trained` must be left out, got "
                f"{self.trained!r}."
            )

    @property
    def rows_per_step(self) -> int:
        """Rows of all tasks in a step, on one device and without accumulation."""
        return sum(self.batch_size.values())


@dataclass(kw_only=True)
class LoraConfig(FinetuneConfig):
    """
    Training of low-rank adapters (LoRA, arXiv:2106.09685; DoRA, arXiv:2402.09353).

    Args:
        rank (`int`, defaults to 16): rank of the adapters.
        alpha (`float`, *optional*): scale of the adapters; the rank by default.
        dora (`bool`, defaults to `False`): DoRA instead of LoRA.
        dropout (`float`, defaults to 0): dropout of the adapters' inputs.
        targets (`str` or `list[str]`, defaults to `"default"`): which linear layers have adapters: "attention",
            "default" (attention and feed-forward), "all-linear", or the names of modules.
        merge (`bool`, defaults to `False`): the result is a whole pipeline with merged weights instead of an adapter.
        quantize (`str`, *optional*): load the base model with quantized weights (QLoRA, arXiv:2305.14314): "int8" by
            torchao, on any device, or "nf4" by bitsandbytes, on a GPU.
    """

    rank: int = 16
    alpha: float | None = None
    dora: bool = False
    dropout: float = 0.0
    targets: Any = "default"
    merge: bool = False
    quantize: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_count("rank", self.rank)
        check_share("dropout", self.dropout)
        if self.alpha is not None:
            check_number("alpha", self.alpha)
        if self.quantize is not None:
            check_choice("quantize", self.quantize, ("int8", "nf4"))
        if self.quantize is not None and self.merge:
            raise ValueError("`merge` needs a base model that is not quantized; leave out `quantize`, or `merge`.")
        if self.save_dtype != "float32" and not self.merge:
            raise ValueError(
                f"`save_dtype` needs `merge`: the weights of an adapter are saved as they were trained, got "
                f"{self.save_dtype!r}."
            )


@dataclass(kw_only=True)
class ConceptConfig(LoraConfig):
    """
    Training of a thing that a few images show, and of a word for it (as DreamBooth, arXiv:2208.12242).

    Args:
        word (`str`): the word for the thing. A rare word is best.
        kind_of (`str`, defaults to `""`): what kind of thing it is, such as "mug". It stands behind the word.
        templates (`list[str]`): prompts with `{}` in the place of the word.
        train_word (`bool`, defaults to `True`): train the embeddings of the word's tokens as well.
    """

    word: str = ""
    kind_of: str = ""
    templates: list[str] = field(default_factory=lambda: ["{}", "a {}", "a picture of a {}"])
    train_word: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not self.word.strip():
            raise ValueError("`word` is missing: give a word for the thing in the images, such as word=sks.")
        check_texts("templates", self.templates)
        if not self.templates or any("{}" not in template for template in self.templates):
            raise ValueError(f"`templates` must be texts with {{}} in the place of the word, got {self.templates!r}.")


@dataclass(kw_only=True)
class StageConfig(FinetuneConfig):
    """
    One of the paper's training stages (arXiv:2408.12528, section 4.1).

    Args:
        text_model (`str`, *optional*): the text model that stage 1 starts from, instead of `model`.
        image_tokenizer (`str`, *optional*): the image tokenizer that goes with `text_model`.
    """

    text_model: str | None = None
    image_tokenizer: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.text_model is None) != (self.image_tokenizer is None):
            raise ValueError("`text_model` and `image_tokenizer` must be given together.")


def check_choice(name: str, value: Any, choices: tuple[str, ...]):
    """Raise `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {value!r}.")


def are_texts(values: list[Any]) -> bool:
    """Whether all values are texts."""
    return all(isinstance(value, str) for value in values)


def check_texts(name: str, values: list[Any]):
    """Raise `ValueError` unless all values are texts."""
    if not are_texts(values):
        raise ValueError(f"`{name}` must be a list of texts, got {values!r}; a number needs quotes.")


def by_task(name: str, data: Any, task: str, tasks: tuple[str, ...] = TASKS) -> dict[str, list[dict[str, Any]]]:
    """The sources of each task: a list of mappings with at least `path`."""
    found = {}
    for one, sources in (data if isinstance(data, dict) and "path" not in data else {task: data}).items():
        check_choice(f"{name}", one, tasks)
        listed = sources if isinstance(sources, list) else [sources]
        listed = [{"path": source} if isinstance(source, str) else source for source in listed]
        if not listed or not all(isinstance(source, dict) and source.get("path") for source in listed):
            raise ValueError(
                f"`{name}.{one}` must be a path, or a list of paths or of mappings with `path`, got {sources!r}."
            )
        found[one] = listed
    if not found:
        raise ValueError(f"`{name}` must have at least one task, got {data!r}.")
    return found
