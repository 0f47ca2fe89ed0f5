"""The sampler: log-probs equal the learner's, tokens do not depend on company, endings are reported truly."""

import asyncio
import gc
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from maieutic.backends.local import LocalBackend, LocalSampler, Optimiser
from maieutic.backends.local.check import decoder_for
from maieutic.backends.local.decoder import SlotDecoder
from maieutic.backends.local.rows import draw
from maieutic.backends.local.trunk import Trunk
from maieutic.backends.local.uniform import row_key, uniforms
from maieutic.errors import ConfigError, ModelError, NumericalError, PromptTooLong
from maieutic.models.causal import CausalModel, token_logprobs
from maieutic.models.lora import LoRA
from maieutic.protocols import Completion, Sampling
from maieutic.types import Finish

Load = Callable[..., CausalModel]
SERVED = ("llama", "qwen2", "qwen3", "gemma", "gpt2")
UNSERVED = ("mistral_sliding", "gemma2", "gemma3_text")
#: Prompts of several lengths, with stop tokens 3 and 4.
PROMPTS = [tuple(range(5, 5 + length)) for length in (3, 7, 1, 27)]


def sampler(model: CausalModel, **options: int) -> LocalSampler:
    model.module.eval()
    return LocalSampler(model.module, decoder_for(model.module), **options)


def sample_all(
    engine: LocalSampler, prompts: Sequence[Sequence[int]], params: Callable[[int], Sampling], n: int = 3
) -> list[list[Completion]]:
    async def together() -> list[list[Completion]]:
        calls = [engine.sample(prompt, params(index), n) for index, prompt in enumerate(prompts)]
        return await asyncio.gather(*calls)

    return asyncio.run(together())


def plain(index: int, max_tokens: int = 12, **options: object) -> Sampling:
    return Sampling(max_tokens, stop_ids=frozenset({3, 4}), key=f"task{index}", **options)  # type: ignore[arg-type]


def tool(tokens: Sequence[int]) -> list[int]:
    """Inserts two tokens, the first of which depends on what was written; nothing after an even number of tokens."""
    return [5 + tokens[-1] % 3, 6] if len(tokens) % 2 else []


def full_logprobs(model: CausalModel, prompt: Sequence[int], completion: Completion, temperature: float = 1.0):
    tokens = torch.tensor([[*prompt, *completion.tokens]])
    with torch.no_grad():
        return token_logprobs(model.module(tokens).logits, tokens, temperature)[0, len(prompt) :]


@pytest.mark.parametrize("architecture", [*SERVED, *UNSERVED])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_a_full_forward(tiny: Load, architecture: str, temperature: float) -> None:
    model = tiny(architecture)
    made = sample_all(
        sampler(model),
        PROMPTS,
        lambda i: plain(i, 20, temperature=temperature, interject=tool, interject_ids=frozenset(range(5, 20))),
    )
    inserted = 0
    for prompt, completions in zip(PROMPTS, made, strict=True):
        for completion in completions:
            mask = torch.tensor(completion.mask)
            expected = torch.where(mask, full_logprobs(model, prompt, completion, temperature), 0.0)
            assert (expected - torch.tensor(completion.logprobs)).abs().max() < 1e-5
            inserted += int((~mask).sum())
    assert inserted > 10


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_tokens_do_not_depend_on_company(tiny: Load, architecture: str) -> None:
    model = tiny(architecture)
    crowd = sample_all(sampler(model), PROMPTS, plain)
    for index, prompt in enumerate(PROMPTS):
        (alone,) = sample_all(sampler(model), [prompt], lambda _, index=index: plain(index))
        assert [c.tokens for c in alone] == [c.tokens for c in crowd[index]]
        assert [c.finish for c in alone] == [c.finish for c in crowd[index]]
        np.testing.assert_allclose(
            np.concatenate([c.logprobs for c in alone]), np.concatenate([c.logprobs for c in crowd[index]]), atol=1e-5
        )


