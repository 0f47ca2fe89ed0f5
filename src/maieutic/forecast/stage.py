"""A stage in numbers: what a config says of it that memory and time depend on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from maieutic.config import Config, StageConfig
from maieutic.core.parts import Algorithm
from maieutic.errors import ConfigError
from maieutic.forecast.sizes import Sizes, Weight, sizes_of
from maieutic.models.causal import parameter_count
from maieutic.models.find import base_of, find_model, holds
from maieutic.models.lora import LoRA
from maieutic.models.outline import chat_of, outline, small_outline
from maieutic.protocols import Chat, Taskset
from maieutic.run.build import corpus
from maieutic.run.frozen import reads_reference
from maieutic.run.tasksets import Tasksets
from maieutic.sources import demonstration, recorded

#: Tasks whose prompts and solutions are read to know how long they are, spread over the taskset.
LOOKED_AT = 256


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of prompts and completions, on average and at most.

    `reached`: the longest completion that a step usually has (None: as long as it may be). Of episodes, completions are
    all that follows the prompt: at most `turns` turns of the policy, which writes the share `chosen` of these tokens,
    and what an environment says between them.
    """

    prompt: float
    longest_prompt: int
    completion: float
    longest: int
    reached: float | None = None
    turns: int = 1
    chosen: float = 1.0


@dataclass(frozen=True, slots=True)
class Beside:
    """Models beside the policy, in bytes, and what scores a batch.

    scorers   (sizes, whether logits are made) of every forward pass over a step's batch before its update.
    top       candidates that a teacher keeps for each token.
    judges    models that rewards ask in this process.
    """

    reference: int = 0
    judges: int = 0
    teacher: int = 0
    critic: tuple[Weight, ...] = ()
    critic_buffers: int = 0
    restart: int = 0
    scorers: tuple[tuple[Sizes, bool], ...] = ()
    separate: Sizes | None = None
    top: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """An evaluation: `problems` with `samples` each and a greedy one, so many `times` and after `every` so many steps
    (0: never)."""

    name: str
    problems: int
    samples: int
    lengths: Lengths
    times: float = 1.0
    every: int = 0


@dataclass(frozen=True, slots=True)
class StageInputs:
    """What is known of a stage before it starts.

    index              its number in the config, from 0.
    groups, siblings   rows of a step: tasks, and rollouts (or demonstrations) of each.
    samples            whether the policy writes them. `share`: in which share of the steps.
    refills            rounds of drawing again that a step may have, for groups that carry no signal.
    drawn              how many times as many rollouts a step therefore draws, where that is known.
    steps              None where its `budget` (what is spent, how much of it) must tell, or nobody can.
    counted            parameters by which costs are counted, embeddings left out.
    passes             how often a row goes through the model in an update; None where that depends.
    optimiser_steps    of one step; None where that depends.
    together           rows of one of them.
    unseen             what is learned from is not there yet: how long it is can only be assumed.
    """

    index: int
    name: str
    algorithm: str
    sizes: Sizes
    lengths: Lengths
    groups: int
    siblings: int
    samples: bool
    steps: int | None
    passes: float | None
    optimiser_steps: int | None
    optimiser: str
    max_rows: int
    micro_batch_tokens: int
    cache_bytes: int
    together: int
    device: str = "cpu"
    budget: tuple[str, float] | None = None
    counted: int = 0
    share: float = 1.0
    refills: int = 0
    drawn: float = 1.0
    overlap: bool = False
    unseen: bool = False
    beside: Beside = Beside()
    evaluations: tuple[Asked, ...] = ()

    @property
    def on_cpu(self) -> bool:
        """Whether models and their tensors are in the machine's own memory, where rollouts and batches always are."""
        return torch.device(self.device).type == "cpu"

    @property
    def rows(self) -> int:
        """Rollouts of a step."""
        return self.groups * self.siblings

    def at_length(self, mean: float | None, share: float = 1.0, reached: float | None = None) -> StageInputs:
        """The same with completions of `mean` tokens, or of a share of the longest that they may be, where the policy
        writes them: data are as long as they are."""

        def told(lengths: Lengths) -> Lengths:
            wanted = share * lengths.longest if mean is None else mean
            return replace(lengths, completion=min(wanted, lengths.longest), reached=reached)

        asked = tuple(replace(each, lengths=told(each.lengths)) for each in self.evaluations)
        mine = told(self.lengths) if self.samples or self.unseen else self.lengths
        return replace(self, lengths=mine, evaluations=asked)


