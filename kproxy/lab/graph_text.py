"""A lab drawn in a terminal: clients, underlay, nodes with their pods, and the services. Pure.

Each service has a letter; a pod carries the letters of the services that send to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from kproxy.lab.graph import ClientMark, NodeMark, Picture, PodMark, ServiceMark

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_GAP = 2
_MIN_WIDTH = 60


def letter(index: int) -> str:
    """a … z, then a2 … z2 and so on."""
    turn, at = divmod(index, len(_LETTERS))
    return _LETTERS[at] + (str(turn + 1) if turn else "")


def draw(picture: Picture, width: int = 100) -> str:
    """The whole drawing, at most ``width`` columns where names allow it; ends with a newline."""
    width = max(width, _MIN_WIDTH)
    lines = [f"lab {picture.lab} · {picture.mode} · {picture.caption}", ""]
    clients = [_client(client) for client in picture.clients]
    nodes = [_node(node) for node in picture.nodes]
    rows = _rows(clients, width)
    for row in rows:
        lines += _beside(row)
    standing = _centres(rows[-1]) if rows else []
    below = _rows(nodes, width)
    width = max(_MIN_WIDTH, *(len(line) for row in [*rows, *below] for line in _beside(row)[:1]))
    lines.append(f"{_stems(standing)}  underlay {' · '.join(picture.underlay)}")
    for row in below:
        lines.append(_bar(width, standing, _centres(row)))
        standing = []
        lines += [_stems(_centres(row)), *_beside(row), ""]
    if picture.services:
        lines += ["services", *_services(picture)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


# --- boxes ------------------------------------------------------------------------------------


def _box(title: str, content: Sequence[str]) -> list[str]:
    """Lines in a frame with a title; all of one width."""
    inner = max(len(title) + 2, *(len(line) for line in content), 0)
    return [
        f"╭─ {title} {'─' * (inner - len(title) - 1)}╮",
        *(f"│ {line.ljust(inner)} │" for line in content),
        f"╰{'─' * (inner + 2)}╯",
    ]


def _client(client: ClientMark) -> list[str]:
    return _box(client.name, [*client.addresses, *([client.link] if client.link else [])])


def _node(node: NodeMark) -> list[str]:
    head = f"{node.name} · zone {node.zone}" if node.zone else node.name
    content = [*node.addresses, *([f"link: {node.link}"] if node.link else [])]
    cells = [_pod(pod) for pod in node.pods]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    content.append("")
    content += [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in cells
    ] or ["no pods"]
    return _box(head, content)


def _pod(pod: PodMark) -> tuple[str, ...]:
    letters = " ".join(letter(index) for index in pod.services)
    mark = "●" if pod.ready else "○"
    return f"{mark} {pod.name}", pod.addresses[0], pod.ports, f"[{letters}]" if letters else ""


def _rows(boxes: Sequence[list[str]], width: int) -> list[list[list[str]]]:
    """Boxes in rows of at most ``width`` columns, at least one in each."""
    rows: list[list[list[str]]] = []
    room = 0
    for box in boxes:
        need = len(box[0]) + _GAP
        if not rows or room < need:
            rows.append([])
            room = width + _GAP
        rows[-1].append(box)
        room -= need
    return rows


def _beside(row: Sequence[list[str]]) -> list[str]:
    height = max(len(box) for box in row)
    filled = [[*box, *[" " * len(box[0])] * (height - len(box))] for box in row]
    return [(" " * _GAP).join(parts) for parts in zip(*filled, strict=True)]


def _centres(row: Sequence[list[str]]) -> list[int]:
    centres: list[int] = []
    start = 0
    for box in row:
        centres.append(start + min(6, len(box[0]) // 2))
        start += len(box[0]) + _GAP
    return centres


def _stems(columns: Sequence[int]) -> str:
    return "".join("│" if at in columns else " " for at in range(max(columns, default=0) + 1))


#: (something above, something below) -> the joint of the bar there.
_JOINTS = {(True, True): "╪", (True, False): "╧", (False, True): "╤"}


def _bar(width: int, above: Sequence[int], below: Sequence[int]) -> str:
    return "".join(_JOINTS.get((at in above, at in below), "═") for at in range(width))


# --- services ---------------------------------------------------------------------------------


def _services(picture: Picture) -> list[str]:
    rows = [_service(index, service) for index, service in enumerate(picture.services)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    receivers: dict[int, list[str]] = {}
    for node in picture.nodes:
        for pod in node.pods:
            for index in pod.services:
                receivers.setdefault(index, []).append(pod.name)
    lines = []
    for index, row in enumerate(rows):
        service = picture.services[index]
        targets = [*receivers.get(index, ()), *service.elsewhere]
        head = "  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True))
        lines.append(f"  {head}  ──▶ {_targets(targets)}")
        more = " ".join((*service.addresses[1:], *(f"at {ip}" for ip in service.external)))
        if more or service.note:
            indent = " " * (2 + widths[0] + 2 + widths[1] + 2 + widths[2] + 2)
            note = f"  ({service.note})" if service.note else ""
            lines.append(f"{indent}{more}{note}")
    return lines


def _service(index: int, service: ServiceMark) -> tuple[str, ...]:
    address = service.addresses[0] if service.addresses else "-"
    return f"[{letter(index)}]", service.name, service.type, address, " ".join(service.ports)


def _targets(names: Sequence[str], most: int = 6) -> str:
    if not names:
        return "nobody: refused"
    shown = " ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
