"""Draw a system's network from its inventory: subnets, hosts and flows, as one SVG.

``python docs/draw_network.py inventories/pneumonia docs/network.svg``
"""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import Any

import yaml

WIDTH_OUTSIDE, WIDTH_SUBNET, GAP = 150, 250, 90
HOST_WIDTH, HOST_HEIGHT, HOST_GAP = 190, 64, 56
TOP, MARGIN = 110, 24
CHARACTER = 6.2  # width of one in a line of small text

STYLE = """
  text { font-family: system-ui, -apple-system, 'Segoe UI', sans-serif; font-size: 13px; fill: #1f2933 }
  .title { font-size: 17px; font-weight: 600 } .small { font-size: 11.5px; fill: #52606d }
  .vpc { fill: #f7f9fb; stroke: #9aa5b1 } .subnet { fill: #eaf1f8; stroke: #7b8794; stroke-dasharray: 5 4 }
  .host { fill: #fff; stroke: #2f5d8a; stroke-width: 1.5 }
  .role { fill: none; stroke: #2f5d8a; stroke-dasharray: 3 3 }
  .outside { fill: #fff7e6; stroke: #b7791f; stroke-width: 1.5 }
  .flow { fill: none; stroke: #2f5d8a; stroke-width: 1.6; marker-end: url(#arrow) }
  .label { font-size: 11.5px; font-weight: 600; fill: #1a4971; paint-order: stroke; stroke: #f7f9fb; stroke-width: 5px }
"""

OUTSIDE = {"internet": "anyone", "admins": "admin_cidrs"}

Box = tuple[float, float, float, float]


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "middle") -> str:
    """Return a line of text."""
    return f'<text x="{x:.0f}" y="{y:.0f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def rectangle(box: Box, kind: str, radius: int = 8) -> str:
    """Return a box."""
    x, y, width, height = box
    return f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="{radius}" class="{kind}"/>'


def arrow(source: Box, target: Box, label: str, lane: int) -> str:
    """Return an arrow between two boxes, with its ports; arrows between the same columns keep apart by their lane."""
    sx, sy, sw, sh = source
    tx, ty, tw, th = target
    if abs((sx + sw / 2) - (tx + tw / 2)) < 1:  # one column: straight down to the next host, round the side past it
        down = ty > sy
        if (ty - sy - sh if down else sy - ty - th) <= HOST_GAP:
            x, y1, y2 = sx + sw / 2, sy + sh if down else sy, ty if down else ty + th
            path, lx, ly = f"M{x} {y1} L{x} {y2 - 4 if down else y2 + 4}", x + 6, (y1 + y2) / 2 + 4
            return f'<path class="flow" d="{path}"/>' + text(lx, ly, label, "label", "start")
        x, x2, y1, y2 = sx + sw, tx + tw, sy + sh / 2, ty + th / 2
        path = f"M{x} {y1} C{x + 62} {y1} {x + 62} {y2} {x2 + 4} {y2}"
        return f'<path class="flow" d="{path}"/>' + text(x + 30, (y1 + y2) / 2, label, "label", "start")
    right = tx > sx
    x1, x2 = (sx + sw, tx - 4) if right else (sx, tx + tw + 4)
    y1, y2 = sy + sh / 2 + lane * 14, ty + th / 2 + lane * 14
    middle = (x1 + x2) / 2
    path = f"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}"
    return f'<path class="flow" d="{path}"/>' + text(middle, (y1 + y2) / 2 - 6, label, "label")


def loop(box: Box, label: str) -> str:
    """Return an arrow from a box to itself: its hosts talk to one another."""
    x, y, _, height = box
    y1, y2 = y + height * 0.3, y + height * 0.7
    path = f"M{x} {y1:.0f} C{x - 34} {y1 - 6:.0f} {x - 34} {y2 + 6:.0f} {x - 4} {y2:.0f}"
    return f'<path class="flow" d="{path}"/>' + text(x - 28, (y1 + y2) / 2 + 4, label, "label", "end")


def around(boxes: list[Box]) -> Box:
    """Return the frame around the hosts of one role; of a single host, the host itself."""
    if len(boxes) == 1:
        return boxes[0]
    left, top = min(box[0] for box in boxes) - 8, min(box[1] for box in boxes) - 8
    right, bottom = max(box[0] + box[2] for box in boxes) + 8, max(box[1] + box[3] for box in boxes) + 8
    return (left, top, right - left, bottom - top)


def in_words(flow: dict[str, Any]) -> str:
    """Return a flow as a line of text; of what stands under `if`, ``{{ api_public | bool }}``, the variable."""
    source, target = ("every host" if flow[end] == "all" else flow[end] for end in ("from", "to"))
    where = f" where {flow['if'].strip('{} ').split('|')[0].strip()}" if "if" in flow else ""
    return f"{source} reaches {target} on {', '.join(map(str, flow['ports']))}{where}: {flow.get('why', '')}"


