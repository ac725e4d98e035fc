"""The pieces of a page: text, tables, pictures, and the whole. All that is shown is escaped here, and only here.

A page is one file: its styles and pictures are inside, it has no scripts, and its policy forbids to load anything.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Picture:
    """A picture with its title, one sentence on how to read it, and the numbers that it shows (HTML)."""

    title: str
    how: str
    svg: str
    numbers: str


@dataclass(frozen=True)
class Tile:
    """A figure that matters most; `kind`: own, teacher, baseline or nothing."""

    label: str
    value: str
    below: str
    beside: str = ""
    kind: str = ""


def printable(text: object) -> str:
    """Return text whose control characters and marks of direction are replaced: a name hides nothing."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in str(text))


def escape(text: object) -> str:
    """Return text that is nothing but text in HTML, in an attribute too."""
    return html.escape(printable(text), quote=True)


def drawn(what: RenderableType) -> str:
    """Write as HTML what the terminal shows: texts and tables, one below the other."""
    return "\n".join(_pieces(what))


def _pieces(what: RenderableType) -> Iterator[str]:
    if isinstance(what, Group):
        for piece in what.renderables:
            yield from _pieces(piece)
    elif isinstance(what, Table):
        yield terminal_table(what)
    elif isinstance(what, Text) and what.plain:
        yield f'<p class="dim small">{escape(what)}</p>' if "dim" in str(what.style) else f"<p>{escape(what)}</p>"


def terminal_table(table: Table) -> str:
    """Write a table of the terminal as HTML: the same columns, sections and bold figures."""
    heads = [_plain(column.header) for column in table.columns]
    sections: list[list[Sequence[RenderableType]]] = [[]]
    for row, cells in zip(table.rows, zip(*(column.cells for column in table.columns), strict=True), strict=True):
        sections[-1].append(cells)
        if row.end_section:
            sections.append([])
    return _table(heads, [[[_cell(cell) for cell in row] for row in section] for section in sections if section])


def numbers_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table of plain cells, figures to the right."""
    return _table(heads, [[[escape(cell) for cell in row] for row in rows]])


def words_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table of plain cells, all to the left; those of the last column are broken where they are long."""
    return _table(heads, [[[escape(cell) for cell in row] for row in rows]], "scroll words")


def _table(heads: Sequence[str], sections: Sequence[Sequence[Sequence[str]]], looks: str = "scroll") -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' if text else "<td></td>" for text in heads)
    bodies = []
    for section in sections:
        rows = [
            f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
            for first, *rest in section
        ]
        bodies.append("<tbody>\n" + "\n".join(rows) + "\n</tbody>")
    label = escape("table: " + ", ".join(text for text in heads if text))
    return (  # what scrolls can be reached by keyboard
        f'<div class="{looks}" role="region" tabindex="0" aria-label="{label}">'
        f"<table><thead><tr>{head}</tr></thead>\n" + "\n".join(bodies) + "</table></div>"
    )


def _plain(cell: RenderableType) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _cell(cell: RenderableType) -> str:
    bold = isinstance(cell, Text) and "bold" in str(cell.style)
    return f"<b>{escape(_plain(cell))}</b>" if bold else escape(_plain(cell))


def tiles(shown: Sequence[Tile]) -> str:
    """Write the figures that matter most."""
    items = [
        f'<li class="{tile.kind}"><span class="dim small">{escape(tile.label)}</span>'
        f'<span class="value">{escape(tile.value)}</span><span class="dim small">{escape(tile.below)}</span>'
        f'<span class="dim small">{escape(tile.beside)}</span></li>'
        for tile in shown
    ]
    return f'<ul class="tiles">\n{"".join(items)}\n</ul>' if items else ""


def pictures(shown: Sequence[Picture]) -> str:
    """Write pictures, each with its caption above and its numbers to unfold below."""
    figures = [
        f"<figure>\n<figcaption><h3>{escape(one.title)}</h3><p>{escape(one.how)}</p></figcaption>\n{one.svg}\n"
        f"<details><summary>The numbers</summary>{one.numbers}</details>\n</figure>"
        for one in shown
    ]
    return f'<div class="pictures">\n{"".join(figures)}\n</div>' if figures else ""


def terms(pairs: Iterable[tuple[str, str]]) -> str:
    """Write what belongs to what: term and HTML of its meaning."""
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{meaning}</dd>" for term, meaning in pairs) + "</dl>"


def short_terms(pairs: Iterable[tuple[str, object]]) -> str:
    """Write many terms with a word or a figure each, side by side."""
    items = "".join(f"<div><dt>{escape(term)}</dt><dd>{escape(value)}</dd></div>" for term, value in pairs)
    return f'<div class="short"><dl>{items}</dl></div>' if items else ""


def lines(text: str) -> str:
    """Write text as it is, line by line, as one does code."""
    return "<pre><code>" + "\n".join(map(escape, text.split("\n"))) + "</code></pre>"


def section(title: str, body: str) -> str:
    """Write a part of the page under its heading; nothing where it is empty."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n" if body else ""


def page(verb: str, title: str, lines: Sequence[str], body: str, foot: str) -> str:
    """Write the whole page: `lines` under the title, `body` of HTML, `foot` as text."""
    styles = files("wfcli").joinpath("report.css").read_text(encoding="utf-8")
    below = "".join(f'<p class="dim">{escape(line)}</p>' for line in lines if line)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escape(verb)}: {escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{styles}</style>
</head>
<body>
<header>
<p class="verb">{escape(verb)}</p>
<h1>{escape(title)}</h1>
{below}
</header>
<main>
{body}</main>
<footer><p>{escape(foot)}</p></footer>
</body>
</html>
"""
