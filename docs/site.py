"""A hook of the site: what pages link to beside docs/ (code, tests, results) comes along.

Links stay as GitHub reads them. In the site they lead to copies under files/, since sources are
no pages of it. A folder is shown by the first of its files that says what it holds.
"""

import os
import pathlib
import re
import shutil

from mkdocs.utils import get_relative_url

ROOT = pathlib.Path(__file__).parent.parent
LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
SHOWN = ("README.md", "about.json", "report.md", "results.jsonl", "__init__.py")
copied: set[str] = set()


def on_page_markdown(markdown, page, config, files):
    """Rewrites the links that leave the pages; those that lead nowhere are left to mkdocs."""
    here = pathlib.Path(page.file.abs_src_path).parent
    pages = {file.src_uri for file in files.documentation_pages()}

    def rewritten(link):
        text, target, _ = link.groups()
        path = pathlib.Path(os.path.normpath(here / target))
        if "://" in target or not path.exists() or ROOT not in path.parents:
            return link[0]
        if path.is_dir():
            path = next((path / name for name in SHOWN if (path / name).exists()), path)
        if os.path.relpath(path, config.docs_dir) in pages or path.is_dir():
            return link[0]
        copied.add(str(path.relative_to(ROOT)))
        url = f"files/{path.relative_to(ROOT)}"
        return f'<a href="{get_relative_url(url, page.url)}">{text}</a>'

    return LINK.sub(rewritten, markdown)


def on_post_build(config):
    """Copies what was linked."""
    for name in copied:
        target = pathlib.Path(config.site_dir, "files", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
