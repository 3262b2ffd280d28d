"""A document of grids and lists as markdown, LaTeX and HTML.

Not Jinja2, as the report page has it: the three formats share one walk over a document, and templates are no shorter.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field


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
    """A table: column heads and rows of as many entries.

    The first ``heads`` columns name the row. A ``folded`` grid is closed until the reader opens it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Text]]
    heads: int = 1
    folded: bool = False

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
        lines = "\n".join(_markdown_grid(grid))
        if grid.folded:
            parts += [f"<details>\n<summary>{html.escape(grid.caption)}</summary>", lines, "</details>"]
        else:
            parts += [f"## {grid.caption}", lines]
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


_CSS = """
:root { color-scheme: light dark }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; margin: .5rem 0 1.5rem }
caption { text-align: left; font-weight: 600; padding: .4rem 0 }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap }
th[scope=row], thead th.head, td.head { text-align: left }
pre { overflow-x: auto }
summary { cursor: pointer; font-weight: 600; padding: .4rem 0 }
"""


def to_html(document: Document) -> str:
    """Render as one self-contained page."""
    escape = html.escape
    body = [f"<h1>{escape(document.title)}</h1>", f"<p>{escape(document.intro)}</p>" if document.intro else ""]
    body += [line for grid in document.grids for line in _html_grid(grid)]
    for section in document.sections:
        body.append(f"<h2>{escape(section.heading)}</h2>")
        if section.code:
            body.append("<pre><code>" + escape("\n".join(section.points)) + "</code></pre>")
        else:
            body += ["<ul>", *(f"<li>{escape(point)}</li>" for point in section.points), "</ul>"]
    head = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(document.title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
    )
    return head + "\n".join(line for line in body if line) + "\n</body>\n</html>\n"


def _html_grid(grid: Grid) -> list[str]:
    def entry(index: int, item: Text) -> str:
        text = html.escape(item.text)
        text = f"<strong>{text}</strong>" if item.bold and text else text
        return f'<td class="head">{text}</td>' if index < grid.heads else f"<td>{text}</td>"

    columns = [
        f'<th scope="col"{" class=head" if index < grid.heads else ""}>{html.escape(name)}</th>'
        for index, name in enumerate(grid.columns)
    ]
    lines = ['<div class="wide">', "<table>", f"<caption>{html.escape(grid.caption)}</caption>"]
    lines += ["<thead><tr>" + "".join(columns) + "</tr></thead>", "<tbody>"]
    lines += ["<tr>" + "".join(entry(index, item) for index, item in enumerate(row)) + "</tr>" for row in grid.rows]
    lines += ["</tbody>", "</table>", "</div>"]
    return (
        ["<details>", f"<summary>{html.escape(grid.caption)}</summary>", *lines, "</details>"] if grid.folded else lines
    )


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
