"""Text stays text."""

from mpp_session.dashboard.html import Markup, el, join

ATTACK = "\"'><script>alert(1)</script>"


def test_text_and_attributes_are_escaped() -> None:
    written = el("p", ATTACK, [ATTACK], title=ATTACK)
    assert "<script>" not in written
    assert written.count("&lt;script&gt;") == 3
    assert "\"'" not in written


def test_only_markup_is_not_escaped_again() -> None:
    assert el("p", el("b", "a < b")) == "<p><b>a &lt; b</b></p>"
    assert join("<", Markup("<br>"), 3, None, []) == "&lt;<br>3"


def test_attributes_are_written_as_html_names_them() -> None:
    written = el("input", class_="a", data_key=1, required=True, hidden=False, id=None)
    assert written == '<input class="a" data-key="1" required>'
