"""Going on from what was read before: the same tokens and log-probs, and only what is new is computed."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from maieutic.backends.local import LocalBackend, LocalSampler, Optimiser
from maieutic.backends.local.cache import Store
from maieutic.backends.local.check import decoder_for
from maieutic.backends.local.decoder import SlotDecoder
from maieutic.backends.local.narrow import narrow_for
from maieutic.backends.local.prefixes import Layers, Prefixes
from maieutic.backends.local.replay import ReplayedDecoder
from maieutic.backends.local.trunk import Trunk
from maieutic.models.causal import CausalModel, token_logprobs
from maieutic.protocols import Completion, Prefill, Sampling
from maieutic.types import Finish

Load = Callable[..., CausalModel]
PROMPT = tuple(range(5, 19))
CPU = torch.device("cpu")


def replayed(model: CausalModel) -> ReplayedDecoder:
    trunk = Trunk(model.module)
    narrow = narrow_for(trunk, torch.float32)
    assert narrow is not None
    return ReplayedDecoder(trunk, narrow, CPU)


#: Engines that keep what they read, by the store and the way of stepping that they have.
ENGINES: dict[str, Callable[[CausalModel], SlotDecoder]] = {
    "bags": lambda model: SlotDecoder(Trunk(model.module), CPU),
    "slots": lambda model: SlotDecoder(Trunk(model.module), CPU, lambda: Store(CPU)),
    "ahead": replayed,
}


def engine(model: CausalModel, kind: str = "bags", kept: int = 1 << 20, **options: int) -> LocalSampler:
    model.module.eval()
    decoder = ENGINES[kind](model)
    decoder.prefixes = Prefixes(kept)
    return LocalSampler(model.module, decoder, **options)


def how(key: str, prefill: Prefill | None = None, max_tokens: int = 6, **options: object) -> Sampling:
    return Sampling(max_tokens, 0.8, frozenset({3}), key, prefill=prefill, **options)  # type: ignore[arg-type]


def grown(sampler: LocalSampler, counts: list[Prefill], n: int = 4, rounds: int = 3) -> list[list[Completion]]:
    """A small tree: each round goes on from the first child of the latest two parents, side by side."""

    async def grow() -> list[list[Completion]]:
        parents, made = [PROMPT], []
        for depth in range(rounds):
            counts.append(Prefill())
            calls = [sampler.sample(p, how(f"{depth}/{i}", counts[-1]), n) for i, p in enumerate(parents)]
            families = await asyncio.gather(*calls)
            made += families
            parents = [(*p, *child.tokens) for p, family in zip(parents, families, strict=True) for child in family[:2]]
        return made

    return asyncio.run(grow())


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("n", [1, 4])
def test_going_on_gives_the_same_and_computes_what_is_new(tiny: Load, kind: str, n: int) -> None:
    model = tiny("qwen3" if kind == "bags" else "llama")
    with_counts, without = list[Prefill](), list[Prefill]()
    kept = grown(engine(model, kind), with_counts, n)
    plain = grown(engine(model, kind, kept=0), without, n)
    for some_made, others in zip(kept, plain, strict=True):
        assert [c.tokens for c in some_made] == [c.tokens for c in others]
        for one, other in zip(some_made, others, strict=True):
            assert torch.tensor(one.logprobs) == pytest.approx(torch.tensor(other.logprobs), abs=1e-5)
    assert all(count.reused == 0 for count in without)
    assert [a.computed + a.reused for a in with_counts] == [b.computed for b in without]
    # a child's last token was never fed: of each later prompt that one token is new, and nothing else
    parents = [1, min(2, n), min(2, n) ** 2]
    assert [count.computed for count in with_counts] == [len(PROMPT), parents[1], parents[2]]


@pytest.mark.parametrize("kind", ENGINES)
def test_what_is_read_from_the_store_gives_the_logprobs_of_a_full_forward(tiny: Load, kind: str) -> None:
    # one row of its own, then four that share the longer prompt, then one of those: every way through the store
    model = tiny()
    sampler = engine(model, kind)
    prompt = PROMPT
    for n, key in ((1, "a"), (4, "b"), (1, "c"), (3, "d")):
        completions = asyncio.run(sampler.sample(prompt, how(key, Prefill(), 24), n))
        for completion in completions:
            tokens = torch.tensor([[*prompt, *completion.tokens]])
            with torch.no_grad():
                expected = token_logprobs(model.module(tokens).logits, tokens, 0.8)[0, len(prompt) :]
            assert torch.tensor(completion.logprobs) == pytest.approx(expected, abs=1e-5)
        prompt = (*prompt, *completions[-1].tokens)


def test_other_weights_forget_what_was_read(tiny: Load) -> None:
    model = tiny()
    sampler, prefill = engine(model), Prefill()
    first = asyncio.run(sampler.sample(PROMPT, how("a", prefill), 2))
    longer = (*PROMPT, *first[0].tokens)
    asyncio.run(sampler.sample(longer, how("b", prefill), 1))
    assert prefill.reused == len(longer) - 1
    with torch.no_grad():
        next(model.module.parameters()).mul_(1.5)
    after, fresh = Prefill(), Prefill()
    again = asyncio.run(sampler.sample(longer, how("b", after), 1))
    assert (after.reused, after.computed) == (0, len(longer))
    assert again == asyncio.run(engine(model).sample(longer, how("b", fresh), 1))


def test_an_update_of_the_policy_forgets_too(tiny: Load) -> None:
    policy = LocalBackend().policy(tiny(), Optimiser(learning_rate=0.1))
    count = Prefill()
    made = asyncio.run(policy.sampler.sample(PROMPT, how("a", count), 1))
    for weight in policy.learner.weights().values():
        weight.grad = torch.ones_like(weight)
    policy.learner.updater.step()
    asyncio.run(policy.sampler.sample((*PROMPT, *made[0].tokens), how("b", count), 1))
    assert count.reused == 0


def test_nothing_is_kept_of_calls_that_do_not_ask(tiny: Load) -> None:
    sampler = engine(tiny())
    first = asyncio.run(sampler.sample(PROMPT, how("a"), 3))
    assert sampler.decoder.prefixes.size == 0
    count = Prefill()
    asyncio.run(sampler.sample((*PROMPT, *first[0].tokens), how("b", count), 1))
    assert count.reused == 0


def test_an_architecture_of_its_own_counts_what_it_computes(tiny: Load) -> None:
    model = tiny("gemma2")
    sampler = LocalSampler(model.module.eval(), decoder_for(model.module))
    count = Prefill()
    made = asyncio.run(sampler.sample(PROMPT, how("a", count), 3))
    asyncio.run(sampler.sample((*PROMPT, *made[0].tokens), how("b", count), 1))
    assert (count.reused, count.computed) == (0, 3 * len(PROMPT) + len(PROMPT) + len(made[0].tokens))


def made_of(tokens: Sequence[int]) -> Callable[[int, int], Layers]:
    """Keys and values that say which token they are of, and of how long a sequence."""
    rows = torch.tensor([[sum(tokens[: i + 1]), i] for i in range(len(tokens))], dtype=torch.float32).view(-1, 1, 2)
    return lambda start, stop: {layer: (rows[start:stop] + layer, rows[start:stop] - layer) for layer in range(2)}


@given(some.lists(some.lists(some.integers(0, 2), min_size=1, max_size=9), max_size=12), some.integers(0, 600))
def test_the_tree_gives_back_what_was_put_in(sequences: list[list[int]], bound: int) -> None:
    tree, everything = Prefixes(bound), Prefixes(1 << 30)
    for tokens in sequences:
        for each in (tree, everything):
            each.keep(tokens, made_of(tokens))
    assert tree.size <= bound
    for tokens in sequences:
        for each in (tree, everything):
            found = each.find([*tokens, 9])
            assert found.length <= len(tokens)
            for layer, pair in found.layers.items():
                for got, expected in zip(pair, made_of(tokens)(0, found.length)[layer], strict=True):
                    assert torch.equal(got, expected)
        assert everything.find([*tokens, 9]).length == len(tokens)
    # what two sequences begin with is there once: 32 bytes a token
    beginnings = {tuple(tokens[: i + 1]) for tokens in sequences for i in range(len(tokens))}
    assert everything.size == 32 * len(beginnings)


def test_what_was_not_read_for_longest_goes_first() -> None:
    tree = Prefixes(32 * 4)
    tree.keep([1, 2], made_of([1, 2]))
    tree.keep([5, 6], made_of([5, 6]))
    assert tree.find([1, 2, 0]).length == 2
    tree.keep([7], made_of([7]))
    assert [tree.find([*tokens, 0]).length for tokens in ([1, 2], [5, 6], [7])] == [2, 0, 1]


@pytest.mark.parametrize("kind", [*ENGINES, "own"])
def test_a_row_ends_where_it_is_told_to(tiny: Load, kind: str) -> None:
    model = tiny("gemma2" if kind == "own" else "llama")
    sampler = LocalSampler(model.module.eval(), decoder_for(model.module)) if kind == "own" else engine(model, kind)
    ids = frozenset(range(10, 24))
    asked: list[tuple[int, ...]] = []

    def until(tokens: Sequence[int]) -> bool:
        asked.append(tuple(tokens))
        return len(tokens) > 3

    free = asyncio.run(sampler.sample(PROMPT, how("a", max_tokens=20), 6))
    told = asyncio.run(sampler.sample(PROMPT, how("a", max_tokens=20, until=until, until_ids=ids), 6))
    for one, other in zip(told, free, strict=True):
        end = next((i for i in range(4, len(other.tokens) + 1) if other.tokens[i - 1] in ids), len(other.tokens))
        assert one.tokens == other.tokens[:end]
        assert one.finish is (other.finish if end == len(other.tokens) and other.tokens[-1] not in ids else Finish.STOP)
    assert all(tokens[-1] in ids for tokens in asked)
    assert any(len(c.tokens) < len(f.tokens) for c, f in zip(told, free, strict=True))


def test_an_insertion_is_asked_about_when_it_ends(tiny: Load) -> None:
    sampler = engine(tiny())
    inserted = how(
        "a", max_tokens=30,
        interject=lambda tokens: [20, 21, 20], interject_ids=frozenset(range(4, 18)),
        until=lambda tokens: True, until_ids=frozenset({20, 21}),
    )  # fmt: skip
    made = asyncio.run(sampler.sample(PROMPT, inserted, 8))
    for completion in made:
        if completion.finish is Finish.STOP and completion.tokens[-1] != 3:
            assert completion.tokens[-1] in (20, 21)
            assert completion.mask[-1] or completion.tokens[-3:] == (20, 21, 20)  # not in the middle of it
    assert any(not completion.mask[-1] for completion in made)


def test_an_error_of_who_is_asked_is_the_callers(tiny: Load) -> None:
    def broken(tokens: Sequence[int]) -> bool:
        raise KeyError("nobody")

    sampler = engine(tiny())

    async def both() -> list[object]:
        bad = sampler.sample(PROMPT, how("a", until=broken, until_ids=frozenset(range(32))), 2)
        return await asyncio.gather(bad, sampler.sample(PROMPT, how("b"), 2), return_exceptions=True)

    error, fine = asyncio.run(both())
    assert isinstance(error, KeyError)
    assert isinstance(fine, list)
    assert len(fine) == 2
