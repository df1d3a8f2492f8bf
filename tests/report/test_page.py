from __future__ import annotations

import dataclasses
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from st3fx.errors import ReportError
from st3fx.plan.sites import SkippedSite
from st3fx.report.facts import Facts
from st3fx.report.page import check_target, make_page, make_sections, with_code, write_all
from tests.report.made import block_names, made_facts

ODD = ("<script>alert(1)</script>.weight", "a&b'\"`$x$.weight", "é.ü.weight", "x" * 120)


def page(facts: Facts) -> str:
    return make_page(facts, make_sections(facts))


class Elements(HTMLParser):
    """Counts elements, and fails where they are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.links: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [str(value) for key, value in attrs if key in ("src", "href", "srcset")]
        if tag not in ("meta", "input", "wbr", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_files_of_one_folder_are_written_all_or_none(tmp_path: Path) -> None:
    write_all({tmp_path / "a.json": b"1", tmp_path / "a.html": b"1", tmp_path / "p" / "c.png": b""})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.json", "p"]
    (tmp_path / "link").symlink_to("a.json")
    (tmp_path / "b.html").mkdir()
    with pytest.raises(ReportError, match=r"cannot write .*b.html"):
        write_all({tmp_path / "link": b"2", tmp_path / "b.html": b"2"})
    assert (tmp_path / "a.json").read_bytes() == b"1"
    write_all({tmp_path / "link": b"2"})  # a link is followed
    assert (tmp_path / "a.json").read_bytes() == b"2"
    assert not list(tmp_path.glob(".*"))


def test_a_pipe_is_no_page(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.html")
    with pytest.raises(ReportError, match="is a device or a pipe"):
        check_target(tmp_path / "pipe.html", force=False)


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page(made_facts(block_names(6)))
    elements = Elements(text)
    assert elements.names.count("script") == elements.names.count("style") == 1
    assert not {"link", "img", "iframe", "object", "embed"} & set(elements.names)
    assert all(link.startswith("#") for link in elements.links)
    assert not re.search(r"https?:|url\(|@import|fetch\(|XMLHttp|import\(", text)
    assert "default-src 'none'" in text


def test_names_cannot_break_the_page() -> None:
    facts = made_facts(ODD)
    assert facts.model is not None
    skipped = SkippedSite("<img src=x>", (2, 2), "linear", 'because "<b>"')
    plan = dataclasses.replace(facts.model.plan, skipped=(skipped,))
    model = dataclasses.replace(facts.model, plan=plan)
    text = page(dataclasses.replace(facts, name="<h1>", model=model))
    elements = Elements(text)
    assert elements.names.count("script") == 1
    assert elements.names.count("h1") == 1
    assert "img" not in elements.names
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "&lt;img src=x&gt;" in text


def test_what_cannot_be_seen_is_shown_as_an_escape() -> None:
    evil = "\x1b[2J\u202e\x9b.weight"
    facts = made_facts((evil, "plain.weight"))
    text = page(dataclasses.replace(facts, name=evil))
    assert {char for char in text if not char.isprintable()} <= {"\n", "\xa0"}
    assert text.count(r"\x1b[2J\u202e\x9b") > 3


def test_the_same_facts_give_the_same_page() -> None:
    assert page(made_facts(block_names(9))) == page(made_facts(block_names(9)))


@pytest.mark.parametrize(("sites", "most"), [(60, 300_000), (600, 2_000_000)])
def test_the_page_stays_small(sites: int, most: int) -> None:
    text = page(made_facts(block_names(sites)))
    assert len(text.encode()) < most
    assert text.count("<tr>") > sites


def test_what_is_missing_has_a_line_that_gives_it() -> None:
    facts = made_facts(block_names(3))
    missing = {section.key: section.missing for section in make_sections(facts)}
    assert [key for key, line in missing.items() if line] == ["training", "latency"]
    assert "`st3fx train made.st3fx` trains it" in missing["training"]
    assert "`st3fx bench made.st3fx -x made.st3fx.bench.json`" in missing["latency"]
    nothing = dataclasses.replace(facts, model=None, is_run=True, source=Path("runs/net"))
    missing = {section.key: section.missing for section in make_sections(nothing)}
    assert [key for key, line in missing.items() if not line] == ["reproduce"]
    assert "`st3fx train --resume runs/net`" in missing["zeros"]
    Elements(page(nothing))


def test_a_model_that_cannot_be_counted_says_why() -> None:
    facts = made_facts(block_names(3))
    assert facts.model is not None
    model = dataclasses.replace(
        facts.model, flops={}, uncounted="InputError: no <inputs>",
        layers=tuple(dataclasses.replace(layer, flops=None) for layer in facts.model.layers),
    )  # fmt: skip
    text = page(dataclasses.replace(facts, model=model))
    assert "Not counted: InputError: no &lt;inputs&gt;" in text
    assert "MACs left</span>" not in text


def test_dead_channels_have_columns_where_there_are_any() -> None:
    facts = made_facts(block_names(3))
    assert facts.model is not None
    assert "dead out" not in page(facts)
    layer = facts.model.layers[0]
    assert layer.flops is not None
    dead = dataclasses.replace(layer, flops=dataclasses.replace(layer.flops, dead_outputs=3))
    model = dataclasses.replace(facts.model, layers=(dead, *facts.model.layers[1:]))
    text = page(dataclasses.replace(facts, model=model))
    assert "dead out" in text
    assert "3 of 8" in text
    assert "3 output channels have a filter of zeros alone" in text


def test_words_between_backticks_are_code() -> None:
    assert with_code("run `a <b>` now") == "run <code>a &lt;b&gt;</code> now"