def draw(title: str, network: dict[str, Any], instances: list[dict[str, Any]], flows: list[dict[str, Any]]) -> str:
    """Return the SVG of a network; a flow of a role that has no instance is left out."""
    boxes: dict[str, Box] = {}
    hosts_of: dict[str, list[Box]] = {}
    parts: list[str] = []
    # Hosts of one role stand together, so that one frame holds them.
    roles = list(dict.fromkeys(host["role"] for host in instances))
    columns = {
        subnet["name"]: sorted(
            (host for host in instances if host["subnet"] == subnet["name"]), key=lambda host: roles.index(host["role"])
        )
        for subnet in network["subnets"]
    }
    tallest = max(len(hosts) for hosts in columns.values())
    height_inside = tallest * (HOST_HEIGHT + HOST_GAP) + 40
    left = MARGIN + WIDTH_OUTSIDE + GAP
    width = left + len(columns) * (WIDTH_SUBNET + GAP) - GAP + 2 * MARGIN + 40
    ends = {*roles, *OUTSIDE, "all"}
    flows = [flow for flow in flows if {flow["from"], flow["to"]} <= ends]
    # What leads to every host, or holds at times, is said in words.
    said = [flow for flow in flows if "all" in (flow["from"], flow["to"]) or "if" in flow]
    height = TOP + height_inside + 90 + 20 * len(said)

    vpc = (left - MARGIN, TOP - 46, width - left - MARGIN + 10, height_inside + 70)
    width = max([width, *(left + CHARACTER * len(in_words(flow)) + MARGIN for flow in said)])
    parts += [rectangle(vpc, "vpc", 12), text(vpc[0] + 14, vpc[1] + 22, f"VPC {network['cidr']}", "small", "start")]
    for column, subnet in enumerate(network["subnets"]):
        x = left + column * (WIDTH_SUBNET + GAP)
        parts.append(rectangle((x, TOP - 10, WIDTH_SUBNET, height_inside), "subnet"))
        way_out = {"internet": "Internet gateway", "nat": "NAT gateway", "none": "no way out"}[subnet["route"]]
        parts.append(text(x + WIDTH_SUBNET / 2, TOP + 10, f"{subnet['name']}  {subnet['cidr']}", "small"))
        parts.append(text(x + WIDTH_SUBNET / 2, TOP + height_inside - 20, f"out: {way_out}", "small"))
        hosts = columns[subnet["name"]]
        start = TOP + 26 + (tallest - len(hosts)) * (HOST_HEIGHT + HOST_GAP) / 2
        for row, host in enumerate(hosts):
            box = (x + (WIDTH_SUBNET - HOST_WIDTH) / 2, start + row * (HOST_HEIGHT + HOST_GAP), HOST_WIDTH, HOST_HEIGHT)
            hosts_of.setdefault(host["role"], []).append(box)
            kind = host["type"] + (", public address" if host["public"] else "")
            parts += [
                rectangle(box, "host"),
                text(box[0] + HOST_WIDTH / 2, box[1] + 27, host["name"]),
                text(box[0] + HOST_WIDTH / 2, box[1] + 47, kind, "small"),
            ]
    boxes |= {role: around(of_role) for role, of_role in hosts_of.items()}
    parts += [rectangle(boxes[role], "role", 12) for role, of_role in hosts_of.items() if len(of_role) > 1]
    centre = TOP + height_inside / 2
    for row, (name, words) in enumerate(OUTSIDE.items()):
        boxes[name] = (MARGIN, centre - 90 + row * 110, WIDTH_OUTSIDE, HOST_HEIGHT)
        left_edge, top_edge, w, _ = boxes[name]
        parts += [
            rectangle(boxes[name], "outside"),
            text(left_edge + w / 2, top_edge + 27, name),
            text(left_edge + w / 2, top_edge + 47, words, "small"),
        ]
    lanes: dict[tuple[str, str], int] = {}
    for flow in flows:
        if flow in said:
            continue
        if flow["from"] == flow["to"]:
            parts.append(loop(boxes[flow["to"]], ", ".join(map(str, flow["ports"]))))
            continue
        pair = tuple(sorted((flow["from"], flow["to"])))
        lane = lanes[pair] = lanes.get(pair, -1) + 1
        parts.append(arrow(boxes[flow["from"]], boxes[flow["to"]], ", ".join(map(str, flow["ports"])), lane))
    for row, flow in enumerate(said):
        parts.append(text(left, TOP + height_inside + 50 + row * 20, in_words(flow), "small", "start"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}">'
        f"<style>{STYLE}</style><defs><marker id='arrow' viewBox='0 0 10 10' refX='9' refY='5' markerWidth='7' "
        "markerHeight='7' orient='auto-start-reverse'><path d='M0 0 L10 5 L0 10 z' fill='#2f5d8a'/></marker></defs>"
        f'<rect width="100%" height="100%" fill="#fff"/>{text(MARGIN, 34, title, "title", "start")}'
        f"{''.join(parts)}</svg>\n"
    )


def main() -> int:
    """Draw the inventory named by the first argument into the file named by the second."""
    if len(sys.argv) != 3:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    inventory, target = Path(sys.argv[1]), Path(sys.argv[2])
    variables: dict[str, Any] = {}
    for path in sorted((inventory / "group_vars/all").glob("*.yml")):
        variables |= yaml.safe_load(path.read_text()) or {}
    title = f"{variables['system_title']}: who may talk to whom"
    target.write_text(draw(title, variables["network"], variables["instances"], variables["flows"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
