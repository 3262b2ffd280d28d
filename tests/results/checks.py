"""Whether rendered tables are sound: HTML that is well-formed, LaTeX that compiles."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import html5lib
import pytest


class Content(HTMLParser):
    """Collects the tags (``seen``) and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def html_faults(text: str) -> list[str]:
    """What the HTML standard calls a parse error."""
    parser = html5lib.HTMLParser()
    parser.parse(text)
    return [f"{where}: {code} {values}" for where, code, values in parser.errors]


def latex_faults(text: str) -> list[str]:
    """What would stop a TeX engine: braces, environments, columns, bare special characters, unknown commands."""
    faults = []
    text = re.sub(r"(?m)^%.*$", "", text)
    bare = re.sub(r"\\[\\&%$#_{}]", "", text)
    if bare.count("{") != bare.count("}"):
        faults.append("braces")
    if re.findall(r"\\begin\{(\w+)\}", text) != re.findall(r"\\end\{(\w+)\}", text):
        faults.append("environments")
    known = {
        "begin", "end", "caption", "hline", "endfirsthead", "endhead", "textbf", "textbackslash", "textasciitilde",
        "textasciicircum", "textbar", "textless", "textgreater", "pm", "surd", "times", "cdot", "Delta", "alpha",
        "beta", "sigma", "neq", "otimes",
    }  # fmt: skip
    faults += [f"\\{name}" for name in set(re.findall(r"\\([A-Za-z]+)", text)) - known]
    for layout, body in re.findall(r"\\begin\{longtable\}\{(\w+)\}(.*?)\\end\{longtable\}", text, re.DOTALL):
        counts = {row: len(re.findall(r"(?<!\\)&", row)) for row in re.split(r"\\\\(?: \\hline)?\n", body)}
        faults += [row for row, columns in counts.items() if columns not in (0, len(layout) - 1)]
    if re.sub(r"\$\\\w+\$", "", bare).count("$"):
        faults.append("bare $")
    faults += [character for character in text if ord(character) > 127]
    return faults


def compile_latex(fragment: str, folder) -> None:
    """Compile a fragment; skipped where the machine has no TeX."""
    engine = shutil.which("pdflatex")
    if engine is None:
        pytest.skip("no pdflatex on this machine; the structure was checked")
    source = "\\documentclass{article}\n\\usepackage{longtable}\n\\begin{document}\n" + fragment + "\\end{document}\n"
    (folder / "table.tex").write_text(source)
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
