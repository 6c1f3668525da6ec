"""Diagrams of a pipeline: Mermaid text, and an SVG image rendered without a browser or a network."""

import re
import unicodedata
from collections.abc import Sequence
from html import escape
from pathlib import Path

from flows.dag.diagram_layout import Box, compute_layout
from flows.dag.graph import Graph
from flows.errors import ConfigurationError
from flows.runtime.humanize import truncate
from llms import LLM
from tasks import GeneratorStep, Step
from tasks.routing import Sample

MARGIN_PX, LINE_HEIGHT_PX, PADDING_PX, CHAR_WIDTH_PX = 16.0, 18.0, 12.0, 7.4
"""Margin of the image, height of a text line, padding of boxes, and width of a character."""

MAX_LABEL_CHARS = 48
"""Characters of a text line in a box or on an edge; longer ones are truncated."""

SVG_HEAD = """<style>
  text { font: 13px ui-sans-serif, system-ui, "Helvetica Neue", Arial, sans-serif; text-anchor: middle; fill: #1f2328 }
  .name { font-weight: 600 }
  .about, .edge { fill: #656d76 }
  .edge { font-size: 11px; paint-order: stroke; stroke: #ffffff; stroke-width: 4px }
  rect { fill: #f6f8fa; stroke: #8c959f }
  .source { fill: #ddf4ff; stroke: #54aeff }
  .model { fill: #fbefff; stroke: #c297ff }
  path { fill: none; stroke: #8c959f; stroke-width: 1.5 }
  marker path { fill: #8c959f; stroke: none }
  .some { stroke-dasharray: 5 4 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .about, .edge { fill: #9198a1 }
    .edge { stroke: #0d1117 }
    rect { fill: #161b22; stroke: #6e7681 }
    .source { fill: #0c2d6b; stroke: #388bfd }
    .model { fill: #3c1e70; stroke: #8957e5 }
  }
</style>
<defs>
<marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 8 4 0 8z"/>
</marker>
</defs>"""


def draw(graph: Graph, path: str | Path | None = None) -> str:
    """Return a Mermaid diagram; with a `path`, also write it, as text (`.mmd`) or as an image (`.svg`).

    Raises:
        ConfigurationError: If the file has another suffix, or an image is requested of a graph with a cycle.
    """
    diagram = render_mermaid(graph)
    if path is not None:
        match (file := Path(path)).suffix.lower():
            case ".mmd" | ".mermaid":
                file.write_text(diagram, encoding="utf-8")
            case ".svg":
                file.write_text(render_svg(graph), encoding="utf-8")
            case kind:
                raise ConfigurationError(
                    f"`{path}`: pictures are drawn as `.svg`, which browsers show and other programs make `{kind}` of, "
                    "or written as Mermaid, `.mmd`."
                )
    return diagram


def render_mermaid(graph: Graph) -> str:
    """Return the diagram as Mermaid text, which GitHub, notebooks and many editors render."""
    numbers = {step.name: f"s{number}" for number, step in enumerate(graph.steps)}
    lines = ["flowchart TD"]
    for step in graph.steps:
        name, *about = _box_label(step)
        label = "<br/>".join([f"<b>{_escape_mermaid(name)}</b>", *map(_escape_mermaid, about)])
        left, right = ("[(", ")]") if isinstance(step, GeneratorStep) else ("[", "]")
        lines.append(f'    {numbers[step.name]}{left}"{label}"{right}')
    for a, b in graph.edges:
        label, some = _edge_label(graph, a, b)
        arrow = "-.->" if some else "-->"
        text = f'|"{_escape_mermaid(label)}"|' if label else ""
        lines.append(f"    {numbers[a]} {arrow}{text} {numbers[b]}")
    return "\n".join(lines) + "\n"


