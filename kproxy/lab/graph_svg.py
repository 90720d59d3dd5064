"""A lab drawn as SVG: clients above the underlay, nodes with their pods below it, services at the
bottom with an arrow to each pod that they send to. Pure; sizes are pixels.

Where arrows would hide the picture (many endpoints, or nodes in several rows) pods carry the
services' colours as dots and the arrows are left out.
"""

from __future__ import annotations

from kproxy.core.objects import Value
from kproxy.lab import svg
from kproxy.lab.graph import ClientMark, NodeMark, Picture, PodMark, ServiceMark

#: Told apart by colour-blind readers in this order for the first six; then it repeats.
_COLOURS = (
    "#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#84740a", "#b91c1c",
)  # fmt: skip

_MARGIN = 32
_GAP = 22
_HEAD = 54
_CLIENT_W, _CLIENT_H = 190, 64
_BAR_H = 26
_STEM = 30
_POD_W, _POD_H, _POD_GAP, _POD_GAP_Y = 128, 56, 12, 24
_NODE_HEAD, _NODE_PAD = 56, 14
_CARD_W, _CARD_H = 236, 97
_ROW_W = 1280
#: More arrows than this, and nobody can follow one.
_MAX_ARROWS = 60
_LEGEND = 44

_STYLE = """
text{font-family:'DejaVu Sans','Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2937}
.mono{font-family:'DejaVu Sans Mono',Menlo,Consolas,monospace;font-size:10.5px;fill:#4b5563}
.small{font-size:11px;fill:#6b7280}
.title{font-size:21px;font-weight:bold}
.name{font-size:13px;font-weight:bold}
.pod-name{font-size:12px;font-weight:bold}
.on-dark{fill:#f9fafb}
.page{fill:#ffffff}
.node{fill:#f3f6fa;stroke:#b6c2d2;stroke-width:1.2}
.pod{fill:#ffffff;stroke:#94a3b8;stroke-width:1}
.unready{stroke-dasharray:4 3;fill:#f8fafc}
.client{fill:#334155;stroke:none}
.bar{fill:#475569}
.stem{stroke:#475569;stroke-width:2.4}
.card{fill:#ffffff;stroke-width:1.8}
.refused{stroke-dasharray:5 4}
.arrow{fill:none;stroke-width:1.7;stroke-opacity:.62}
.warn{font-size:11px;fill:#b91c1c;font-weight:bold}
"""


#: (service, a number of its own) -> where an arrow ends, and the lower edge of that node.
_Anchors = dict[tuple[int, int], tuple[float, float, float]]


class _Plan(Value, frozen=True):
    """Where things go. Each row of nodes stands under a bar of its own."""

    width: float
    columns: int
    rows: tuple[tuple[int, ...], ...]
    node_width: float
    cards: int


def colour(index: int) -> str:
    return _COLOURS[index % len(_COLOURS)]


