"""Everything in `abuses.py` is stopped, as root, as an ordinary user, without namespaces; and the trainer goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from abuses import FORGERIES, GREED, PRELUDE, WAYS_OUT
from suite import NAMES, filled, outside

SUITE = Path(__file__).with_name("suite.py")
#: Who tries → the suite's arguments. Who is not root tries as himself.
USER = "45678" if os.geteuid() == 0 else "0"
WHO = {"root": ["0"], "an ordinary user": [USER], "an ordinary user, no namespaces": [USER, "namespaces"]}

pytestmark = pytest.mark.timeout(900)  # the machine may be busy; the suite itself takes seconds


@pytest.fixture(scope="module")
def attacks():
    """All of them at the same time: they wait more than they work."""
    started = {
        who: subprocess.Popen([sys.executable, str(SUITE), *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for who, arguments in WHO.items()
    }
    found = {}
    for who, process in started.items():
        said, errors = process.communicate()
        assert process.returncode == 0, errors.decode()[-2000:]
        found[who] = json.loads(said)
    return found


@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("name", [*NAMES, "replaced"])
def test_it_is_stopped_and_an_honest_program_runs_afterwards(attacks, who, name):
    if who == "root" and os.geteuid() != 0:
        pytest.skip("only root can try it as root")
    if "namespaces" in who and name in FORGERIES:
        assert name not in attacks[who]  # these were tried with all layers
        return
    assert attacks[who][name] == ""


def test_there_are_enough_of_them():
    assert len(WAYS_OUT) >= 60
    assert len(NAMES) == len(set(NAMES)) == len(WAYS_OUT) + len(GREED) + len(FORGERIES)


#: Harmless where nothing stops them.
HARMLESS = (
    "read /etc/passwd", "read a secret that anybody may read", "read it by a path upwards", "list folders",
    "write where anybody may", "this repository", "TCP", "a local socket", "an abstract socket", "a server",
    "a pair of sockets", "a file in memory, executed", "a shell", "environment", "handles of files", "/proc/self/mem",
)  # fmt: skip


def test_without_a_boundary_they_get_out():
    """A suite that nothing can fail would prove nothing."""
    with outside() as world:
        for name in HARMLESS:
            program = PRELUDE + filled(WAYS_OUT[name], world)
            done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
            assert "ESCAPED" in done.stdout, name