def render_svg(graph: Graph) -> str:
    """Return the diagram as SVG, which follows the viewer's light or dark theme.

    Raises:
        ConfigurationError: If the graph has a cycle.
    """
    labels = {step.name: _box_label(step) for step in graph.order}
    sizes = {
        name: (max(map(_text_width, label)) + 2 * PADDING_PX, len(label) * LINE_HEIGHT_PX + 2 * PADDING_PX)
        for name, label in labels.items()
    }
    plan = compute_layout(sizes, graph.edges)
    drawn, left, right = [], 0.0, plan.width
    for a, b in graph.edges:
        label, some = _edge_label(graph, a, b)
        parts, meet = len(graph.successors[a]) > 1, len(graph.predecessors[b]) > 1
        text, middle = _render_line_label(plan.lines[a, b], label, 0.75 if parts else 0.25 if meet else 0.5)
        drawn.append(_render_line(plan.lines[a, b], some) + text)
        left, right = min(left, middle - _text_width(label) / 2), max(right, middle + _text_width(label) / 2)
    drawn += [_render_box(plan.boxes[step.name], step, labels[step.name]) for step in graph.steps]
    width, height = right - left + 2 * MARGIN_PX, plan.height + 2 * MARGIN_PX
    return "\n".join(
        [
            f'''<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" \
viewBox="{left - MARGIN_PX:.1f} {-MARGIN_PX:.1f} {width:.1f} {height:.1f}">''',
            SVG_HEAD,
            *drawn,
            "</svg>\n",
        ]
    )


def _box_label(step: Step) -> list[str]:
    """Return the lines of text in a step's box: its name, its class, its models."""
    models = [llm.model_name for name in type(step).model_fields if isinstance(llm := getattr(step, name), LLM)]
    return [truncate(line, MAX_LABEL_CHARS) for line in (step.name, type(step).__name__, *models)]


def _edge_label(graph: Graph, a: str, b: str) -> tuple[str, bool]:
    """Return the text on an edge (columns its target reads, or which rows take it), and whether it is conditional."""
    step = graph.by_name[b]
    columns = [step.input_mappings.get(name, name) for name in step.inputs]
    if not (route := graph.routes.get((a, b))):
        return truncate(", ".join(columns), MAX_LABEL_CHARS), False
    drawn = (
        f"{route.selector.n} of {len(route.targets)}, at random"
        if isinstance(route.selector, Sample)
        else "rows sent here"
    )
    return drawn, True


def _escape_mermaid(text: str) -> str:
    """Escape text for Mermaid."""
    return re.sub(r"""[^\w\s.,:/+…-]""", lambda found: f"#{ord(found[0])};", text)


def _text_width(text: str) -> float:
    return sum(CHAR_WIDTH_PX * (1 + (unicodedata.east_asian_width(letter) in "WF")) for letter in text)


def _render_box(place: Box, step: Step, label: Sequence[str]) -> str:
    kind = "source" if isinstance(step, GeneratorStep) else "model" if len(label) > 2 else "step"
    left = place.x - place.width / 2
    texts = [
        f'<text class="{"about" if at else "name"}" x="{place.x:.1f}" '
        f'y="{place.y + PADDING_PX + LINE_HEIGHT_PX * (at + 0.75):.1f}">{escape(line)}</text>'
        for at, line in enumerate(label)
    ]
    box = f'<rect class="{kind}" x="{left:.1f}" y="{place.y:.1f}" width="{place.width:.1f}" height="{place.height:.1f}"'
    return f'<g>{box} rx="6"/>{"".join(texts)}</g>'


def _render_line(places: Sequence[Box], some: bool) -> str:
    """Render a line from the bottom of one box to the top of another, vertical beside the rows it passes."""
    path = f"M{places[0].x:.1f} {places[0].y + places[0].height:.1f}"
    for above, below in zip(places, places[1:], strict=False):
        foot = above.y + above.height
        middle = (foot + below.y) / 2
        path += f"V{foot:.1f}C{above.x:.1f} {middle:.1f} {below.x:.1f} {middle:.1f} {below.x:.1f} {below.y:.1f}"
    style = ' class="some"' if some else ""
    return f'<path{style} marker-end="url(#end)" d="{path}"/>'


def _render_line_label(places: Sequence[Box], label: str, at: float) -> tuple[str, float]:
    """Return a label at a fraction of a line, from its start (0) to its end (1), and the x of the label's center."""
    above, below = places[:2] if at < 0.5 else places[-2:]
    foot = above.y + above.height
    x = above.x + (below.x - above.x) * (3 - 2 * at) * at**2  # the curve of `_line`
    y = foot + (below.y - foot) * (1.5 * (1 - at) * at + at**3)
    text = f'<text class="edge" x="{x:.1f}" y="{y + 4:.1f}">{escape(label)}</text>' if label else ""
    return text, x
