"""A hook of the site: notebooks become pages, and what pages link to beside docs/ comes along.

Notebooks are shown with the outputs that they hold: nothing is executed here.

Links stay as GitHub reads them. In the site they lead to copies under files/, since sources are
no pages of it. A folder is shown by the first of its files that says what it holds.

Formulas between dollars, which GitHub sets too, become MathML: no script is needed to read them.
Those on lines of their own scroll where they are wider than the page. Names in tables may break
at their joints, so that a narrow column does not cut them anywhere, and a flag stays with its
dashes; site.css has the rest. Comments, which would end a list, are left out.

What is wrong with the built pages is warned of, which ends a strict build.
"""

import html
import logging
import os
import pathlib
import re
import shutil

import latex2mathml.converter
import nbconvert
import site_faults
from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url

ROOT = pathlib.Path(__file__).parent.parent
LINK = re.compile(r"(?<!!)\[([^\[\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
COMMENT = re.compile(r"^[ \t]*<!--.*?-->[ \t]*\n", re.DOTALL | re.MULTILINE)
CELL = re.compile(r"<t[dh]\b.*?</t[dh]>", re.DOTALL)
CODE = re.compile(r"(?<=<code>)(?:[^<]|<wbr>)*(?=</code>)")
SHOWN = ("README.md", "about.json", "report.md", "results.jsonl", "__init__.py")
copied: set[str] = set()


def on_files(files, config):
    """Adds a page a notebook, and the pictures in its outputs."""
    for path in sorted(pathlib.Path(config.docs_dir, "tutorials").glob("*.ipynb")):
        text, found = nbconvert.MarkdownExporter().from_filename(str(path))
        for name, content in found["outputs"].items():
            text = text.replace(name, f"{path.stem}_{name}")
            place = f"tutorials/{path.stem}_{name}"
            files.append(File.generated(config, place, content=content))
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leaves comments out, and rewrites the links that leave the pages.

    Links that lead nowhere are left to mkdocs.
    """
    here = pathlib.Path(config.docs_dir, page.file.src_uri).parent
    pages = {file.src_uri for file in files.documentation_pages()}

    def rewritten(link):
        text, target, _ = link.groups()
        if target.endswith(".ipynb"):  # its page, see `on_files`
            return f"[{text}]({target.removesuffix('.ipynb')}.md)"
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

    return LINK.sub(rewritten, COMMENT.sub("", markdown))


def on_page_content(content, page, config, files):
    """Sets the formulas that pymdownx.arithmatex has found, and says where code may break."""

    def mathml(formula):
        display = "block" if formula[1] == "div" else "inline"
        text = html.unescape(formula[2]).strip()
        found = latex2mathml.converter.convert(text, display=display)
        return f'<div class="formula">{found}</div>' if display == "block" else found

    def breakable(code):
        return re.sub(r"(?<=[_./=,])(?=[A-Za-z])", "<wbr>", code[0])

    def with_whole_flags(code):
        return re.sub(r"--\w+", r'<span class="flag">\g<0></span>', code[0])

    content = CELL.sub(lambda cell: CODE.sub(breakable, cell[0]), content)
    content = CODE.sub(with_whole_flags, content)
    return FORMULA.sub(mathml, content)


def on_post_build(config):
    """Copies what was linked, and looks the pages over."""
    for name in copied:
        target = pathlib.Path(config.site_dir, "files", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, target)
    for fault in site_faults.faults(pathlib.Path(config.site_dir)):
        logging.getLogger("mkdocs.hooks").warning(fault)