@pytest.mark.parametrize("max_rows", [1, 2, 5, 7])
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_refilled_slots_give_the_same(tiny: Load, architecture: str, max_rows: int) -> None:
    # 4 prompts x 3 siblings = 12 rows; with 1 or 2 slots, even one prompt's siblings are admitted in parts.
    model = tiny(architecture)

    def params(index: int) -> Sampling:
        return plain(index, 10, interject=tool, interject_ids=frozenset(range(5, 12)))

    wide = sample_all(sampler(model), PROMPTS, params)
    narrow = sample_all(sampler(model, max_rows=max_rows), PROMPTS, params)
    assert [[(c.tokens, c.mask, c.finish) for c in group] for group in narrow] == [
        [(c.tokens, c.mask, c.finish) for c in group] for group in wide
    ]


def test_little_memory_for_the_cache_means_fewer_rows_not_other_tokens(tiny: Load) -> None:
    model = tiny()
    wide = sample_all(sampler(model), PROMPTS, plain)
    engine = sampler(model, cache_bytes=1)
    assert sample_all(engine, PROMPTS, plain) == sample_all(sampler(model, max_rows=1), PROMPTS, plain)
    assert [[c.tokens for c in group] for group in sample_all(engine, PROMPTS, plain)] == [
        [c.tokens for c in group] for group in wide
    ]


def test_long_prompts_after_many_short_ones_keep_the_store_within_its_bound(tiny: Load) -> None:
    # 2 layers of 2 tensors, 2 heads, 8 coordinates, float32: 256 bytes a column. A short row (4 + 8 columns, reserved
    # in steps of 64) takes 16 KB, a long one (90 + 8, so 128 columns) 32 KB. If the slots of the 12 short rows became
    # long ones the store would have at least 12 * 32 = 384 KB, and the bound is 256 KB.
    bound = 256 * 1024
    model = tiny()
    short, long = [(5, 6, 7, 8)] * 12, [tuple(range(5, 25)) * 4 + (5,) * 10]
    expected = [
        [c.tokens for c in each] for each in sample_all(sampler(model), [*short, *long], lambda i: plain(i, 8), 1)
    ]
    engine = sampler(model, cache_bytes=bound)
    store = engine.decoder.store
    first = sample_all(engine, short, lambda i: plain(i, 8), 1)
    assert store.slots >= 12
    later = sample_all(engine, long, lambda i: plain(i + 12, 8), 1)
    assert [[c.tokens for c in each] for each in [*first, *later]] == expected
    assert store.slots * store.bytes_per_slot(store.columns) <= bound
    # and while short rows are still being written when the long prompt comes
    mixed = sample_all(engine, [*short, *long], lambda i: plain(i, 8), 1)
    assert [[c.tokens for c in each] for each in mixed] == expected
    assert store.slots * store.bytes_per_slot(store.columns) <= bound


def test_siblings_share_a_prefill_and_equal_separate_calls(tiny: Load) -> None:
    # Siblings of one call, and single calls whose keys are spelled so that they draw the same numbers, must agree:
    # the sibling is part of the key, so a call for 3 gives a prefix of a call for 5.
    model = tiny()
    three, five = (sample_all(sampler(model), PROMPTS[:1], plain, n)[0] for n in (3, 5))
    assert [c.tokens for c in three] == [c.tokens for c in five][:3]
    assert len({c.tokens for c in five}) > 1


def test_a_second_run_is_the_same_and_another_key_is_not(tiny: Load) -> None:
    engine = sampler(tiny())
    assert sample_all(engine, PROMPTS, plain) == sample_all(engine, PROMPTS, plain)
    assert sample_all(engine, PROMPTS, plain) != sample_all(engine, PROMPTS, lambda i: plain(i + 100))


def test_stop_length_and_mask(tiny: Load) -> None:
    made = [c for group in sample_all(sampler(tiny()), PROMPTS, plain, 8) for c in group]
    stopped = [c for c in made if c.finish is Finish.STOP]
    cut = [c for c in made if c.finish is Finish.LENGTH]
    assert len(stopped) + len(cut) == 32
    assert stopped
    assert cut
    for completion in stopped:  # ends at its first stop token, which is chosen and has a log-prob
        assert completion.tokens[-1] in {3, 4}
        assert not {3, 4} & set(completion.tokens[:-1])
        assert completion.logprobs[-1] < 0
    for completion in cut:  # no stop token is added
        assert len(completion.tokens) == 12
        assert not {3, 4} & set(completion.tokens)
    assert all(all(completion.mask) for completion in made)


