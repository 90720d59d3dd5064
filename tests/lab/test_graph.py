"""A lab drawn as text and as SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import msgspec
import pytest

from kproxy.lab import catalogue, wiring
from kproxy.lab.controllers import fill
from kproxy.lab.graph import Picture, picture_of, ports_text
from kproxy.lab.graph_svg import draw_svg
from kproxy.lab.graph_text import draw, letter
from kproxy.lab.network import Network
from kproxy.lab.state import Allocations, LabState
from kproxy.lab.topology import Port

_SVG = "{http://www.w3.org/2000/svg}"


def picture(
    topology: str = "standard", objects: tuple[dict[str, Any], ...] = (), **scale: int
) -> Picture:
    wanted = catalogue.scaled(catalogue.load(topology), **scale)
    lab = wiring.place(
        LabState(
            name="drawn",
            topology=wanted,
            mode="iptables",
            variant="nft",
            network=Network("drawn"),
            workloads=wanted.workloads,
            manifests=(*wanted.objects, *objects),
        )
    )
    return picture_of(lab, fill(lab, Allocations()))


def service(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": [{"port": 80}], **spec},
    }


def test_text_names_everything() -> None:
    """Every node, pod, client and service is in the text, pods with their services' letters."""
    drawn = picture()
    text = draw(drawn, 120)
    for mark in (*drawn.nodes, *drawn.clients, *drawn.services):
        assert mark.name in text
    for node in drawn.nodes:
        for pod in node.pods:
            line = next(line for line in text.splitlines() if f"● {pod.name} " in line)
            assert f"[{' '.join(letter(index) for index in pod.services)}]" in line
            assert pod.addresses[0] in line
    assert "nobody: refused" in text  # a service of that topology has no endpoints


@pytest.mark.parametrize("width", [60, 80, 100, 200])
@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_text_boxes_are_whole(width: int, nodes: int) -> None:
    """Frames are closed: as many corners of each kind, and every node once, whatever the width."""
    text = draw(picture("wide", nodes=nodes, pods=3), width)
    counts = {text.count(corner) for corner in "╭╮╰╯"}
    assert counts == {nodes + 1}  # and the client
    boxes = text.partition("\nservices\n")[0]
    assert all(boxes.count(f"─ node{n} ") == 1 for n in range(1, nodes + 1))
    frames = [line for line in boxes.splitlines() if line.startswith(("╭", "│ ", "╰"))]
    assert all(line.endswith(("╮", "│", "╯")) for line in frames)


@pytest.mark.parametrize(("nodes", "pods", "arrows"), [(2, 2, True), (5, 10, False)])
def test_svg_is_well_formed_and_whole(nodes: int, pods: int, arrows: bool) -> None:
    """The document parses, everybody is in it, and arrows are drawn while they can be followed."""
    drawn = picture("wide", nodes=nodes, pods=pods)
    root = ET.fromstring(draw_svg(drawn))
    texts = {element.text for element in root.iter(f"{_SVG}text")}
    assert {mark.name for mark in (*drawn.nodes, *drawn.services)} <= texts
    assert {pod.name for node in drawn.nodes for pod in node.pods} <= texts
    lines = [e for e in root.iter(f"{_SVG}path") if e.get("class") == "arrow"]
    edges = sum(len(pod.services) for node in drawn.nodes for pod in node.pods)
    assert len(lines) == (edges if arrows else 0)
    dots = [e for e in root.iter(f"{_SVG}circle") if e.get("r") == "4.2"]
    assert len(dots) == edges


@pytest.mark.parametrize(("nodes", "pods"), [(1, 0), (1, 1), (2, 2), (3, 7), (7, 9)])
def test_svg_boxes_stay_on_the_page_and_apart(nodes: int, pods: int) -> None:
    """Nothing sticks out of the picture, and no two pods, nodes or services overlap."""
    root = ET.fromstring(draw_svg(picture("wide", nodes=nodes, pods=pods)))
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    by_class: dict[str, list[tuple[float, ...]]] = {}
    for rect in root.iter(f"{_SVG}rect"):
        x, y, w, h = (float(rect.get(key, 0)) for key in ("x", "y", "width", "height"))
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
        by_class.setdefault((rect.get("class") or "").split()[0], []).append((x, y, x + w, y + h))
    for boxes in by_class.values():
        for at, a in enumerate(boxes):
            for b in boxes[at + 1 :]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_names_are_escaped() -> None:
    """A name that looks like markup does not become some."""
    drawn = picture()
    odd = msgspec.structs.replace(drawn.services[0], name="<b>&amp;'\"")
    root = ET.fromstring(draw_svg(msgspec.structs.replace(drawn, services=(odd,))))
    assert "<b>&amp;'\"" in {element.text for element in root.iter(f"{_SVG}text")}


def test_endpoints_outside_the_lab_and_notes() -> None:
    """Addresses that are no pod's are listed by themselves; policies are told in words."""
    by_hand = {
        "kind": "EndpointSlice",
        "metadata": {"name": "far", "labels": {"kubernetes.io/service-name": "far"}},
        "addressType": "IPv4",
        "ports": [{"port": 80}],
        "endpoints": [{"addresses": ["192.0.2.7"]}],
    }
    spec = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
    drawn = picture("standard", (service("far", **spec), by_hand))
    mark = drawn.services[-1]
    assert mark.elsewhere == ("192.0.2.7",)
    assert mark.endpoints == 1
    assert mark.note == "external: local"
    assert len(mark.external) == 1
    assert "──▶ 192.0.2.7" in draw(drawn, 120)


def test_ports_of_one_number_stand_together() -> None:
    """TCP and UDP of one number are one word."""
    ports = (Port(53, "a"), Port(53, "b", "UDP"), Port(80, "c"))  # type: ignore[arg-type]
    ports = msgspec.convert(msgspec.to_builtins(ports), tuple[Port, ...])
    assert ports_text(ports) == "53/TCP+UDP 80/TCP"


@pytest.mark.parametrize(("index", "text"), [(0, "a"), (25, "z"), (26, "a2"), (52, "a3")])
def test_letters(index: int, text: str) -> None:
    """Letters never run out."""
    assert letter(index) == text