class Models:
    """The outlines of a config's models, each made once, and the chat of the policy."""

    def __init__(self, config: Config, tasksets: Tasksets) -> None:
        self.config = config
        self.known: dict[tuple[str, str, bool], Sizes] = {}
        small = config.model.small
        lora = None if config.model.lora is None else LoRA(**config.model.lora.model_dump())
        if small is None:
            source, revision = str(config.model.path), config.model.revision
            self.chat: Chat = chat_of(source, config.model.template, revision)
            given = None if holds(find_model(source), "adapter_config.json") else lora
            module = outline(source, lora=given, revision=revision)
        else:
            from maieutic.models.chat import chat_format
            from maieutic.models.small import SmallModel, small_tokenizer

            tokenizer = small_tokenizer(
                small.context, corpus(config, tasksets), tokenizer=small.tokenizer, min_count=small.min_count,
                vocabulary_size=small.vocabulary_size, extra_words=small.extra_words,
            )  # fmt: skip
            self.chat = chat_format(tokenizer, config.model.template)
            module = small_outline(SmallModel(**small.shape), tokenizer, lora=lora)
        self.policy = sizes_of(module)
        self.counted = parameter_count(module)
        self.adapter = hasattr(module, "peft_config")
        self.loaded = config.model.path is not None and holds(find_model(config.model.path), "adapter_config.json")

    def other(self, path: str, dtype: str = "float32", revision: str | None = None, *, critic: bool = False) -> Sizes:
        """A model beside the policy. A critic has the policy's adapter settings."""
        key = (path, dtype, critic)
        if key not in self.known:
            plain = not holds(find_model(path), "adapter_config.json")
            lora = self.config.model.lora if critic and plain else None
            made = None if lora is None else LoRA(**lora.model_dump())
            self.known[key] = sizes_of(
                outline(path, lora=made, dtype=_precision(dtype, self.config), revision=revision)
            )
        return self.known[key]

    def beside(self, path: str, dtype: str, revision: str | None) -> tuple[Sizes, int]:
        """A model that scores beside the policy, and the bytes that it takes: those of its adapter at most, where it
        lies in the policy's module because both have the same base."""
        own = self.config.model
        sizes = self.other(path, dtype, revision)
        if self.adapter and dtype in ("auto", "float32") and own.path is not None:
            theirs, ours = base_of(path, revision), base_of(own.path, own.revision)
            if theirs == ours:
                return sizes, sizes.bytes(True) if holds(find_model(path), "adapter_config.json") else 0
        return sizes, sizes.bytes()


def _precision(dtype: str, config: Config) -> torch.dtype:
    """As `load_causal` understands it."""
    if dtype == "auto":
        return torch.float32 if torch.device(config.device).type == "cpu" else torch.bfloat16
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f'got dtype {dtype!r}; expected "auto" or the name of a torch dtype, such as "float32"')
    return found


def prompt_lengths(chat: Chat, taskset: Taskset) -> tuple[float, int]:
    """Tokens of the prompts of some tasks, on average and at most."""
    found = [len(chat.prompt(task.prompt)) for task in _some(taskset)]
    return sum(found) / len(found), max(found)


def shown_lengths(chat: Chat, taskset: Taskset, siblings: int) -> Lengths:
    """Tokens of demonstrations or preferences: what is shown is known before anything is run."""
    shown = [
        demonstration(task, text, chat, taskset.tool)
        for task in _some(taskset)
        for text, _ in recorded(siblings).texts(task)
    ]
    prompts = [rollout.prompt_length for rollout in shown]
    completions = [len(rollout.tokens) - rollout.prompt_length for rollout in shown]
    means = [sum(lengths) / len(lengths) for lengths in (prompts, completions)]
    return Lengths(means[0], max(prompts), means[1], max(completions))