def test_inserted_tokens_follow_and_count_and_never_stop(tiny: Load) -> None:
    asked: list[tuple[int, ...]] = []

    def insert(tokens: Sequence[int]) -> list[int]:
        asked.append(tuple(tokens))
        return [3, 7, 7]  # 3 is a stop token, but the model did not choose it

    (made,) = sample_all(
        sampler(tiny()),
        PROMPTS[:1],
        lambda i: plain(i, 9, interject=insert, interject_ids=frozenset(range(5, 32))),
        6,
    )
    assert asked
    for completion in made:
        at = 0
        while at < len(completion.tokens):
            assert completion.mask[at]
            chosen = completion.tokens[at]
            if chosen in range(5, 32):  # what was inserted is cut only by the length limit
                follows = completion.tokens[at + 1 : at + 4]
                assert follows == (3, 7, 7)[: len(follows)]
                assert len(follows) == min(3, 8 - at)
                assert not any(completion.mask[at + 1 : at + 4])
                assert completion.logprobs[at + 1 : at + 4] == (0.0,) * len(follows)
                assert completion.tokens[: at + 1] in asked
                at += 4
            else:
                at += 1
        assert len(completion.tokens) <= 9


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_greedy_is_the_argmax_of_a_full_forward(tiny: Load, architecture: str) -> None:
    model = tiny(architecture)
    for prompt, (completion,) in zip(
        PROMPTS, sample_all(sampler(model), PROMPTS, lambda i: plain(i, temperature=0.0), 1), strict=True
    ):
        tokens = list(prompt)
        for token in completion.tokens:
            assert int(model.module(torch.tensor([tokens])).logits[0, -1].argmax()) == token
            tokens.append(token)
        torch.testing.assert_close(
            torch.tensor(completion.logprobs), full_logprobs(model, prompt, completion).detach(), atol=1e-5, rtol=0
        )


def test_first_tokens_are_distributed_as_the_softmax_says(tiny: Load) -> None:
    # 4,000 siblings over 32 tokens: chi-square has 31 degrees of freedom, standard deviation sqrt(62) = 7.9; with all
    # expected counts above 5, a statistic above 31 + 5 * 7.9 = 71 happens about once in 10,000 keys.
    model = tiny()
    (made,) = sample_all(sampler(model, max_rows=4000), PROMPTS[:1], lambda i: Sampling(1, key="chi"), 4000)
    expected = model.module(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1).detach().numpy() * 4000
    counts = np.bincount([c.tokens[0] for c in made], minlength=len(expected))
    assert expected.min() > 5
    assert ((counts - expected) ** 2 / expected).sum() < 71


def test_draw_is_the_inverse_cdf() -> None:
    # p = (0, 1/2, 0, 1/4, 1/4), cdf = (0, .5, .5, .75, 1): a number goes to the first token whose cdf exceeds it.
    logits = torch.tensor([0.0, 0.5, 0.0, 0.25, 0.25]).log()
    numbers = torch.tensor([0.0, 0.499, 0.5, 0.749, 0.75, 1 - 2**-24])
    tokens, logprobs = draw(logits.expand(6, 5), torch.ones(6), numbers)
    assert tokens.tolist() == [1, 1, 3, 3, 4, 4]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25, 0.25]))
    # temperature 1/2 squares the odds: p = (0, 2/3, 0, 1/6, 1/6)
    tokens, logprobs = draw(logits.expand(1, 5), torch.tensor([0.5]), torch.tensor([0.7]))
    assert tokens.tolist() == [3]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([1 / 6]))


