"""What is wrong with the built site: pictures not there, formulas not set, emphasis not read."""

import html
import pathlib
import re
import urllib.parse

IMAGE = re.compile(r"<img\b[^>]*?\ssrc=\"([^\"]+)\"")
NOT_PROSE = re.compile(r"<(script|style|pre|code|math)\b.*?</\1>", re.DOTALL)
TAG = re.compile(r"<[^>]*>")


def missing_images(page: pathlib.Path) -> list[str]:
    """The `src` of each picture of a page whose file is not beside it."""
    sources = [html.unescape(x) for x in IMAGE.findall(page.read_text(encoding="utf-8"))]
    own = [x for x in sources if not re.match(r"(https?|data):", x)]
    return [x for x in own if not (page.parent / urllib.parse.unquote(x)).exists()]


def bare_formulas(page: pathlib.Path) -> list[str]:
    """What stands in a page's prose behind a dollar, or behind what LaTeX opens a formula with."""
    prose = TAG.sub("", NOT_PROSE.sub("", page.read_text(encoding="utf-8")))
    return re.findall(r"(?:\$|\\[(\[])[^$\n]{0,40}", html.unescape(prose))


def unknown_commands(page: pathlib.Path) -> list[str]:
    """LaTeX commands that were left in the formulas."""
    formulas = re.findall(r"<math\b.*?</math>", page.read_text(encoding="utf-8"), re.DOTALL)
    return [command for formula in formulas for command in re.findall(r"\\\w*", formula)]


def unread_marks(page: pathlib.Path) -> list[str]:
    """What Markdown put in the place of marks that it did not come back to."""
    return re.findall("klzzwxh", page.read_text(encoding="utf-8"))


def faults(site: pathlib.Path) -> list[str]:
    """A line a fault, with its page."""
    found = []
    for page in sorted(site.rglob("*.html")):
        if page.relative_to(site).parts[0] == "404.html":  # its links are absolute
            continue
        name = page.relative_to(site)
        found += [f"{name}: no picture {source}" for source in missing_images(page)]
        found += [f"{name}: a formula is not set: {text}" for text in bare_formulas(page)]
        found += [f"{name}: a formula has {text}" for text in unknown_commands(page)]
        found += [f"{name}: emphasis is not read" for _ in unread_marks(page)]
    return found
