"""The page of a comparison: one HTML file that needs no other file and no network."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from pipeline.comparison.figures import png_uri
from pipeline.comparison.findings import Finding
from pipeline.comparison.tables import Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 1100px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #e2e2e2; }
th { border-bottom: 2px solid #999; } th:first-child, td:first-child { text-align: left; }
ul.findings { list-style: none; padding: 0; }
ul.findings li { border-left: 5px solid #bbb; padding: .15rem .8rem; margin: .4rem 0; }
ul.findings li.claim { border-color: #0072B2; } ul.findings li.caution { border-color: #E69F00; }
ul.findings b { font-weight: 600; margin-right: .4rem; }
img { max-width: 100%; height: auto; }
pre { background: #f5f5f5; padding: .7rem; overflow-x: auto; font-size: 13px; }
"""
_LABELS = {"claim": "Supported.", "no claim": "Not supported.", "caution": "Mind."}


@dataclass(frozen=True)
class Page:
    """What the page shows, top to bottom.

    Attributes:
        title: heading.
        about: lines under it.
        findings: what the evidence supports and what it does not.
        tables: by heading.
        figures: by heading, with a line of explanation.
        texts: by heading, shown as they are: settings, the command.
    """

    title: str
    about: Sequence[str]
    findings: Sequence[Finding]
    tables: dict[str, Table] = field(default_factory=dict)
    figures: dict[str, tuple[Figure, str]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    def html(self) -> str:
        parts = [
            f"<h1>{html.escape(self.title)}</h1>",
            *(f"<p>{html.escape(line)}</p>" for line in self.about),
            "<h2>What the evidence supports</h2>",
            self._findings(),
        ]
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
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head>\n<body>\n"
            + "\n".join(parts)
            + "\n</body></html>\n"
        )

    def _findings(self) -> str:
        items = (
            f'<li class="{finding.nature.replace(" ", "-")}"><b>{_LABELS[finding.nature]}</b>'
            f"{html.escape(finding.text)}</li>"
            for finding in self.findings
        )
        return f'<ul class="findings">{"".join(items)}</ul>'


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