def test_draw_never_falls_beyond_the_last_possible_token() -> None:
    logits = torch.full((1, 6), -torch.inf)
    for total in (0.1, 0.3, 1.7):  # sums whose rounding differs
        logits[0, :3] = torch.tensor([total, total / 3, total / 7]).log()
        tokens, logprobs = draw(logits, torch.ones(1), torch.tensor([1 - 2**-24]))
        assert tokens.tolist() == [2]
        assert torch.isfinite(logprobs).all()


def test_the_numbers_used_are_those_of_key_sibling_and_position(tiny: Load) -> None:
    model = tiny()
    (made,) = sample_all(sampler(model), PROMPTS[1:2], lambda _: Sampling(4, key="k"), 2)
    for sibling, completion in enumerate(made):
        tokens = list(PROMPTS[1])
        for position, token in enumerate(completion.tokens):
            number = uniforms(np.array([row_key("k", sibling)], np.uint64), np.array([position]))
            logits = model.module(torch.tensor([tokens])).logits[:, -1].detach()
            assert draw(logits, torch.ones(1), torch.from_numpy(number))[0].item() == token
            tokens.append(token)


def test_requests_with_different_rules_share_a_batch(tiny: Load) -> None:
    engine = sampler(tiny())
    rules = [
        Sampling(6, key="a", stop_ids=frozenset(range(20))),
        Sampling(15, key="b", temperature=0.3),
        Sampling(3, key="c", temperature=0.0),
        Sampling(10, key="d", stop_ids=frozenset({9}), interject=lambda _: [8], interject_ids=frozenset({7, 10})),
    ]
    together = sample_all(engine, PROMPTS, lambda i: rules[i])
    for index, prompt in enumerate(PROMPTS):
        (alone,) = sample_all(engine, [prompt], lambda _, index=index: rules[index])
        assert [(c.tokens, c.mask, c.finish) for c in alone] == [(c.tokens, c.mask, c.finish) for c in together[index]]


def test_a_call_that_comes_later_joins(tiny: Load) -> None:
    engine = sampler(tiny())

    async def staggered() -> list[list[Completion]]:
        first = asyncio.create_task(engine.sample(PROMPTS[0], plain(0, 40), 3))
        for _ in range(5):
            await asyncio.sleep(0)
        second = asyncio.create_task(engine.sample(PROMPTS[3], plain(3, 40), 3))
        return [await first, await second]

    made = asyncio.run(staggered())
    expected = sample_all(engine, PROMPTS, lambda i: plain(i, 40))
    assert [c.tokens for c in made[0]] == [c.tokens for c in expected[0]]
    assert [c.tokens for c in made[1]] == [c.tokens for c in expected[3]]


def test_a_finished_group_is_returned_while_others_are_written(tiny: Load) -> None:
    engine = sampler(tiny())

    async def order() -> list[str]:
        done: list[str] = []

        async def call(name: str, tokens: int) -> None:
            await engine.sample(PROMPTS[0], Sampling(tokens, key=name), 2)
            done.append(f"{name} while {int(engine.rows.alive.sum())} rows are alive")

        await asyncio.gather(call("long", 30), call("short", 2))
        return done

    assert asyncio.run(order()) == ["short while 2 rows are alive", "long while 0 rows are alive"]


def test_a_cancelled_caller_leaves_the_others_alone(tiny: Load) -> None:
    engine = sampler(tiny(), max_rows=4)

    async def cancel() -> list[Completion]:
        doomed = asyncio.create_task(engine.sample(PROMPTS[1], plain(1, 60), 3))
        waiting = asyncio.create_task(engine.sample(PROMPTS[2], plain(2, 60), 4))
        kept = asyncio.create_task(engine.sample(PROMPTS[0], plain(0), 3))
        for _ in range(4):
            await asyncio.sleep(0)
        doomed.cancel()
        waiting.cancel()
        outcomes = await asyncio.gather(doomed, waiting, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        return await kept

    made = asyncio.run(cancel())
    assert [c.tokens for c in made] == [c.tokens for c in sample_all(engine, PROMPTS[:1], plain)[0]]
    assert not engine.rows.alive.any()


def test_a_loop_that_ends_early_leaves_a_working_engine(tiny: Load) -> None:
    engine = sampler(tiny())

    async def give_up() -> None:
        await asyncio.wait_for(engine.sample(PROMPTS[0], Sampling(90, key="x"), 4), timeout=0.0)

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())

    async def leave() -> None:
        task = asyncio.create_task(engine.sample(PROMPTS[0], Sampling(90, key="x"), 4))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()

    asyncio.run(leave())
    gc.collect()
    assert sample_all(engine, PROMPTS, plain) == sample_all(sampler(tiny()), PROMPTS, plain)


