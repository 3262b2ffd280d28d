"""Markdown renders as tables, HTML is well-formed, LaTeX compiles."""

from __future__ import annotations

import pytest
from markdown_it import MarkdownIt

from et.results.formats import Document, Grid, Section, Text, latex, signed, to_html, to_latex, to_markdown
from tests.results.checks import Content, compile_latex, html_faults, latex_faults

NASTY = r"a|b & 50% #1 _x_ {y} $z$ ~ ^ \end < > ± ✓ ✗ × – Δ α β σ" + " \" '"
GRID = Grid(
    "|V| & 100%",
    ["Data|set", "Value"],
    [[Text("[first]"), Text(NASTY, bold=True)], [Text("second"), Text("")], [Text("third"), Text("1.0", bold=True)]],
)
DOCUMENT = Document(
    "Table 0: <nasty>",
    "An & intro.",
    [GRID, GRID],
    [Section("Points", [NASTY]), Section("Code", ["run x=1"], code=True)],
)


def test_markdown_renders_as_tables():
    page = MarkdownIt("commonmark").enable("table").render(to_markdown(DOCUMENT))
    assert page.count("<table>") == 2
    assert page.count("<tr>") == 2 * 4
    assert page.count("<td") == 2 * 6
    assert "<th>Data|set</th>" in page, "a bar in an entry is no column"
    assert page.count("<strong>1.0</strong>") == 2


def test_html_is_well_formed_and_escaped():
    text = to_html(DOCUMENT)
    assert html_faults(text) == []
    parser = Content()
    parser.feed(text)
    assert parser.seen.count("tr") == 2 * 4 and parser.seen.count("td") == 2 * 6
    assert "nasty" not in parser.seen
    assert NASTY in "".join(parser.text)


def test_the_html_checker_finds_faults():
    assert html_faults("<table><tr></table></tr>")
    assert html_faults("<p>")


def test_latex_is_sound(tmp_path):
    text = to_latex(DOCUMENT)
    assert latex_faults(text) == []
    compile_latex(text, tmp_path)


@pytest.mark.parametrize(
    "broken", [r"\textbf{x", r"\begin{longtable}{lr} a & b & c \\" + "\n" + r"\end{longtable}", "5 $"]
)
def test_the_latex_checker_finds_faults(broken):
    assert latex_faults(broken)


def test_every_symbol_has_its_latex():
    assert all(ord(character) < 128 for character in latex(NASTY))


def test_rows_must_fit_the_columns():
    with pytest.raises(ValueError, match="every row needs 2 entries"):
        Grid("g", ["a", "b"], [[Text("x")]])


@pytest.mark.parametrize(("value", "text"), [(0.34, "+0.3"), (-0.34, "-0.3"), (0.04, "0.0"), (-0.04, "0.0")])
def test_a_difference_that_rounds_to_zero_has_no_sign(value, text):
    assert signed(value, 1) == text
