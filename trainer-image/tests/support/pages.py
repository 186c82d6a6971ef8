"""report.html as a browser would see it, and where the words of its charts lie."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from html.parser import HTMLParser

HTML = (
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "code", "strong", "ul", "li"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"),
)
SVG = ("svg", "text", "line", "rect", "polyline")
ALLOWED = frozenset(HTML + SVG)
VOID = frozenset({"meta", "line", "rect", "polyline"})
REFERENCES = frozenset({"src", "href", "action", "data", "srcset", "poster", "background", "style"})
CHARACTER, LINE = 0.55 * 12, 12  # of the page's font, 12 px: digits are 0.55 of it wide


class Page(HTMLParser):
    """Tags with attributes, and text; unbalanced tags fail."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} stands twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def require_self_contained(self) -> None:
        """Nothing is loaded from anywhere, and nothing runs."""
        assert {tag for tag, _ in self.tags} <= ALLOWED
        attributes = {name for _, found in self.tags for name in found}
        assert not {name for name in attributes if name.startswith("on")} | (attributes & REFERENCES)
        policy = next(found["content"] for tag, found in self.tags if "http-equiv" in found)
        assert "default-src 'none'" in (policy or "")


@dataclass(frozen=True)
class Text:
    """The box of one text of a chart, in the chart's units."""

    words: str
    left: float
    right: float
    top: float
    bottom: float


def svg_texts(svg: str) -> list[Text]:
    """The texts of a chart; raises ``ParseError`` for what is no XML."""
    return [_box(each) for each in ET.fromstring(svg).iter() if each.tag.endswith("}text")]


def _box(text: ET.Element) -> Text:
    words, x, y = text.text or "", float(text.get("x", "")), float(text.get("y", ""))
    width = len(words) * CHARACTER
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[text.get("text-anchor", "start")]
    return Text(words, left, left + width, y - 0.8 * LINE, y + 0.2 * LINE)
