"""Write figures, tables and texts as one HTML page that needs no other file, no script and no network."""

import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

# Pixels of a picture for one of the page, so that it is sharp on fine displays, too.
DENSITY = 2


@dataclass(frozen=True)
class Picture:
    """A picture.

    Args:
        png: Its file, with :data:`DENSITY` pixels for one of the page.
        text: What it shows, for those who do not see it.
    """

    png: bytes
    text: str


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        head: Titles of its columns.
        rows: Cells of each row; the first says what the row is of.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A section of a page; all texts are plain ones.

    Args:
        text: What it shows.
        table: Shown first.
        pictures: One below the other.
        notes: What could not be made, a sentence each.
        commands: That make the same alone.
    """

    text: str
    table: Table | None = None
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()


def render(title: str, text: str, sections: Mapping[str, Section]) -> str:
    """Return the page, in HTML.

    Args:
        title: Of the page.
        text: Below the title.
        sections: By their titles, in the order of the page.
    """
    names = {heading: re.sub(r"\W+", "-", heading.lower()) for heading in sections}
    contents = "\n".join(f'<li><a href="#{names[heading]}">{escape(heading)}</a></li>' for heading in sections)
    body = "\n".join(_render_section(names[heading], heading, section) for heading, section in sections.items())
    return _PAGE.format(title=escape(title), text=escape(text), style=_STYLE, contents=contents, body=body)


def _render_section(name: str, heading: str, section: Section) -> str:
    parts = [f"<h2>{escape(heading)}</h2>", f"<p>{escape(section.text)}</p>"]
    if section.table is not None:
        parts.append(_render_table(section.table, heading))
    parts += map(_render_picture, section.pictures)
    parts += [f'<p class="note">Not shown: {escape(note.removesuffix("."))}.</p>' for note in section.notes]
    if section.commands:
        commands = "\n".join(map(escape, section.commands))
        parts.append(f'<p>To make it alone:</p>\n<pre tabindex="0"><code>{commands}</code></pre>')
    return "\n".join([f'<section id="{name}">', *parts, "</section>"])


def _render_table(table: Table, label: str) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = (
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for first, *cells in table.rows
    )
    lines = [f"<thead><tr>{head}</tr></thead>", "<tbody>", *rows, "</tbody>"]
    # A region that scrolls by itself has to be within reach of the keyboard.
    return "\n".join(
        [f'<div class="wide" role="region" aria-label="{escape(label)}" tabindex="0"><table>', *lines, "</table></div>"]
    )


def _render_picture(picture: Picture) -> str:
    # Width and height are at a fixed place in a PNG.
    width, height = (round(int.from_bytes(picture.png[at : at + 4], "big") / DENSITY) for at in (16, 20))
    source = b64encode(picture.png).decode()
    return (
        f'<figure><img src="data:image/png;base64,{source}" width="{width}" height="{height}" '
        f'alt="{escape(picture.text)}"></figure>'
    )


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{text}</p>
</header>
<nav aria-label="Contents">
<ol>
{contents}
</ol>
</nav>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """\
:root {
  color-scheme: light dark;
  --ink: #1b1b1b; --paper: #ffffff; --faint: #f2f3f5; --line: #c9ccd1; --link: #0b57a4; --note: #8a4b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e5e7; --paper: #16181b; --faint: #23262b; --line: #454a52; --link: #8cbcf2; --note: #f0b35f;
  }
}
body {
  max-width: 1200px; margin: 0 auto; padding: 0 16px 48px;
  background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
}
h1 { font-size: 1.6em; line-height: 1.25; }
h2 { margin-top: 2em; padding-top: 0.6em; border-top: 1px solid var(--line); font-size: 1.25em; }
p { max-width: 46em; }
a { color: var(--link); }
nav ol { columns: 16em; padding-left: 1.6em; }
/* The figures are black on white; in the dark they stay so, in a frame. */
figure {
  width: fit-content; max-width: 100%; margin: 1em 0; padding: 8px; box-sizing: border-box;
  background: #ffffff; border: 1px solid var(--line); border-radius: 6px;
}
img { display: block; max-width: 100%; height: auto; }
.note { padding-left: 0.8em; border-left: 4px solid var(--note); }
.wide, pre { overflow-x: auto; }
table { border-collapse: collapse; overflow-wrap: normal; }
th, td { padding: 0.25em 0.9em 0.25em 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
tbody th { font-weight: normal; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
pre { padding: 0.7em 0.9em; background: var(--faint); border-radius: 6px; font-size: 0.875em; }
"""
