"""Games as people write them for TextArena, and an opponent."""

import random
import re

import textarena as ta


class HighestCard(ta.Env):
    """Two players bid a number each round; the higher one takes the round."""

    def __init__(self, rounds: int = 2):
        self.rounds = rounds

    def reset(self, num_players: int, seed=None):
        self.state = ta.TwoPlayerState(num_players=num_players, seed=seed)
        self.state.reset(
            game_state={"bids": {}, "won": {0: 0, 1: 0}, "limit": random.randint(5, 50)},
            player_prompt_function=self._prompt,
        )

    def _prompt(self, player_id, game_state):
        return f"You are Player {player_id}. Bid up to {game_state['limit']}, as [3]."

    def step(self, action: str):
        game, player = self.state.game_state, self.state.current_player_id
        found = re.search(r"\[(\d+)\]", action)
        if not found or int(found[1]) > game["limit"]:
            self.state.set_invalid_move(reason="no bid")
            return self.state.step(rotate_player=False)
        game["bids"][player] = int(found[1])
        if len(game["bids"]) == 2:
            winner = max(game["bids"], key=game["bids"].get)
            game["won"][winner] += 1
            game["bids"] = {}
            self.state.add_observation(
                message=f"Player {winner} takes the round.", observation_type=ta.ObservationType.GAME_MESSAGE
            )
            if sum(game["won"].values()) == self.rounds:
                best = max(game["won"], key=game["won"].get)
                self.state.set_winner(player_id=best, reason=f"Player {best} has most rounds.")
        return self.state.step()


def cautious(observation: str) -> str:
    """Bids 1, and tells that it has seen the rules."""
    return "[1]" if "Bid up to" in observation else "pass"
