"""What MkDocs does for this site besides its usual steps. `mkdocs.yml` names this file.

- The README is the first page, and the reference of the configuration is generated from conf/.
- A link to a file that is not a page leads to the repository if `repo_url` is set. Otherwise it becomes text
  with the file's path.
- Equations become MathML, which browsers show without a script.
"""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from config_reference import reference
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[([^\]]*)\]\(((?!https?://|#|mailto:)[^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/."""
    readme = (ROOT / "README.md").read_text("utf-8")
    files.append(File.generated(config, "index.md", content=readme))
    files.append(File.generated(config, "configuration.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Rewrite the links of a page, but not in code blocks."""
    source = "README.md" if page.file.src_uri == "index.md" else f"docs/{page.file.src_uri}"

    def rewrite(match: re.Match[str]) -> str:
        return rewritten(match[1], match[2], source, page.file.src_uri, config.repo_url)

    parts = FENCE.split(markdown)
    parts[::2] = [LINK.sub(rewrite, part) for part in parts[::2]]
    return "".join(parts)


def rewritten(text: str, target: str, source: str, page: str, repo_url: str | None) -> str:
    """A link of the file `source`, for the page of the site that shows it."""
    name, mark, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
    if path == "README.md":
        path = "docs/index.md"
    if path.startswith("docs/"):
        relative = posixpath.relpath(path.removeprefix("docs/"), posixpath.dirname(page) or ".")
        return f"[{text}]({relative}{mark}{anchor})"
    if repo_url:
        return f"[{text}]({repo_url.rstrip('/')}/blob/main/{path}{mark}{anchor})"
    return text if path in text else f"{text} (`{path}`)"


def on_page_content(content: str, **_: Any) -> str:
    """Turn the equations that arithmatex has marked into MathML."""

    def mathml(match: re.Match[str]) -> str:
        display = "block" if match[2] == "[" else "inline"
        return str(convert(html.unescape(match[3].strip()), display=display))

    return EQUATION.sub(mathml, content)