def _some(taskset: Taskset) -> Sequence[Any]:
    step = max(1, len(taskset) // LOOKED_AT)
    return [taskset[index] for index in range(0, len(taskset), step)]


def beside_of(stage: StageConfig, algorithm: Algorithm, models: Models, first: bool) -> Beside:
    """The models beside the policy of a stage (the run's `first`, or a later one), and the passes over its batch before
    the update."""
    policy = models.policy
    recorded_old = stage.overlap or stage.old_logprobs == "sampler"  # one row in 16 is asked
    scorers = [(policy, True)] if "old_logprobs" in algorithm.asks and not recorded_old else []
    reference = teacher = top = 0
    if reads_reference(algorithm):
        scored, reference = _reference(stage, models, first)
        scorers.append((scored, True))
    if stage.teacher is not None:
        for spec in stage.teacher.each():
            top = max(top, spec.candidates or policy.vocabulary)
            if spec.path is not None:  # others are on disk, or elsewhere
                sizes, bytes_of = models.beside(spec.path, spec.dtype, spec.revision)
                teacher += bytes_of
                scorers.append((sizes, True))
    head, separate, own = _critic(stage, models)
    if separate is not None:
        scorers.append((separate, False))
    elif head and algorithm.asks & {"old_values", "final_values"}:
        scorers.append((policy, False))
    return Beside(
        reference=reference,
        judges=reward_models(stage, models) if algorithm.samples else 0,
        teacher=teacher,
        critic=(*own, *head),
        critic_buffers=separate.buffers if separate is not None and own == separate.weights else 0,
        restart=policy.bytes(True) if "restart" in algorithm.requires else 0,
        scorers=tuple(scorers),
        separate=separate,
        top=top if any(column.startswith("teacher_top") for column in algorithm.asks) else 0,
    )


def reward_models(stage: StageConfig, models: Models) -> int:
    """Bytes of the models that the rewards of a stage load: named after "model:" or "genrm:", or in their options."""
    found = 0
    for name in stage.rewards:
        given = stage.reward_options.get(name, {})
        kind, _, path = name.partition(":")
        paths = [path] if kind in ("model", "genrm") else [given[key] for key in ("student", "reader") if key in given]
        found += sum(models.other(str(each), str(given.get("dtype", "auto"))).bytes() for each in paths)
    return found


def _reference(stage: StageConfig, models: Models, first: bool) -> tuple[Sizes, int]:
    """What scores, and what is kept of it: a model of its own, a copy, a second adapter, or nothing at all (a fresh
    adapter, switched off, is the reference)."""
    spec, policy = stage.reference, models.policy
    if spec is not None and spec.path is not None:
        return models.beside(spec.path, "float32", spec.revision)
    moves = spec is not None and spec.kind == "following"
    if models.adapter:
        return policy, policy.bytes(True) if moves or not first or models.loaded else 0
    return policy, policy.bytes()


def _critic(stage: StageConfig, models: Models) -> tuple[tuple[Weight, ...], Sizes | None, tuple[Weight, ...]]:
    """The weights of a critic's head; the model that it is run over, where that is another than the policy; and those
    weights of this that are there only for it: all of them, or those of its adapter."""
    spec = stage.critic
    if spec is None:
        return (), None, ()
    alone = spec.kind == "separate"
    separate = None
    if alone or spec.kind == "adapter":
        separate = models.policy if spec.path is None else models.other(spec.path, critic=True)
        separate = _without_head(separate)
    own = () if separate is None else tuple(w for w in separate.weights if alone or w.trained)
    width, hidden = (separate or models.policy).width, spec.hidden
    shapes = [(hidden, width), (hidden,), (1, hidden), (1,)] if hidden else [(1, width), (1,)]
    numbers = [math.prod(shape) for shape in shapes]
    return tuple(Weight(n, 4 * n, True, shape) for n, shape in zip(numbers, shapes, strict=True)), separate, own


def _without_head(sizes: Sizes) -> Sizes:
    """A model whose language-model head is frozen where it is a matrix of its own: values do not come of it."""
    shape = (sizes.head.outer, sizes.head.inner)
    heads = [w for w in sizes.weights if w.shape == shape]
    if len(heads) < 2:  # tied: it is the embedding, too
        return sizes
    last = next(index for index in reversed(range(len(sizes.weights))) if sizes.weights[index].shape == shape)
    weights = tuple(replace(w, trained=False) if i == last else w for i, w in enumerate(sizes.weights))
    return replace(sizes, weights=weights)
