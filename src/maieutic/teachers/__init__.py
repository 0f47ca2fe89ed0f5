"""Teachers that are no single model in this process: recorded ones, served ones, several at once.

RecordedTeacher     what a teacher said of fixed sequences, read from a folder (`recorded`, written by `records`)
EndpointTeacher     a model behind a server that says log-probs of given tokens (`served`)
MixedTeacher        several, each with a weight (`several`)
TeacherByTasks      several, each for its own tasks (`several`)
AlignedTeacher      one of other tokens than the student's (`aligned`)
Shortened           one whose context is too short for some rows: these teach up to its end (`shortened`)

Each is a `maieutic.protocols.Teacher`; one model in this process is `LocalBackend.teacher`. What a teacher writes, for
a student with another vocabulary, is in `written`.
"""

from maieutic.teachers.aligned import AlignedTeacher
from maieutic.teachers.recorded import RecordedTeacher
from maieutic.teachers.served import EndpointTeacher
from maieutic.teachers.several import MixedTeacher, TeacherByTasks
from maieutic.teachers.shortened import Shortened

__all__ = [
    "AlignedTeacher", "EndpointTeacher", "MixedTeacher", "RecordedTeacher", "Shortened", "TeacherByTasks",
]  # fmt: skip
