"""The process that samples: make a practice, then draw a batch with the weights of the moment whenever asked.

Frames (length, then a pickle) arrive on what was standard input and leave on what was standard output; whatever
rewards print goes to standard error, and they read nothing. When its parent is gone, however that ended, the process
leaves at once, in the middle of a batch too.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import pickle
import queue
import threading
import traceback
from typing import IO, Any

import torch

from maieutic.ahead.memory import SharedWeights, places
from maieutic.ahead.messages import Begin, Drawn, Failed, Order, Practice, Ready, Records, travelling
from maieutic.core.cost import Spent
from maieutic.errors import MaieuticError
from maieutic.protocols import Source
from maieutic.rewards.serve import read_frame, write_frame


def spent_beside(source: Source) -> Spent:
    """What the source's reward has sampled for its own sake so far."""
    own = getattr(source, "spent", None)
    reward = getattr(getattr(source, "roller", None), "reward", None)
    return own if own is not None else getattr(reward, "spent", Spent())


class Bench:
    """The practice with the memory that its weights come from."""

    def __init__(self, begin: Begin) -> None:
        torch.set_num_threads(begin.threads)
        self.practice: Practice = begin.make()
        weights = self.practice.policy.learner.weights()
        self.places = places(weights)
        self.descriptor = begin.memory
        self.shared: SharedWeights | None = None

    def draw(self, order: Order) -> Drawn:
        """The batch that is wanted."""
        policy, source = self.practice.policy, self.practice.source
        if self.shared is None:
            self.shared = SharedWeights(self.descriptor, self.places)
        self.shared.read(policy.learner.weights())
        policy.learner.version = order.version
        policy.publish()
        source.restore(order.state)
        before = spent_beside(source)
        groups = travelling(source.next())
        spent = spent_beside(source).plus(before, times=-1)
        return Drawn(groups, source.state(), source.samples, spent)


class Log:
    """What maieutic's log says here, to be told in the other process."""

    def __init__(self, level: int) -> None:
        self.records: queue.SimpleQueue[Any] = queue.SimpleQueue()
        log = logging.getLogger("maieutic")
        log.setLevel(level)
        log.propagate = False
        log.addHandler(logging.handlers.QueueHandler(self.records))

    def take(self) -> Records:
        """What was said since this was asked last."""
        found = []
        while not self.records.empty():
            found.append(self.records.get())
        return tuple(found)


def _failed(error: BaseException, records: Records) -> bytes:
    # of a class of somebody's own the one that it is derived from: the other process may not know it
    known = [each for each in type(error).__mro__ if each.__module__ == MaieuticError.__module__]
    kind = known[0] if known else None
    said = "".join(traceback.format_exception_only(error)).strip() if kind is None else str(error)
    trace = "".join(traceback.format_exception(error, limit=-12))
    return pickle.dumps(Failed(kind, said, trace, records))


def _listen(pipe: IO[bytes], orders: queue.SimpleQueue[bytes]) -> None:
    """Pass orders on, and leave when there will be no more: whoever wanted the batch is gone."""
    while (frame := read_frame(pipe)) is not None:
        orders.put(frame)
    os._exit(0)


def serve() -> None:
    """Draw batches until standard input ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What rewards read or print must not get between the frames.
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    orders: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, orders), daemon=True).start()
    bench, log = None, Log(logging.NOTSET)
    while True:
        frame = orders.get()
        try:
            message = pickle.loads(frame)
            if bench is None:
                logging.getLogger("maieutic").setLevel(message.level)
                bench = Bench(message)
                reply = pickle.dumps(Ready(bench.places, log.take()))
            else:
                drawn = bench.draw(message)
                reply = pickle.dumps(Drawn(drawn.groups, drawn.state, drawn.samples, drawn.spent, log.take()))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised in the process that waits for it
            reply = _failed(error, log.take())
        try:
            write_frame(replies, reply)
        except OSError:
            return
