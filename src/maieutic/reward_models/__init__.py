"""Reward models at work: data for training them, measures of what they learned, and rewards made of them.

data         judged completions → groups, with the labels where the losses of `core.reward_modelling` read them
measure      a reward model on completions that it has not learned from
reward       scores as rewards: of the whole, or of steps
generative   P("Yes") of a model that is asked whether an answer is right
"""
