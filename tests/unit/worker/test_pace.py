"""How many jobs may be on their way to a host, from how fast it ended jobs of late."""

from orchestrator.testing.clock import FakeClock
from orchestrator.worker.pace import WINDOW, Pace


def test_an_idle_host_looks_no_further_than_its_capacity() -> None:
    assert Pace(FakeClock(), most=512).look_ahead() == 0


def test_a_few_slow_jobs_give_no_look_ahead() -> None:
    pace = Pace(FakeClock(), most=512)
    pace.note(3)
    assert pace.look_ahead() == 0


def test_it_is_twice_what_a_window_ends_up_to_the_most() -> None:
    pace = Pace(FakeClock(), most=512)
    pace.note(50)
    assert pace.look_ahead() == 100
    pace.note(400)
    assert pace.look_ahead() == 512


def test_the_last_window_counts_while_the_next_has_just_begun() -> None:
    clock = FakeClock()
    pace = Pace(clock, most=512)
    pace.note(100)
    clock.advance(WINDOW)
    pace.note(1)
    assert pace.look_ahead() == 200


def test_a_pause_halves_it_window_by_window_until_nothing_is_left() -> None:
    clock = FakeClock()
    pace = Pace(clock, most=512)
    pace.note(128)
    clock.advance(WINDOW)
    seen = []
    for _ in range(7):
        seen.append(pace.look_ahead())
        clock.advance(WINDOW)
    assert seen == [256, 128, 64, 32, 16, 8, 0]


def test_a_long_pause_forgets_everything_at_once() -> None:
    clock = FakeClock()
    pace = Pace(clock, most=512)
    pace.note(500)
    clock.advance(1000 * WINDOW)
    assert pace.look_ahead() == 0
