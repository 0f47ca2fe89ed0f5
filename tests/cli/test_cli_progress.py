"""The time that is left, as a run's line tells it."""

import time

from maieutic.cli.progress import Pace, clock


def test_clock():
    assert [clock(seconds) for seconds in (7, 247, 3753)] == ["0:07", "4:07", "1:02:33"]


def test_the_first_of_many_parts_says_nothing_about_the_rest():
    """10 s for the first of 500, which waits for the model to warm up; 12 s for 250: as many again in 12 s."""
    began = time.monotonic() - 12
    pace = Pace(0, began)
    assert pace.left(1, 500) == ""
    assert pace.left(250, 500) == "0:12 left"
    assert pace.left(500, 500) == ""


def test_a_run_that_goes_on_tells_the_time_from_what_it_did_itself():
    """Steps 60 and 61 of 80 in 8 s: 19 more at 8 s each."""
    pace = Pace(60, time.monotonic() - 8)
    assert pace.left(60, 80) == ""
    assert pace.left(61, 80) == "2:32 left"
