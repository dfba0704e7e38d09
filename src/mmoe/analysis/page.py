"""Write a page twice: as Markdown, and as HTML in one file that needs no network.

The HTML is rendered from the Markdown. Names from a data set stand in code spans, so that none of their
characters has a meaning.
"""

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mmoe.atomic import write_text

FIGURE_DPI = 150  # of the figures that a page shows
PIXELS_PER_INCH = 96  # of CSS
WIDTH_IN_PNG = slice(16, 20)  # the bytes of a PNG file that hold its width
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #1b4965; }
@media (prefers-color-scheme: dark) { :root { --accent: #8ecae6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 66rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
a { color: var(--accent); }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
td { font-variant-numeric: tabular-nums; }
td[style*="right"] { white-space: nowrap; }
.table code { display: inline-block; max-width: 14rem; overflow-wrap: break-word; }
code { font-size: 0.9em; background: var(--soft); padding: 0.1em 0.3em; border-radius: 3px; }
pre { overflow: auto; max-height: 32rem; padding: 0.7rem; background: var(--soft); font-size: 0.85rem; }
pre code { background: none; padding: 0; }
img { max-width: 100%; height: auto; background: white; border-radius: 3px; }
@media print { pre { max-height: none; } }
"""
# Neither scripts nor anything from the network can be loaded, whatever a name in the data says.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}</body>
</html>
"""


def code(text: object) -> str:
    """A name as a code span, on one line."""
    # A file may hold control characters and halves of surrogate pairs, which no page can show.
    printable = "".join(c if c.isprintable() else " " for c in str(text)).encode("utf-8", "replace").decode()
    name = " ".join(printable.split()) or " "
    ticks = "`" * (1 + max(map(len, re.findall("`+", name)), default=0))
    return f"{ticks} {name} {ticks}" if "`" in name else f"{ticks}{name}{ticks}"


def block(text: str, language: str) -> str:
    """Text in a fenced code block."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def table(header: Sequence[str], lines: Iterable[Sequence[str]], is_number: Sequence[bool] = ()) -> str:
    """A table of Markdown cells. Columns that are numbers are aligned to the right."""
    flags = [*is_number, *[False] * (len(header) - len(is_number))]
    rules = ["---:" if flag else "---" for flag in flags]
    # In a table, GitHub and markdown-it take \| as | before anything else, even in a code span.
    first, *rest = ([cell.replace("|", "\\|") for cell in line] for line in (header, *lines))
    return "".join(f"| {' | '.join(row)} |\n" for row in (first, rules, *rest))


def number_of(count: int, name: str) -> str:
    """A count with a noun, such as `1 run` or `2 runs`."""
    return f"{count:,} {name}{'s' * (count != 1)}"


def write_page(folder: Path, name: str, title: str, markdown: str) -> None:
    """Write {name}.md and {name}.html. Images are files below the folder; the HTML holds their content."""
    for suffix, text in (("md", markdown), ("html", to_html(folder, title, markdown))):
        write_text(folder / f"{name}.{suffix}", text)


def to_html(folder: Path, title: str, markdown: str) -> str:
    """Render Markdown as a page of HTML."""
    from markdown_it import MarkdownIt  # imported here because a training needs it only at its end
    from markdown_it.common.utils import escapeHtml

    def image(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> Any:
        token = tokens[index]
        image_file = (folder / str(token.attrs["src"])).read_bytes()
        token.attrs["src"] = f"data:image/png;base64,{base64.b64encode(image_file).decode()}"
        # Figures that fit the page are shown in one scale, so that their texts have one size.
        token.attrs["width"] = round(int.from_bytes(image_file[WIDTH_IN_PNG]) * PIXELS_PER_INCH / FIGURE_DPI)
        return renderer.image(tokens, index, options, env)

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    parser.add_render_rule("image", image)
    parser.add_render_rule("table_open", lambda *_: '<div class="table">\n<table>\n')
    parser.add_render_rule("table_close", lambda *_: "</table>\n</div>\n")
    body = parser.render(markdown)
    return PAGE.format(policy=POLICY, title=escapeHtml(title), style=STYLE, body=body)
