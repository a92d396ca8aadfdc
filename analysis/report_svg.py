"""A figure's SVG as a part of a page: no id meets another figure's, no style reaches beyond it, nothing is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree

from analysis.plotting import CAPTION, CAPTION_LINE, WIDTH

_SVG = "{http://www.w3.org/2000/svg}"
_DRAWN = frozenset(
    (
        *("svg", "g", "defs", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text", "tspan"),
        *("use", "image", "clipPath", "mask", "pattern", "linearGradient", "radialGradient", "stop"),
    )
)
_FULL = 72 * WIDTH
_LEAST = 1.2
"""Pixels a point: a picture never gets smaller, so that its words stay readable; its frame scrolls."""
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


class SvgError(Exception):
    """Not a picture that this project drew; the message says why."""


def inline_svg(content: str, prefix: str, alt: str) -> str:
    """The picture without its caption, which the page writes as text of its own.

    Args:
        content: the SVG file.
        prefix: of all ids, another for each picture of the page.
        alt: what is said in its place.

    Raises:
        SvgError: it is no SVG with a view box.
    """
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise SvgError(f"not an SVG: {error}") from None
    _, _, width, height = (float(part) for part in root.get("viewBox", "0 0 0 0").split())
    if root.tag != f"{_SVG}svg" or not (width > 0 and height > 0):
        raise SvgError("not an SVG with a view box")
    lines = 0
    for parent in root.iter():
        for child in [one for one in parent if one.get("id") == CAPTION]:
            lines += sum(one.tag == f"{_SVG}text" for one in child.iter())
            parent.remove(child)
    used = set(_references(root))
    picture = _plain(root, prefix, used)
    picture.attrib = {
        "viewBox": f"0 0 {width:g} {height - lines * CAPTION_LINE:g}",
        "style": f"width: {100 * width / _FULL:.4g}%; min-width: {_LEAST * width:.0f}px",
        "role": "img",
        "aria-label": alt,
    }
    return ElementTree.tostring(picture, encoding="unicode")


def _references(root: ElementTree.Element) -> Iterator[str]:
    for element in root.iter():
        for name, value in element.attrib.items():
            yield from _REFERENCE.findall(value)
            if _local(name) == "href" and value.startswith("#"):
                yield value[1:]


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _plain(element: ElementTree.Element, prefix: str, used: set[str]) -> ElementTree.Element:
    """A copy of what is drawn: no scripts, styles, comments, addresses or names that nothing refers to."""
    copy = ElementTree.Element(_local(element.tag), _attributes(element, prefix, used))
    copy.text = element.text if copy.tag in ("text", "tspan") else None
    for child in element:
        if isinstance(child.tag, str) and _local(child.tag) in _DRAWN:
            own = _plain(child, prefix, used)
            own.tail = child.tail if copy.tag in ("text", "tspan") else None
            copy.append(own)
    return copy


def _attributes(element: ElementTree.Element, prefix: str, used: set[str]) -> dict[str, str]:
    found = {}
    for name, value in ((_local(name), value) for name, value in element.attrib.items()):
        if name.startswith("on") or (name == "id" and value not in used):
            continue
        if name == "href" and not value.startswith(("#", "data:image/")):
            continue
        if name == "id":
            value = prefix + value
        elif name == "href" and value.startswith("#"):
            value = f"#{prefix}{value[1:]}"
        elif name != "href":
            value = _REFERENCE.sub(lambda found: f"url(#{prefix}{found[1]})", value)
        found[name] = value
    return found
