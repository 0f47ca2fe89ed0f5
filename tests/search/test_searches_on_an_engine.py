"""Every search by name: on a real engine, within every budget, with nothing read twice that is still at hand."""

import asyncio

import pytest
import search_tree as tree
import torch

from maieutic.backends.local import LocalBackend, LocalSampler, Optimiser, ValueHead
from maieutic.backends.local.prefixes import Prefixes
from maieutic.backends.toy import STOP, ToyChat, ToySums, toy_policy
from maieutic.errors import RewardError
from maieutic.evaluate import evaluate_sync
from maieutic.models.causal import load_causal
from maieutic.models.reward_model import Settings, from_policy
from maieutic.models.small import tiny_folder
from maieutic.protocols import Completion, Sampling
from maieutic.search import SEARCHES, Question, Searched, make_search, options, requires
from maieutic.search.judges import judged, of_critic, of_model, signed, texts

PROMPT = tuple(range(5, 29))
#: What the searches of this package that sample by steps or votes are asked with.
ASKED = {"delimiter": ";", "step_tokens": 4, "simulations": 6, "depth": 4, "children": 3, "samples": 4}
OURS = ("greedy", "vote", "weighted_vote", "best_of_n", "beam", "thoughts", "thoughts_dfs", "mcts", "uct", "particles")


class Counted:
    """A sampler that notes what it gave."""

    def __init__(self, sampler) -> None:
        self.sampler, self.calls = sampler, list[tuple[int, list[Completion]]]()

    async def sample(self, prompt, params, n):
        made = await self.sampler.sample(prompt, params, n)
        self.calls.append((len(prompt), made))
        return made

    @property
    def chosen(self) -> int:
        return sum(sum(each.mask) for _, made in self.calls for each in made)


def made(name: str, sampler, chat, **more):
    known, judge = options(name), texts(chat, lambda text: len(text) % 7 / 7)
    given = {key: value for key, value in (ASKED | more).items() if key in known}
    given |= dict.fromkeys(requires(name) & {"score", "values"}, judge)
    if "evaluate" in known:
        given |= {"evaluate": "judge", "values": judge}
    return make_search(name, sampler, chat, lambda text: text[-3:] or None, **given)


@pytest.mark.parametrize("budget", [1, 6, 19, 50, 300])
@pytest.mark.parametrize("name", OURS)
def test_no_search_exceeds_its_budget_and_each_says_what_was_sampled(name: str, budget: int):
    sampler = Counted(tree.policy())
    search = made(name, sampler, tree.CHAT)
    found = asyncio.run(search.solve(tree.question(), budget))
    assert 1 <= sampler.chosen <= budget
    assert found.cost.generated == sampler.chosen
    assert found.cost.calls == len(sampler.calls)
    assert found.cost.prefilled == sum(read for read, _ in sampler.calls)
    assert 0 <= found.chosen < len(found.candidates)
    again = asyncio.run(made(name, tree.policy(), tree.CHAT).solve(tree.question(), budget))
    assert again == found
    assert search.name == name


def test_all_of_them_are_in_the_table():
    assert set(OURS) <= SEARCHES.keys()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_causal(tiny_folder("llama", tmp_path_factory.mktemp("search")))


def engine(model, kept: int) -> LocalSampler:
    sampler = LocalBackend().sampler(model)
    sampler.decoder.prefixes = Prefixes(kept)
    return sampler


