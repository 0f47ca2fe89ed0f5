"""Models that are asked in words: over HTTP, in this process, or scripted. Judges, quizzes and teachers ask them.

Endpoint            any OpenAI-compatible server (`client`), at a measured pace (`pace`)
LocalRespondent     a sampler and a chat format of this library (`local`)
ScriptedRespondent  what a function says, for tests (`scripted`)
Remembered          one of these with its answers on disk (`remember`)
"""

from maieutic.endpoint.client import Endpoint
from maieutic.endpoint.local import LocalRespondent
from maieutic.endpoint.remember import Remembered
from maieutic.endpoint.reply import Bill, Outcome, Reply, Respondent, TokenLogprob
from maieutic.endpoint.scripted import ScriptedRespondent

__all__ = [
    "Bill",
    "Endpoint",
    "LocalRespondent",
    "Outcome",
    "Remembered",
    "Reply",
    "Respondent",
    "ScriptedRespondent",
    "TokenLogprob",
]
