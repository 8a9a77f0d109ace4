from __future__ import annotations

from tfdeploy_magic.jobs import Progress, Report


def test_eta_is_what_is_left_at_the_pace_so_far() -> None:
    assert Progress("x", 0.25, 2.0).eta == 6.0
    assert Progress("x", None, 2.0).eta is None
    assert Progress("x", 0.0, 2.0).eta is None


def test_a_listener_is_told_of_stages_at_once_and_of_fractions_at_most_ten_times_a_second() -> None:
    seen: list[Progress] = []
    report = Report(seen.append)
    report.stage("one")
    for _ in report.counting(range(100_000), 100_000):
        pass
    report.stage("two")
    report.finish()
    assert [seen[0].stage, seen[-1].stage] == ["one", "two"]
    assert len(seen) <= 3 + 10 * report.seconds["one"]
    assert set(report.seconds) == {"one", "two"}


def test_a_stage_entered_twice_adds_up() -> None:
    report = Report(lambda progress: None)
    report.stage("one")
    report.stage("two")
    first = report.seconds["one"]
    report.stage("one")
    report.finish()
    assert report.seconds["one"] >= first
    assert report.current == ""


def test_what_a_job_reports_is_passed_on_as_if_it_were_said_here() -> None:
    seen: list[Progress] = []
    report = Report(seen.append)
    report.relay(Progress("converting", 0.5, 3.0))
    assert report.current == "converting"
    assert seen[-1] == Progress("converting", 0.5, 3.0)
