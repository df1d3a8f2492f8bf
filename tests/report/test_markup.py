from __future__ import annotations

from markupsafe import Markup

from st3fx.report.markup import EMPTY, join, tag


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "a < b & c", tag("i", 1)) == "<p>a &lt; b &amp; c<i>1</i></p>"
    assert isinstance(tag("p"), Markup)
    assert join(["<b>", Markup("<b>")]) == "&lt;b&gt;<b>"
    assert join([]) == EMPTY


def test_attributes() -> None:
    assert tag("a", class_="x", aria_label='"<', hidden=True, title=None, open=False) == (
        '<a class="x" aria-label="&quot;&lt;" hidden></a>'
    )
    assert tag("line", x1=1.0, y1=2.345678, r=0.5, n=7) == (
        '<line x1="1" y1="2.35" r="0.5" n="7"></line>'
    )


def test_void_elements_have_no_end() -> None:
    assert tag("meta", name="a", content="b") == '<meta name="a" content="b">'
