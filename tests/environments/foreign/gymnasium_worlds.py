"""Text worlds as people write them for Gymnasium."""

import string

import gymnasium as gym
from gymnasium import spaces

DIRECTIONS = ["west", "east"]


class Corridor(gym.Env):
    """Rooms in a row; the treasure is at one end."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, rooms: int = 4):
        self.rooms = rooms
        self.action_space = spaces.Discrete(2)
        self.observation_space = spaces.Text(max_length=200, charset=string.printable)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(1, self.rooms - 1))
        self.left = 3 * self.rooms
        return self._look(), {}

    def _look(self):
        return f"You are in room {self.place} of {self.rooms}. The treasure is in room {self.rooms - 1}."

    def step(self, action):
        self.place = max(0, self.place + (1 if action == 1 else -1))
        self.left -= 1
        found = self.place == self.rooms - 1
        return self._look(), 1.0 if found else -0.1, found, self.left == 0, {}


class Riddle(gym.Env):
    """A riddle, with hints; the answer is a text."""

    def __init__(self):
        self.observation_space = spaces.Dict({"riddle": spaces.Text(100), "hint": spaces.Text(100)})
        self.action_space = spaces.Text(max_length=20, charset=string.ascii_lowercase + " ")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"riddle": "What has keys and opens no door?", "hint": "none"}, {}

    def step(self, action):
        solved = "piano" in action
        observation = {"riddle": "What has keys and opens no door?", "hint": "it makes music"}
        return observation, float(solved), solved, False, {"success": solved}


def short_corridor(rooms: int = 3):
    return Corridor(rooms)


def in_short(observation):
    return observation.partition(".")[0]
