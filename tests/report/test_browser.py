"""The page in a headless Chromium: nothing asked for, no errors, nothing sideways, all of it works.

Screenshots are left in pytest's folder for temporary files.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from st3fx.commands.report import write_report
from st3fx.report.page import make_page, make_sections
from tests.report.browser import Page, browser
from tests.report.made import block_names, made_facts
from tests.report.test_page import ODD

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pages(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by name: of a run with all there is, of odd names, and of a very large model."""
    folder = tmp_path_factory.mktemp("pages")
    found = {"run": write_report(run, folder / "run.html").path}
    for name, names in (("odd", [*ODD, *block_names(4)]), ("large", block_names(600))):
        facts = made_facts(names)
        found[name] = folder / f"{name}.html"
        found[name].write_text(make_page(facts, make_sections(facts)), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for the module."""
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(shared: Page) -> Page:
    """The browser, with what went before forgotten."""
    shared.errors.clear()
    shared.requests.clear()
    return shared


SIZES = """(() => {
    const wide = [...document.querySelectorAll("body *")].filter((e) => {
        const box = e.getBoundingClientRect();
        return box.right > innerWidth + 1 && !e.closest(".scroll, nav, pre, svg");
    });
    return [innerWidth, document.documentElement.scrollWidth, wide.map((e) => e.outerHTML)];
})()"""

COLOURS = """(() => {
    const parse = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => {
        v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
    const light = (c) => { const [r, g, b] = parse(c); return 0.2126*r + 0.7152*g + 0.0722*b };
    const paper = light(getComputedStyle(document.body).backgroundColor);
    const of = (selector, key) => {
        const l = light(getComputedStyle(document.querySelector(selector))[key]);
        return (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05) };
    return {paper, ink: of("h1", "color"), soft: of(".figures .what", "color"),
            link: of("nav a", "color"), tick: of("svg .tick", "fill"),
            bar: of("svg .bar.main", "fill"), goal: of("svg .threshold", "stroke")};
})()"""


@pytest.mark.parametrize(
    ("name", "width", "dark"),
    list(itertools.product(("run", "odd", "large"), (360, 800, 1400), (False, True))),
)
def test_the_page_renders(
    page: Page, pages: dict[str, Path], tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    page.open(pages[name], width, dark=dark, phone=width < 500)
    page.screenshot(tmp_path / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [pages[name].as_uri()]
    inner, scroll, wide = page.evaluate(SIZES)
    assert (inner, scroll, wide) == (width, width, [])
    colours = page.evaluate(COLOURS)
    assert (colours["paper"] < 0.05) == dark
    assert min(colours["ink"], colours["soft"], colours["link"], colours["tick"]) >= 4.5
    assert min(colours["bar"], colours["goal"]) >= 3
    drawn = page.evaluate(
        "[...document.querySelectorAll('figure svg')].map((e) => e.getBoundingClientRect().width)"
    )
    assert drawn
    assert min(drawn) > 0


def first_column(page: Page, column: int) -> list[Any]:
    return list(page.evaluate(
        "[...document.querySelectorAll('.sortable tbody tr:not([hidden])')]"
        f".map((row) => row.cells[{column}].dataset.v ?? row.cells[{column}].textContent)"
    ))  # fmt: skip


def test_the_table_sorts(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["run"], 1400)
    assert first_column(page, 1) == ["stem.weight", "head.weight"]
    page.click(".sortable th:nth-child(5) button")
    weights = [int(value) for value in first_column(page, 4)]
    assert weights == [1960, 100]
    state = "document.querySelector('.sortable th:nth-child(5)').getAttribute('aria-sort')"
    assert page.evaluate(state) == "descending"
    page.click(".sortable th:nth-child(5) button")
    assert [int(value) for value in first_column(page, 4)] == [100, 1960]
    assert page.evaluate(state) == "ascending"
    page.click(".sortable th:nth-child(2) button")
    assert first_column(page, 1) == ["head.weight", "stem.weight"]
    assert page.evaluate(state) is None
    page.click(".sortable th:nth-child(1) button")
    assert first_column(page, 0) == ["1", "2"]
    page.open(pages["large"], 1400)
    page.click(".sortable th:nth-child(2) button")
    names = first_column(page, 1)
    # Numbers in names go by their value: block 2 comes before block 10.
    assert names.index("stages.0.blocks.2.conv1.weight") == 6
    assert page.errors == []


def test_the_table_filters(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["large"], 360, phone=True)
    page.click(".sortable input")
    page.type("blocks.7. CONV2.")
    assert first_column(page, 1) == [f"stages.{k}.blocks.7.conv2.weight" for k in range(7)]
    count = "document.querySelector('.sortable output').textContent"
    assert page.evaluate(count) == "7 of 600 sites"
    page.click(".sortable th:nth-child(2) button")
    assert len(first_column(page, 1)) == 7
    page.evaluate("document.querySelector('.sortable input').select()")
    page.type("8x8x3")
    assert page.evaluate(count) == "600 sites"
    page.evaluate("document.querySelector('.sortable input').select()")
    page.type("nothing like it")
    assert first_column(page, 1) == []
    assert page.evaluate(count) == "0 of 600 sites"


def test_marks_say_what_they_are(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["run"], 1400)
    at = page.evaluate(
        "(() => { const e = document.querySelector('#zeros .row');"
        "e.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2] })()"
    )
    page.settle()
    shown = "[tip.style.display, tip.textContent]"
    page.point(*at)
    display, said = page.evaluate(shown)
    assert display == "block"
    assert said.startswith("stem.weight\n")
    assert "of 100 weights are zero" in said
    left, right = page.evaluate("(({left, right}) => [left, right])(tip.getBoundingClientRect())")
    assert left >= 0
    assert right <= 1400
    page.point(2, 2)
    assert page.evaluate(shown)[0] == "none"