def draw_svg(picture: Picture) -> str:
    """The whole drawing as an SVG document."""
    plan = _plan(picture)
    body: list[str] = []
    y = float(_MARGIN + _HEAD)
    if picture.clients:
        y = _clients(picture, plan, y, body)
    anchors: _Anchors = {}
    boxes: list[str] = []
    pods: list[str] = []
    for number, row in enumerate(plan.rows):
        y = _row(picture, plan, row, y, body, boxes, pods, anchors, first=number == 0)
    top = y + (70 if _arrows(picture, plan) else 18)
    cards = _cards(picture, plan, top)
    arrows = _draw_arrows(picture, plan, anchors, top) if _arrows(picture, plan) else []
    rows_of_cards = -(-len(picture.services) // plan.cards) if picture.services else 0
    height = top + rows_of_cards * (_CARD_H + _GAP) + _LEGEND + _MARGIN - _GAP
    parts = [
        svg.element("style", _STYLE),
        _markers(picture),
        svg.box(0, 0, plan.width, height, "page"),
        *_title(picture),
        *body,
        *boxes,
        *arrows,
        *pods,
        *cards,
        *_legend(picture, height - _MARGIN, arrows=bool(arrows)),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{plan.width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {plan.width:.0f} {height:.0f}" role="img"'
        f' aria-label="kproxy lab {picture.lab}">\n' + "\n".join(parts) + "\n</svg>\n"
    )


# --- layout -----------------------------------------------------------------------------------


def _plan(picture: Picture) -> _Plan:
    columns = _columns(picture)
    node_width = max(columns * (_POD_W + _POD_GAP) - _POD_GAP, 240) + 2 * _NODE_PAD
    per_row = max(1, int((_ROW_W + _GAP) // (node_width + _GAP)))
    count = len(picture.nodes)
    rows = tuple(
        tuple(range(start, min(start + per_row, count))) for start in range(0, count, per_row)
    )
    widest = max((len(row) for row in rows), default=1)
    cards = max(1, min(len(picture.services), 5, int((_ROW_W + _GAP) // (_CARD_W + _GAP))))
    if len(picture.services) > cards:
        # Even rows look better than a full one and a rest.
        cards = -(-len(picture.services) // -(-len(picture.services) // cards))
    inner = max(
        widest * (node_width + _GAP) - _GAP,
        cards * (_CARD_W + _GAP) - _GAP,
        len(picture.clients) * (_CLIENT_W + _GAP) - _GAP,
        640,
    )
    return _Plan(inner + 2.0 * _MARGIN, columns, rows, float(node_width), cards)


def _columns(picture: Picture) -> int:
    """Pods side by side in a node: all of them while the nodes fit in one row, at least two."""
    most = max((len(node.pods) for node in picture.nodes), default=1)
    share = _ROW_W / max(1, len(picture.nodes)) - _GAP - 2 * _NODE_PAD
    room = int((share + _POD_GAP) // (_POD_W + _POD_GAP))
    return max(min(most, 2), min(most, room, 6), 1)


def _spread(count: int, width: float, plan: _Plan) -> list[float]:
    """Left edges of ``count`` boxes of one width, centred on the page."""
    whole = count * (width + _GAP) - _GAP
    start = (plan.width - whole) / 2
    return [start + at * (width + _GAP) for at in range(count)]


def _arrows(picture: Picture, plan: _Plan) -> bool:
    edges = sum(len(pod.services) for node in picture.nodes for pod in node.pods)
    return len(plan.rows) == 1 and 0 < edges <= _MAX_ARROWS


# --- parts ------------------------------------------------------------------------------------


def _title(picture: Picture) -> list[str]:
    return [
        svg.text(_MARGIN, _MARGIN + 16, f"lab {picture.lab}", "title"),
        svg.text(_MARGIN, _MARGIN + 38, f"{picture.mode} · {picture.caption}", "small"),
    ]


def _clients(picture: Picture, plan: _Plan, y: float, out: list[str]) -> float:
    lefts = _spread(len(picture.clients), _CLIENT_W, plan)
    for client, x in zip(picture.clients, lefts, strict=True):
        out.append(svg.line(x + _CLIENT_W / 2, y, x + _CLIENT_W / 2, y + _CLIENT_H + _STEM, "stem"))
        out += _client(client, x, y)
    return y + _CLIENT_H + _STEM


def _client(client: ClientMark, x: float, y: float) -> list[str]:
    middle = x + _CLIENT_W / 2
    made = [
        svg.box(x, y, _CLIENT_W, _CLIENT_H, "client", rx=10),
        svg.text(middle, y + 20, client.name, "name on-dark", text_anchor="middle"),
    ]
    for number, address in enumerate(client.addresses):
        made.append(
            svg.text(middle, y + 37 + 14 * number, address, "mono on-dark", text_anchor="middle")
        )
    if client.link:
        made.append(svg.text(middle + 8, y + _CLIENT_H + 19, client.link, "small"))
    return made


def _row(
    picture: Picture,
    plan: _Plan,
    row: tuple[int, ...],
    y: float,
    out: list[str],
    boxes: list[str],
    pods: list[str],
    anchors: _Anchors,
    *,
    first: bool,
) -> float:
    """A bar of the underlay and the nodes below it; returns where the next thing may begin."""
    out.append(svg.box(_MARGIN, y, plan.width - 2 * _MARGIN, _BAR_H, "bar", rx=13))
    words = f"underlay · {' · '.join(picture.underlay)}" if first else "underlay"
    out.append(svg.text(plan.width / 2, y + 17, words, "mono on-dark", text_anchor="middle"))
    y += _BAR_H
    height = max(_node_height(picture.nodes[index], plan) for index in row)
    for index, x in zip(row, _spread(len(row), plan.node_width, plan), strict=True):
        node = picture.nodes[index]
        middle = x + plan.node_width / 2
        out.append(svg.line(middle, y, middle, y + _STEM, "stem"))
        if node.link:
            out.append(svg.text(middle + 8, y + 19, node.link, "small"))
        boxes += _node(node, x, y + _STEM, plan.node_width, height)
        for at, pod in enumerate(node.pods):
            line, column = divmod(at, plan.columns)
            left = x + _NODE_PAD + column * (_POD_W + _POD_GAP)
            top = y + _STEM + _NODE_HEAD + line * (_POD_H + _POD_GAP_Y)
            pods += _pod(pod, left, top)
            for place, service in enumerate(pod.services):
                dot = _dot_at(pod, place, left, top)
                anchors[service, len(anchors)] = (*dot, y + _STEM + height)
    return y + _STEM + height + _GAP


def _node_height(node: NodeMark, plan: _Plan) -> float:
    lines = max(1, -(-len(node.pods) // plan.columns))
    return _NODE_HEAD + lines * (_POD_H + _POD_GAP_Y) - _POD_GAP_Y + _NODE_PAD + 4.0


def _node(node: NodeMark, x: float, y: float, width: float, height: float) -> list[str]:
    made = [
        svg.box(x, y, width, height, "node", rx=14),
        svg.text(x + _NODE_PAD, y + 22, node.name, "name"),
        svg.text(x + _NODE_PAD, y + 40, "   ".join(node.addresses), "mono"),
    ]
    if node.zone:
        right = x + width - _NODE_PAD
        made.append(svg.text(right, y + 22, f"zone {node.zone}", "small", text_anchor="end"))
    if not node.pods:
        made.append(svg.text(x + _NODE_PAD, y + _NODE_HEAD + 20, "no pods", "small"))
    return made


def _pod(pod: PodMark, x: float, y: float) -> list[str]:
    made = [
        svg.box(x, y, _POD_W, _POD_H, "pod" if pod.ready else "pod unready", rx=8),
        svg.text(x + 9, y + 17, _cut(pod.name, 15), "pod-name"),
        svg.text(x + 9, y + 32, pod.addresses[0], "mono"),
        svg.text(x + 9, y + 45, _cut(pod.ports, 18), "mono"),
    ]
    for place, service in enumerate(pod.services):
        cx, cy = _dot_at(pod, place, x, y)
        made.append(svg.dot(cx, cy, 4.2, fill=colour(service), stroke="#ffffff"))
    return made


def _dot_at(pod: PodMark, place: int, x: float, y: float) -> tuple[float, float]:
    """Dots stand along the lower edge, evenly."""
    step = min(16.0, (_POD_W - 20) / max(1, len(pod.services)))
    start = x + _POD_W / 2 - step * (len(pod.services) - 1) / 2
    return start + step * place, y + _POD_H


def _cut(words: str, most: int) -> str:
    return words if len(words) <= most else f"{words[: most - 1]}…"


# --- services ---------------------------------------------------------------------------------


def _card_places(picture: Picture, plan: _Plan, top: float) -> list[tuple[float, float]]:
    places: list[tuple[float, float]] = []
    for start in range(0, len(picture.services), plan.cards):
        count = min(plan.cards, len(picture.services) - start)
        y = top + (start // plan.cards) * (_CARD_H + _GAP)
        places += [(x, y) for x in _spread(count, _CARD_W, plan)]
    return places


def _cards(picture: Picture, plan: _Plan, top: float) -> list[str]:
    made: list[str] = []
    places = _card_places(picture, plan, top)
    for index, (x, y) in enumerate(places):
        made += _card(picture.services[index], colour(index), x, y)
    return made


def _card(service: ServiceMark, paint: str, x: float, y: float) -> list[str]:
    kind = service.type if not service.note else f"{service.type} · {service.note}"
    style = "card" if service.endpoints else "card refused"
    made = [
        svg.box(x, y, _CARD_W, _CARD_H, style, rx=12, stroke=paint),
        svg.dot(x + 17, y + 18, 5.5, fill=paint),
        svg.text(x + 29, y + 22, _cut(service.name, 26), "name"),
        svg.text(x + 14, y + 39, _cut(kind, 36), "small"),
        svg.text(x + 14, y + 55, _cut("  ".join(service.addresses) or "no address", 33), "mono"),
        svg.text(x + 14, y + 70, _cut("  ".join(service.ports), 33), "mono"),
    ]
    if service.endpoints:
        words = f"{service.endpoints} endpoint{'' if service.endpoints == 1 else 's'}"
        if service.external:
            words += f" · at {', '.join(service.external)}"
        made.append(svg.text(x + 14, y + 85, _cut(words, 38), "small"))
    elif service.type != "ExternalName":
        made.append(svg.text(x + 14, y + 85, "no endpoint: refused", "warn"))
    return made


def _markers(picture: Picture) -> str:
    """An arrow head in each colour: SVG 1.1 heads do not take the colour of their line."""
    heads = "".join(
        svg.element(
            "marker",
            svg.element("path", d="M0 0L7 3.5L0 7z", fill=paint),
            id=f"head{number}",
            viewBox="0 0 7 7",
            refX=6,
            refY=3.5,
            markerWidth=6,
            markerHeight=6,
            orient="auto",
        )
        for number, paint in enumerate(_COLOURS[: len(picture.services)])
    )
    return svg.element("defs", heads) if heads else ""


def _draw_arrows(
    picture: Picture,
    plan: _Plan,
    anchors: _Anchors,
    top: float,
) -> list[str]:
    """Curves from the cards up to the nodes, then straight up to the dots, behind lower pods;
    those of one service leave its card side by side."""
    places = _card_places(picture, plan, top)
    made: list[str] = []
    for index, (x, y) in enumerate(places):
        ends = sorted(place for (service, _), place in anchors.items() if service == index)
        step = min(14.0, (_CARD_W - 60) / max(1, len(ends)))
        start = x + _CARD_W / 2 - step * (len(ends) - 1) / 2
        for number, (to_x, to_y, edge) in enumerate(ends):
            from_x, below = start + step * number, to_y + 9
            bend = (y - edge) * 0.55
            path = (
                f"M{from_x:.1f} {y:.1f}C{from_x:.1f} {y - bend:.1f}"
                f" {to_x:.1f} {edge + bend:.1f} {to_x:.1f} {edge:.1f}V{below:.1f}"
            )
            made.append(
                svg.element(
                    "path",
                    d=path,
                    class_="arrow",
                    stroke=colour(index),
                    marker_end=f"url(#head{index % len(_COLOURS)})",
                )
            )
    return made


def _legend(picture: Picture, y: float, *, arrows: bool) -> list[str]:
    words = "A dot on a pod: the service of that colour sends to it."
    if not arrows and picture.services:
        words += " Arrows are left out where there are too many to follow."
    return [svg.text(_MARGIN, y, words, "small")] if picture.services else []