def test_an_error_of_a_tool_reaches_its_caller_only(tiny: Load) -> None:
    engine = sampler(tiny())

    def broken(tokens: Sequence[int]) -> list[int]:
        raise ZeroDivisionError("the calculator broke")

    async def both() -> list[object]:
        bad = Sampling(10, key="bad", interject=broken, interject_ids=frozenset(range(32)))
        calls = [engine.sample(PROMPTS[0], bad, 2), engine.sample(PROMPTS[0], plain(0), 3)]
        return await asyncio.gather(*calls, return_exceptions=True)  # type: ignore[return-value]

    failed, fine = asyncio.run(both())
    assert isinstance(failed, ZeroDivisionError)
    assert [c.tokens for c in fine] == [c.tokens for c in sample_all(engine, PROMPTS[:1], plain)[0]]  # type: ignore[attr-defined]


def test_an_engine_error_reaches_every_caller_and_passes(tiny: Load) -> None:
    model = tiny()
    engine = sampler(model)
    norm = next(weight for name, weight in model.module.named_parameters() if name.endswith("model.norm.weight"))
    kept = norm.detach().clone()
    norm.data.fill_(float("nan"))

    async def all_of_them() -> list[object]:
        calls = [engine.sample(prompt, plain(0), 2) for prompt in PROMPTS]
        return await asyncio.gather(*calls, return_exceptions=True)  # type: ignore[return-value]

    assert [type(outcome) for outcome in asyncio.run(all_of_them())] == [NumericalError] * 4
    norm.data.copy_(kept)
    assert sample_all(engine, PROMPTS, plain) == sample_all(sampler(tiny()), PROMPTS, plain)


class FailingDecoder(SlotDecoder):
    """Fails at its `failing`-th forward, as when memory runs out."""

    def __init__(self, model: CausalModel, failing: int) -> None:
        super().__init__(Trunk(model.module), torch.device("cpu"))
        self.left = failing

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise MemoryError("out of memory")

    def admit(self, *arguments):
        self._count()
        return super().admit(*arguments)

    def decode(self, *arguments):
        self._count()
        return super().decode(*arguments)


@pytest.mark.parametrize("failing", [1, 2, 3, 6])
def test_a_failing_forward_leaves_no_caller_waiting(tiny: Load, failing: int) -> None:
    model = tiny()
    model.module.eval()
    engine = LocalSampler(model.module, FailingDecoder(model, failing), max_rows=5)

    async def all_of_them() -> list[object]:
        calls = [engine.sample(prompt, plain(0), 2) for prompt in PROMPTS]
        return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)  # type: ignore[return-value]

    outcomes = asyncio.run(all_of_them())
    assert MemoryError in [type(outcome) for outcome in outcomes]
    assert all(isinstance(outcome, MemoryError | list) for outcome in outcomes)
    assert sample_all(engine, PROMPTS, plain) == sample_all(sampler(tiny(), max_rows=5), PROMPTS, plain)


def test_a_loop_closed_in_the_middle_and_a_second_loop(tiny: Load) -> None:
    engine = sampler(tiny())
    loop = asyncio.new_event_loop()
    task = loop.create_task(engine.sample(PROMPTS[0], Sampling(90, key="x"), 4))
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    with pytest.raises(ConfigError, match="two event loops"):
        sample_all(engine, PROMPTS, plain)
    driver = engine.driver
    loop.close()
    assert sample_all(engine, PROMPTS, plain) == sample_all(sampler(tiny()), PROMPTS, plain)
    for left in (task, driver):  # asyncio would complain, rightly, that they never ended
        left._log_destroy_pending = False  # type: ignore[union-attr]


