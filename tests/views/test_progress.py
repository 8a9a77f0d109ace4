from __future__ import annotations

from tfdeploy_magic.jobs import Progress
from tfdeploy_magic.views import progress


def test_a_known_share_is_shown_with_the_time_left() -> None:
    assert progress.text(Progress("calibrating", 0.25, 10.0)) == "calibrating 25%, 30 s left"


def test_an_unknown_share_is_shown_with_the_time_spent() -> None:
    assert progress.text(Progress("converting", None, 125.0)) == "converting, 2 min 05 s so far"


def test_the_bar_is_plain_html_and_escapes_the_stage() -> None:
    html = progress.html(Progress("<b>", 0.5, 1.0))
    assert "&lt;b&gt;" in html
    assert 'value="0.500"' in html
