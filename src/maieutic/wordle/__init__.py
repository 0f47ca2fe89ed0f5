"""Wordle: rules, words, what is said in a game, a scripted player, what a guess is worth. Needs no torch.

`maieutic.tasks.wordle` asks it, `maieutic.environments.wordle` plays it, `maieutic.rewards.wordle` judges it.
"""

from maieutic.wordle.player import Player, play
from maieutic.wordle.rules import candidates, feedback, guess_value, parse_history
from maieutic.wordle.words import WordList, word_list

__all__ = [
    "Player",
    "WordList",
    "candidates",
    "feedback",
    "guess_value",
    "parse_history",
    "play",
    "word_list",
]
