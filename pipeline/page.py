"""A report as one HTML file that needs no other file and no network."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from matplotlib.figure import Figure

Table = tuple[list[str], list[list[str]]]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 1100px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #e2e2e2; }
th { border-bottom: 2px solid #999; } th:first-child, td:first-child { text-align: left; }
ul.remarks { list-style: none; padding: 0; }
ul.remarks li { border-left: 5px solid #bbb; padding: .15rem .8rem; margin: .4rem 0; }
ul.remarks li.good { border-color: #0072B2; } ul.remarks li.bad { border-color: #D55E00; }
ul.remarks li.mind { border-color: #E69F00; }
ul.remarks b { font-weight: 600; margin-right: .4rem; }
img { max-width: 100%; height: auto; }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: 13px; }
"""


@dataclass(frozen=True)
class Remark:
    """A statement at the top of a page: a bold word, then a sentence."""

    nature: Literal["good", "bad", "mind", "plain"]
    word: str
    text: str


@dataclass(frozen=True)
class ReportPage:
    """What the page shows, top to bottom.

    Attributes:
        title: heading.
        about: lines under it.
        remarks: what it comes to, under `remarks_heading`.
        tables: by heading.
        figures: by heading, with a line of explanation.
        texts: by heading, shown as they are: settings, the command.
    """

    title: str
    about: Sequence[str]
    remarks: Sequence[Remark]
    remarks_heading: str = "What it comes to"
    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, tuple[Figure, str]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)

    def html(self) -> str:
        title = html.escape(self.title)
        parts = [f"<h1>{title}</h1>", *(f"<p>{html.escape(line)}</p>" for line in self.about)]
        if self.remarks:
            parts += [f"<h2>{html.escape(self.remarks_heading)}</h2>", self._remarks()]
        for heading, table in self.tables.items():
            parts += [f"<h2>{html.escape(heading)}</h2>", _table(table)]
        for heading, (figure, text) in self.figures.items():
            parts += [
                f"<h2>{html.escape(heading)}</h2>",
                f'<img alt="{html.escape(heading)}" src="{png_uri(figure)}">',
                f"<p>{html.escape(text)}</p>",
            ]
        for heading, text in self.texts.items():
            parts += [f"<h2>{html.escape(heading)}</h2>", f"<pre>{html.escape(text)}</pre>"]
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n"
            + "\n".join(parts)
            + "\n</body></html>\n"
        )

    def _remarks(self) -> str:
        items = (
            f'<li class="{remark.nature}"><b>{html.escape(remark.word)}</b>'
            f"{html.escape(remark.text)}</li>"
            for remark in self.remarks
        )
        return f'<ul class="remarks">{"".join(items)}</ul>'


def png_uri(figure: Figure) -> str:
    """The figure as a data URI, so that a page needs no other file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _table(table: Table) -> str:
    columns, rows = table
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )
