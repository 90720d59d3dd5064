"""The drawing of what is measured: three namespaces, two links, and who stands in the middle. SVG
that takes its colours from the page. Pure."""

from __future__ import annotations

from kproxy.bench.html.parts import Html
from kproxy.lab.svg import box, element, text

_WIDTH, _HEIGHT = 860, 250

#: Namespaces from left to right: name -> (x, lines within).
_BOXES = {
    "client": (20, ("load generator", "connects, asks, counts")),
    "node": (310, ("the subject: rules, a relay,", "an engine; direct: nothing")),
    "pod": (600, ("server", "answers")),
}
#: For whoever draws without the page's style sheet.
_PLAIN = {"fill": "none", "stroke": "#59636e"}

_BOX_WIDTH, _TOP, _BOX_HEIGHT = 240, 56, 108


def path() -> Html:
    """Client, node and pod."""
    marks = []
    for name, (x, lines) in _BOXES.items():
        marks.append(box(x, _TOP, _BOX_WIDTH, _BOX_HEIGHT, f"space {name}", rx=8.0, **_PLAIN))
        marks.append(text(x + 14, _TOP + 28, f"{name} namespace", "name"))
        for number, words in enumerate(lines):
            marks.append(text(x + 14, _TOP + 58 + 22 * number, words, "words"))
    middle = _TOP + _BOX_HEIGHT / 2
    for left, right in ((260, 310), (550, 600)):
        marks.append(_line(left, middle, right, "link"))
        marks.append(text((left + right) / 2, middle - 10, "veth", "small", text_anchor="middle"))
    marks.append(text(20, 32, "one kernel, three network namespaces for each subject", "small"))
    marks += _arrow(
        _TOP + _BOX_HEIGHT + 26, "to a service's address: the subject leads it to the pod"
    )
    marks += _arrow(
        _TOP + _BOX_HEIGHT + 58, "direct: to the pod's own address, the node only routes"
    )
    drawn = element(
        "svg",
        element("title", "The path that is measured")
        + element(
            "desc",
            "A client namespace, a node namespace and a pod namespace joined by two veth links. "
            "The load generator is in the client, the server in the pod, the subject in the node.",
        )
        + "".join(marks),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        class_="path",
    )
    return Html(drawn)


def _arrow(y: float, words: str) -> list[str]:
    """From client to pod, with words on it."""
    head = element("path", d=f"M 832 {y - 5:g} L 840 {y:g} L 832 {y + 5:g} Z", class_="head")
    return [
        _line(20, y, 832, "arrow"),
        head,
        text(_WIDTH / 2, y - 7, words, "small", text_anchor="middle"),
    ]


def _line(x: float, y: float, to: float, class_: str) -> str:
    return element("line", x1=x, y1=y, x2=to, y2=y, class_=class_, **_PLAIN)
