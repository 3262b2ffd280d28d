"""A document of grids and lists as markdown, LaTeX and HTML."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

PAGE = Path(__file__).parent / "page"


def signed(value: float, digits: int) -> str:
    """A difference with its sign; a value that rounds to zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


@dataclass(frozen=True)
class Text:
    """An entry of a grid.

    Attributes:
        text: Displayed text.
        bold: True for bold type.
        value: Numeric value for sorting, or None.
        cell: The results_table.Entry behind an entry that stands for runs; ignored by the formats here.
    """

    text: str
    bold: bool = False
    value: float | None = None
    cell: object = None


@dataclass(frozen=True)
class Grid:
    """A table: column heads and rows of equal length; the first ``heads`` columns name the row."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Text]]
    heads: int = 1

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"grid {self.caption!r}: every row needs {len(self.columns)} entries")


@dataclass(frozen=True)
class Section:
    """A heading with a list of points; if ``code``, the points are commands."""

    heading: str
    points: Sequence[str]
    code: bool = False


@dataclass(frozen=True)
class Document:
    """Content of a rendered table."""

    title: str
    intro: str
    grids: Sequence[Grid]
    sections: Sequence[Section] = field(default_factory=tuple)


def to_markdown(document: Document) -> str:
    """Render as GitHub markdown."""
    parts = [f"# {document.title}", document.intro]
    for grid in document.grids:
        parts += [f"## {grid.caption}", "\n".join(_markdown_grid(grid))]
    for section in document.sections:
        points = ["```", *section.points, "```"] if section.code else [f"- {point}" for point in section.points]
        parts += [f"## {section.heading}", "\n".join(points)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_grid(grid: Grid) -> list[str]:
    def row(entries: Sequence[str]) -> str:
        return "| " + " | ".join(entry.replace("|", "\\|") for entry in entries) + " |"

    rule = ["---" if index < grid.heads else "---:" for index in range(len(grid.columns))]
    lines = [row(grid.columns), row(rule)]
    return lines + [row([f"**{e.text}**" if e.bold and e.text else e.text for e in entries]) for entries in grid.rows]


def shown(item: Text, small_count: bool = False) -> Markup:
    """HTML of an entry; with ``small_count``, a number of runs at its end, "(n = 5)", is set small."""
    text = html.escape(item.text)
    text = Markup(re.sub(r"(\(n = .*\))$", r"<small>\1</small>", text) if small_count else text)
    return Markup("<strong>{}</strong>").format(text) if item.bold and text else text


@cache
def templates() -> Environment:
    """The templates in page/. Everything they insert is escaped unless it is Markup."""
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        undefined=StrictUndefined,
        # html.escape and not markupsafe's: it writes quotation marks as tables have had them.
        finalize=lambda value: value if isinstance(value, Markup) else Markup(html.escape(str(value))),
        autoescape=True,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["shown"] = shown
    return environment


def to_html(document: Document) -> str:
    """Render as one self-contained page."""
    return templates().get_template("table.html").render(document=document)


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "±": r"$\pm$", "✓": r"$\surd$", "✗": r"$\times$", "×": r"$\times$", "·": r"$\cdot$",
    "–": "--", "Δ": r"$\Delta$", "α": r"$\alpha$", "β": r"$\beta$", "σ": r"$\sigma$", "≠": r"$\neq$", "−": r"$-$",
    "⊗": r"$\otimes$", "'": "'", '"': "''",
}  # fmt: skip


def latex(text: str) -> str:
    """Escape ``text`` for LaTeX; the result needs no packages beyond pdflatex."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_latex(document: Document) -> str:
    r"""Render as a LaTeX fragment for \input; the including document needs \usepackage{longtable}."""
    lines = ["% " + document.title, r"% \usepackage{longtable}"]
    for grid in document.grids:
        layout = "".join("l" if index < grid.heads else "r" for index in range(len(grid.columns)))
        head = " & ".join(latex(name) for name in grid.columns) + r" \\ \hline"
        lines += [
            rf"\begin{{longtable}}{{{layout}}}",
            rf"\caption{{{latex(f'{document.title}: {grid.caption}')}}} \\ \hline",
            head, r"\endfirsthead", r"\hline", head, r"\endhead",
        ]  # fmt: skip
        for row in grid.rows:
            entries = [
                rf"\textbf{{{latex(item.text)}}}" if item.bold and item.text else latex(item.text) for item in row
            ]
            # A bracket at the start of a row would be read as the optional argument of the \\ before it.
            lines.append(re.sub(r"^\[", r"{[}", " & ".join(entries)) + r" \\")
        lines += [r"\hline", r"\end{longtable}"]
    return "\n".join(lines) + "\n"
