"""What a stage needs of memory, phase by phase, and which settings make it smaller where there is not enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from maieutic.forecast import memory
from maieutic.forecast.memory import Item, Memory
from maieutic.forecast.sizes import Sizes
from maieutic.forecast.stage import Asked, Lengths, StageInputs
from maieutic.forecast.store import Request, rows_at_once, store_bytes

#: Settings that may be lowered, and the least that each may be.
LEAST: Mapping[str, int] = {"max_rows": 1, "micro_batch_tokens": 64, "num_generations": 2, "prompts": 1}

SAMPLING, ANNOTATE, UPDATE, EVALUATION = "sampling", "annotate", "update", "evaluation"


def micro_batch(inputs: StageInputs, sizes: Sizes, rows: int | None = None) -> memory.Pass:
    """The largest micro-batch of a step's rows (or of so many of them), all as long as they may be."""
    groups = inputs.groups if rows is None else min(inputs.groups, -(-rows // inputs.siblings))
    longest = (inputs.lengths.longest_prompt, inputs.lengths.longest)
    return memory.micro_batch(sizes, inputs.micro_batch_tokens, groups, *longest, inputs.siblings, on_cpu=inputs.on_cpu)


def rows_of(inputs: StageInputs) -> int:
    """Rows that the policy writes at once."""
    return written_at_once(inputs, _requests(inputs)) if inputs.samples else 0


def written_at_once(inputs: StageInputs, requests: list[Request]) -> int:
    """The same for any requests, under the limits of the stage."""
    return rows_at_once(inputs.sizes, inputs.device, inputs.max_rows, inputs.cache_bytes, requests)


def requests_of(asked: Asked) -> list[Request]:
    """What an evaluation asks the sampler for: a greedy sample of each problem, and its others."""
    kinds = [1] + ([asked.samples] if asked.samples else [])
    return [_request(asked.problems, kind, asked.lengths) for kind in kinds]


def _requests(inputs: StageInputs) -> list[Request]:
    return [_request(inputs.groups, inputs.siblings, inputs.lengths)]


def _request(groups: int, siblings: int, lengths: Lengths) -> Request:
    """Those who play ask each for itself, with all that was said so far."""
    rows = (groups * siblings, 1) if lengths.turns > 1 else (groups, siblings)
    return Request(*rows, lengths.longest_prompt, lengths.longest)


def stage_memory(inputs: StageInputs, process: int) -> Memory:
    """Bytes of everything, phase by phase. The sampler gives back what it took when the last row has ended."""
    sizes, beside = inputs.sizes, inputs.beside
    longest = inputs.lengths.longest_prompt + inputs.lengths.longest
    own = [*sizes.weights, *beside.critic]
    standing = [
        Item("Python and torch", process),
        Item("compiled kernels", memory.KERNELS if sizes.compiled and inputs.on_cpu else 0),
        Item("weights, trained", sizes.bytes(True)),
        Item("weights, frozen, and buffers", sizes.bytes(False)),
        Item("optimiser", memory.optimiser_state(own, inputs.optimiser) if inputs.optimiser_steps != 0 else 0),
        Item("critic", sum(w.bytes for w in beside.critic) + beside.critic_buffers),
        Item("reference", beside.reference),
        Item("teacher", beside.teacher),
        Item("models of rewards", beside.judges),
        Item("weights to restart from", beside.restart + sum(w.bytes for w in beside.critic if beside.restart)),
        Item("rollouts and batch", memory.rollouts(inputs.rows, longest) if inputs.on_cpu else 0, _fewer(inputs)),
    ]
    if beside.top:
        size = 12 * inputs.rows * longest * beside.top
        standing.append(Item("candidates of the teacher", size, _fewer(inputs)))
    run = micro_batch(inputs, sizes, inputs.together)
    held, more = memory.logits(sizes, run)
    phases: dict[str, tuple[Item, ...]] = {}
    if inputs.samples:
        phases[SAMPLING] = (
            Item("keys and values", _store(inputs), "max_rows"),
            Item("weights, laid out", memory.laid_out(sizes) if inputs.on_cpu else 0),
            Item("logits", memory.drawing(sizes, rows_of(inputs)), "max_rows"),
        )
    if beside.scorers:
        widest = max(memory.passing(each, micro_batch(inputs, each)) for each, _ in beside.scorers)
        phases[ANNOTATE] = (Item("activations that pass", widest, "micro_batch_tokens"),)
    kept = memory.activations(sizes, run)
    if beside.separate is not None:
        kept += memory.activations(beside.separate, run)
    if inputs.passes != 0:
        phases[UPDATE] = (
            Item("gradients", memory.gradients(own)),
            Item("activations", kept, "micro_batch_tokens"),
            Item("their gradients, a layer's", memory.differentiating(sizes, run), "micro_batch_tokens"),
            Item("logits", held + more, "micro_batch_tokens"),
            Item("weights, laid out", memory.laid_out_to_learn(sizes, run)),
            Item("orthogonalised matrices", memory.orthogonalising(own, inputs.optimiser)),
        )
    if inputs.overlap:
        phases = _two_processes(inputs, process, phases)
    if inputs.evaluations:
        phases[EVALUATION] = _evaluating(inputs)
    nothing = [item for item in standing if item.bytes]
    return Memory(tuple(nothing), {name: tuple(i for i in items if i.bytes) for name, items in phases.items()})


def _store(inputs: StageInputs) -> int:
    return store_bytes(inputs.sizes, inputs.device, rows_of(inputs), _requests(inputs))


def _fewer(inputs: StageInputs) -> str:
    return "num_generations" if inputs.samples and inputs.siblings > LEAST["num_generations"] else "prompts"


def _two_processes(
    inputs: StageInputs, process: int, phases: Mapping[str, tuple[Item, ...]]
) -> dict[str, tuple[Item, ...]]:
    """Whatever this process does, the other one samples meanwhile, with a Python and weights of its own."""
    kernels = memory.KERNELS if inputs.sizes.compiled and inputs.on_cpu else 0
    second = (Item("second process", process + kernels + inputs.sizes.bytes()), *phases[SAMPLING])
    rest = {name: (*second, *items) for name, items in phases.items() if name != SAMPLING}
    return {SAMPLING: second, **rest}


def _evaluating(inputs: StageInputs) -> tuple[Item, ...]:
    """The evaluation loads the model once more, and samples with a store of its own."""
    sizes, found = inputs.sizes, []
    for asked in inputs.evaluations:
        requests = requests_of(asked)
        rows = written_at_once(inputs, requests)
        found.append((store_bytes(sizes, inputs.device, rows, requests), memory.drawing(sizes, rows)))
    store, drawn = max(found)
    return (
        Item("evaluated model", sizes.bytes()),
        Item("weights, laid out", memory.laid_out(sizes) if inputs.on_cpu else 0),
        Item("keys and values of its sampler", store, "max_rows"),
        Item("logits", drawn, "max_rows"),
    )


@dataclass(frozen=True)
class Remedy:
    """A setting under which a phase that did not fit does: `Remedy("update", "micro_batch_tokens", 16384, 2048)`.

    `value` is None where the setting alone does not do it.
    """

    phase: str
    key: str
    present: int
    value: int | None


def remedies(inputs: StageInputs, process: int, free: int) -> list[Remedy]:
    """For every phase that needs more than there is, the settings that make it smaller, the most effective first.

    What this process has already is not free, and will not be taken once more.
    """
    found = []
    told = stage_memory(inputs, process)
    for phase in told.phases:
        if told.peak(phase) - process <= free:
            continue
        sizes: dict[str, int] = {}
        for item in (*told.standing, *told.phases[phase]):
            if item.key:
                sizes[item.key] = sizes.get(item.key, 0) + item.bytes
        keys = sorted(sizes, key=lambda key: -sizes[key])
        found += [_lowered(inputs, phase, key, process, free) for key in keys]
    return found


def _lowered(inputs: StageInputs, phase: str, key: str, process: int, free: int) -> Remedy:
    """The setting halved until the phase fits."""
    make: Mapping[str, Callable[[int], StageInputs]] = {
        "max_rows": lambda value: replace(inputs, max_rows=value),
        "micro_batch_tokens": lambda value: replace(inputs, micro_batch_tokens=value),
        "num_generations": lambda value: replace(inputs, siblings=value),
        "prompts": lambda value: replace(inputs, groups=value),
    }
    present = {
        "max_rows": inputs.max_rows,
        "micro_batch_tokens": inputs.micro_batch_tokens,
        "num_generations": inputs.siblings,
        "prompts": inputs.groups,
    }[key]
    value = present
    while value > LEAST[key]:
        value = max(LEAST[key], value // 2)
        told = stage_memory(make[key](value), process)
        if told.peak(phase) - process <= free:
            return Remedy(phase, key, present, value)
    return Remedy(phase, key, present, None)