def test_a_tool_that_inserts_unknown_tokens_fails_alone(tiny: Load) -> None:
    bad = Sampling(10, key="bad", interject=lambda _: [5, 32], interject_ids=frozenset(range(32)))
    with pytest.raises(ModelError, match="expected ids from 0 to 31"):
        asyncio.run(sampler(tiny()).sample(PROMPTS[0], bad, 2))


@pytest.mark.parametrize(
    ("prompt", "params", "n", "error", "said"),
    [
        ((), Sampling(4), 1, ModelError, "empty prompt"),
        ((5, 6), Sampling(127), 1, PromptTooLong, "Lower max_tokens to 126"),  # the model has 128 positions
        ((5, 6), Sampling(128), 1, ConfigError, "128 positions .* no prompt fits"),
        ((5, 32), Sampling(4), 1, ModelError, "expected 0 to"),
        ((5,), Sampling(0), 1, ConfigError, "max_tokens=0"),
        ((5,), Sampling(4), 0, ConfigError, "n=0"),
        ((5,), Sampling(4, temperature=-0.5), 1, ConfigError, "temperature=-0.5"),
        ((5,), Sampling(4, temperature=float("nan")), 1, ConfigError, "temperature=nan"),
    ],
)
def test_impossible_requests_are_refused(tiny: Load, prompt, params, n, error, said) -> None:
    with pytest.raises(error, match=said):
        asyncio.run(sampler(tiny()).sample(prompt, params, n))


def test_all_positions_can_be_used(tiny: Load) -> None:
    model = tiny("gpt2")  # learned positions: one more would be an error
    (made,) = sample_all(sampler(model), [(5, 6)], lambda _: Sampling(126, key="long"), 1)
    assert len(made[0].tokens) == 126


def test_lora_and_version(tiny: Load) -> None:
    model = tiny(lora=LoRA(rank=4, seed=1))
    for name, weight in model.module.named_parameters():
        if "lora_B" in name:  # zero at first: make the adapter matter
            torch.nn.init.normal_(weight, std=0.3, generator=torch.Generator().manual_seed(2))
    policy = LocalBackend().policy(model, Optimiser())
    policy.learner.version = 7
    made = sample_all(policy.sampler, PROMPTS, plain)  # type: ignore[arg-type]
    bare = sample_all(sampler(tiny()), PROMPTS, plain)
    assert [c.tokens for g in made for c in g] != [c.tokens for g in bare for c in g]
    for prompt, completions in zip(PROMPTS, made, strict=True):
        for completion in completions:
            assert completion.version == 7
            expected = full_logprobs(model, prompt, completion)
            assert (expected - torch.tensor(completion.logprobs)).abs().max() < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "mistral_sliding"])
def test_what_cannot_be_first_is_never_first_and_what_is_left_is_renormalised(tiny, architecture):
    model, barred = tiny(architecture), frozenset({3, 4, 7})
    engine = sampler(model)
    [made] = sample_all(engine, PROMPTS[:1], lambda i: plain(i, not_first=barred, max_tokens=3), n=40)
    assert {c.tokens[0] for c in made}.isdisjoint(barred)
    assert any(set(c.tokens[1:]) & barred for c in made)  # later they can be
    tokens = torch.tensor([[*PROMPTS[0]]])
    with torch.no_grad():
        free = torch.log_softmax(model.module(tokens).logits[0, -1], dim=-1)
    left = 1 - free[sorted(barred)].exp().sum()
    for completion in made:
        assert completion.logprobs[0] == pytest.approx(float(free[completion.tokens[0]] - left.log()), abs=1e-5)
    greedy = int(free.argmax())
    params = Sampling(1, 0.0, not_first=frozenset({greedy}))
    [[other]] = sample_all(engine, PROMPTS[:1], lambda _: params, n=1)
    assert other.tokens[0] == int(free.index_fill(0, torch.tensor([greedy]), -torch.inf).argmax())
