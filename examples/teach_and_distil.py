"""A frozen student, a teacher that learns from it, explanations, and a student of those: examples/*.toml from Python.

python examples/teach_and_distil.py [--quick]        everything goes to runs/; given again, it goes on
"""

import sys
from pathlib import Path

from maieutic.config import parse_table, read_config, read_tables
from maieutic.config.teaching import DistilConfig, TeachConfig
from maieutic.run.distil import begin, collect, student_config
from maieutic.run.runner import resume_or_begin
from maieutic.run.teaching import teacher_config

here, out, quick = Path(__file__).parent, Path("runs"), "--quick" in sys.argv
steps = ["rl.steps=1", "rl.optimiser.warmup_steps=0", "tasks.shown.limit=32"] if quick else []


def run(config, folder):
    return resume_or_begin(config, folder, resume=folder.exists())


judge = run(read_config(here / "teach_student.toml", ["tasks.problems.limit=64"] * quick), out / "teach-student")
told = read_tables(here / "teach.toml", [f"student={judge['model']}", *steps])
teacher = run(teacher_config(parse_table(TeachConfig, told, "teach")), out / "teacher")
small = ["collect.limit=8", "tasks.test.limit=4"] if quick else []
paths = [f"teacher={teacher['model']}", f"student.model.path={judge['model']}"]
config = parse_table(DistilConfig, read_tables(here / "distil.toml", paths + small), "distil")
begin(config, out / "distil", resume=True)
print(collect(config, out / "distil"))
print(run(student_config(config, out / "distil"), out / "distil" / "student")["model"])
