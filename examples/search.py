"""Expert iteration with a search as the expert: what a vote settles on, where it is right, is what is imitated.

python examples/search.py MODEL [--rounds N] [--tasks N]      a folder of a model that knows these sums a little
"""

import argparse

from maieutic import LocalBackend, Optimiser, Roller, Sampled, answer_reward, arithmetic, expert_iteration, load_causal
from maieutic.search import Searched, make_search
from maieutic.train import train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("model")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--tasks", type=int, default=256, help="of a round")
args = parser.parse_args()

tasks, model = arithmetic(difficulty=1), load_causal(args.model, dtype="float32")
policy = LocalBackend(threads=1).policy(model, Optimiser(learning_rate=1e-3), restart=True)
search = make_search("vote", policy.sampler, policy.chat, lambda text: text.rpartition("#")[2].strip() or None)
expert = Roller(Searched(search, budget=192), policy.chat, answer_reward(tasks.verifier), max_completion_length=24)
source = Sampled(tasks, expert, prompts=args.tasks, num_generations=1)
for step in train(source, policy, expert_iteration(), steps=args.rounds):
    print(f"round {step.index}  the vote is right in {step.metrics['reward/mean']:.3f} of {args.tasks}")