def word_of(chat) -> str:
    """Something that this model writes often: its steps end there."""
    return next(w for i in range(6, 30) if (w := chat.decode((i,)).strip()) and len(chat.tokens_ending(w)) == 1)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("beam", {}), ("particles", {"particles": 6, "uneven": 1.0}), ("thoughts", {}), ("mcts", {}),
        ("mcts", {"children": 1, "widen": 2.0}), ("uct", {}), ("best_of_n", {}),
    ],
)  # fmt: skip
def test_what_is_at_hand_is_not_read_again_and_changes_nothing(model, name: str, more):
    chat = model.chat
    question = Question(PROMPT, Sampling(30, 1.0, frozenset({3}), "k"))
    results, counts = [], []
    for kept in (1 << 20, 0):
        sampler = Counted(engine(model, kept))
        search = made(name, sampler, chat, delimiter=word_of(chat), **more)
        results.append(asyncio.run(search.solve(question, 400)))
        counts.append(sum(read for read, _ in sampler.calls))
    with_, without = results
    assert [c.completion.tokens for c in with_.candidates] == [c.completion.tokens for c in without.candidates]
    assert with_.chosen == without.chosen
    assert torch.tensor(with_.best.completion.logprobs) == pytest.approx(
        torch.tensor(without.best.completion.logprobs), abs=1e-5
    )
    assert without.cost.reused == 0
    assert counts[0] == counts[1] == without.cost.prefilled == with_.cost.prefilled + with_.cost.reused
    if name == "best_of_n":
        assert with_.cost.reused == 0
    else:
        assert with_.cost.prefilled < without.cost.prefilled / 3  # the prompt alone has 24 tokens


def test_evaluation_asks_a_search_as_it_asks_a_model():
    tasks = ToySums()
    policy = toy_policy(ToyChat(tasks.vocabulary), 4)
    search = make_search("vote", policy.sampler, policy.chat, lambda text: text or None, samples=3)
    asked = evaluate_sync(Searched(search, 12), policy.chat, tasks, max_tokens=4, samples=2, greedy=False)
    assert asked.n == 2
    beam = make_search(
        "beam", policy.sampler, policy.chat, lambda text: text or None, values=lambda p, rows: [0.0] * len(rows),
        delimiter="1", beams=2, children=2,
    )  # fmt: skip
    assert evaluate_sync(Searched(beam, 12), policy.chat, tasks, max_tokens=4, samples=2, greedy=False).n == 2


def ask(judge, rows, prompt=PROMPT) -> list[float]:
    return asyncio.run(judged(judge, prompt, rows))


def test_a_critic_gives_the_value_of_the_state_after_the_last_token(model, tmp_path):
    policy = LocalBackend().policy(load_causal(model.source), Optimiser(), critic=ValueHead())
    for name, weight in policy.learner.weights().items():
        if "critic" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(0))
    judge = of_critic(policy.learner, frozenset({3}))
    alone = [ask(judge, [row])[0] for row in ((7, 8), (7, 8, 9), (7, 8, 9, 3))]
    assert ask(judge, [(7, 8), (7, 8, 9), (7, 8, 9, 3)]) == pytest.approx(alone, abs=1e-5)
    assert alone[1] == pytest.approx(alone[2], abs=1e-6)  # the state in which the stop token was chosen
    assert abs(alone[0] - alone[1]) > 1e-4
    toy = toy_policy(tree.CHAT, 6, critic=True)
    with torch.no_grad():
        toy.learner.critic.table.copy_(
            torch.arange(toy.learner.critic.table.numel()).view(toy.learner.critic.table.shape)
        )
    # position 2 after token 4, and (a finished one) position 1 after token 2; six tokens a position
    assert ask(of_critic(toy.learner, frozenset({STOP})), [(1, 4), (2, STOP)], (5,)) == [2 * 6 + 4, 1 * 6 + 2]


def test_a_reward_model_judges_beginnings_and_wholes(model):
    reward = from_policy(model, Settings("process", "tokens"))
    torch.nn.init.normal_(next(reward.head.parameters()))
    rows = [(7, 8), (7, 8, 9, 10)]
    expected = [reward.steps([PROMPT], [row], [[len(row)]])[0][0] for row in rows]
    assert ask(of_model(reward), rows) == pytest.approx(expected, abs=1e-6)
    assert ask(signed(of_model(reward)), rows) == pytest.approx([2 * p - 1 for p in expected], abs=1e-6)
    assert ask(of_model(reward), []) == []
    with pytest.raises(RewardError, match="of 2"):
        ask(lambda prompt, rows: [1.0], rows)
