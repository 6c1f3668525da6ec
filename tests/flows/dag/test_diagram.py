"""Pipelines as pictures: Mermaid, and images that hold together whatever the shape."""

import random
import re
from xml.etree import ElementTree

import pytest

from flows import ConfigurationError, Pipeline
from flows.dag.diagram_layout import BOX_GAP_PX, ROW_GAP_PX, compute_layout
from llms import AnthropicLLM, LlamaServerLLM
from tasks import Filter, GroupColumns, LoadDataFromDicts, Step, TextGeneration, route, sample_n_steps

SVG = "{http://www.w3.org/2000/svg}"


def drawn() -> Pipeline:
    with Pipeline(name="drawn") as pipeline:
        data = LoadDataFromDicts(name="data", data=[{"question": "?"}])
        mapped = {"instruction": "question"}
        a = TextGeneration(name="end", llm=LlamaServerLLM(), input_mappings=mapped)
        b = TextGeneration(name="b-2", llm=AnthropicLLM(model='claude <"5">'), input_mappings=mapped)
        data >> sample_n_steps(1, seed=3) >> [a, b] >> GroupColumns(columns=["generation"])
        data >> Filter(column="question")
    return pipeline


def boxes(image: str) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right and bottom of each box, by name."""
    found = {}
    for group in ElementTree.fromstring(image).iter(f"{SVG}g"):
        box = group.find(f"{SVG}rect")
        x, y, width, height = (float(box.get(each)) for each in ("x", "y", "width", "height"))
        found[group.find(f"{SVG}text").text] = (x, y, x + width, y + height)
    return found


class TestMermaid:
    def test_shows_steps_classes_models_columns_and_routes(self):
        assert drawn().draw() == (
            "flowchart TD\n"
            '    s0[("<b>data</b><br/>LoadDataFromDicts")]\n'
            '    s1["<b>end</b><br/>TextGeneration<br/>demo-2m"]\n'
            '    s2["<b>b-2</b><br/>TextGeneration<br/>claude #60;#34;5#34;#62;"]\n'
            '    s3["<b>group_columns</b><br/>GroupColumns"]\n'
            '    s4["<b>filter</b><br/>Filter"]\n'
            '    s0 -.->|"1 of 2, at random"| s1\n'
            '    s0 -.->|"1 of 2, at random"| s2\n'
            '    s1 -->|"generation"| s3\n'
            '    s2 -->|"generation"| s3\n'
            '    s0 -->|"question"| s4\n'
        )

    def test_what_cannot_be_saved_can_be_drawn(self):
        with Pipeline() as pipeline:
            data = LoadDataFromDicts(data=[{"n": 1}])
            data >> route(lambda row: "a") >> [Filter(name="a", where=len), Filter(name="b", where=len)]
        assert 's0 -.->|"rows sent here"| s1' in pipeline.draw()

    def test_nothing_is_a_diagram_too(self, tmp_path):
        assert Pipeline().draw(tmp_path / "p.svg") == "flowchart TD\n"
        ElementTree.parse(tmp_path / "p.svg")

    def test_is_written_as_it_is(self, tmp_path):
        assert drawn().draw(tmp_path / "p.mmd") == (tmp_path / "p.mmd").read_text()


class TestImage:
    def test_shows_the_same(self, tmp_path):
        drawn().draw(f"{tmp_path}/p.svg")
        image = (tmp_path / "p.svg").read_text()
        root = ElementTree.fromstring(image)
        texts = [text.text for text in root.iter(f"{SVG}text")]
        for text in ("data", "LoadDataFromDicts", "b-2", 'claude <"5">', "question", "1 of 2, at random"):
            assert text in texts
        assert len(root.findall(f"{SVG}path")) == 5 and image.count('class="some"') == 2
        assert "http" not in image.replace("http://www.w3.org/2000/svg", "")  # nothing is fetched to show it

    def test_boxes_stand_below_what_they_follow_and_inside_the_picture(self, tmp_path):
        drawn().draw(tmp_path / "p.svg")
        image = (tmp_path / "p.svg").read_text()
        found = boxes(image)
        assert found["data"][3] < found["end"][1] < found["end"][3] < found["group_columns"][1]
        left, top, width, height = map(float, ElementTree.fromstring(image).get("viewBox").split())
        for box in found.values():
            assert left < box[0] and top < box[1] and box[2] < left + width and box[3] < top + height

    def test_the_same_pipeline_is_the_same_image(self, tmp_path):
        for name in ("a", "b"):
            drawn().draw(tmp_path / f"{name}.svg")
        assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()

    def test_long_names_are_cut(self, tmp_path):
        class Named(Step):
            """Reads a column with a long name."""

            @property
            def inputs(self):
                return ["c" * 400]

            def process(self, inputs):
                yield inputs

        with Pipeline() as pipeline:
            LoadDataFromDicts(data=[{"n": 1}]) >> Named(name="n" * 400)
        assert "n" * 50 not in pipeline.draw() and "c" * 50 not in pipeline.draw()

    def test_other_kinds_are_refused_with_a_cure(self, tmp_path):
        with pytest.raises(ConfigurationError, match="`.*p.png`: pictures are drawn as `.svg`.*`.png`.*`.mmd`"):
            drawn().draw(tmp_path / "p.png")
        assert not list(tmp_path.iterdir())

    def test_a_circle_has_no_image(self, tmp_path):
        with Pipeline() as pipeline:
            a, b = Filter(name="a", column="x"), Filter(name="b", column="x")
            a >> b >> a
        assert "s1 -->" in pipeline.draw()
        with pytest.raises(ConfigurationError, match="goes in a circle"):
            pipeline.draw(tmp_path / "p.svg")


def crossings(plan) -> int:
    """How often the straight pieces of lines cross."""
    pieces = [(a.y, a.x, b.x) for line in plan.lines.values() for a, b in zip(line, line[1:], strict=False)]
    return sum(y == v and (a - c) * (b - d) < -1e-6 for n, (y, a, b) in enumerate(pieces) for v, c, d in pieces[:n])


class TestLayout:
    @pytest.mark.parametrize("seed", range(60))
    def test_boxes_never_touch_whatever_the_shape(self, seed):
        draw = random.Random(seed)
        sizes = {f"s{n}": (draw.uniform(40, 300), draw.choice([60.0, 78.0])) for n in range(draw.randint(1, 14))}
        names = list(sizes)
        edges = [(a, b) for at, b in enumerate(names) for a in names[:at] if draw.random() < 0.3]
        plan = compute_layout(sizes, edges)
        placed = list(plan.boxes.values())
        for n, one in enumerate(placed):
            assert one.x - one.width / 2 >= -1e-6 and one.x + one.width / 2 <= plan.width + 1e-6
            for other in placed[:n]:
                beside = abs(one.x - other.x) >= (one.width + other.width) / 2 + BOX_GAP_PX - 1e-6
                below = (
                    one.y + one.height <= other.y - ROW_GAP_PX / 2 or other.y + other.height <= one.y - ROW_GAP_PX / 2
                )
                assert beside or below
        for a, b in edges:
            assert plan.lines[a, b][0] is plan.boxes[a] and plan.lines[a, b][-1] is plan.boxes[b]
            heights = [place.y for place in plan.lines[a, b]]
            assert heights == sorted(heights)

    def test_what_need_not_cross_does_not(self):
        chain = dict.fromkeys("abcdefg", (100.0, 60.0))
        tree = [("a", "b"), ("a", "c"), ("c", "d"), ("b", "e"), ("c", "f"), ("b", "g")]
        assert crossings(compute_layout(chain, tree)) == 0

    def test_a_chain_is_straight(self):
        plan = compute_layout({"a": (50, 60), "b": (200, 60), "c": (90, 60)}, [("a", "b"), ("b", "c")])
        assert len({round(box.x, 3) for box in plan.boxes.values()}) == 1

    def test_a_line_passes_beside_the_boxes_on_its_way(self):
        plan = compute_layout(dict.fromkeys("abc", (100.0, 60.0)), [("a", "b"), ("b", "c"), ("a", "c")])
        [bend] = plan.lines["a", "c"][1:-1]
        assert abs(bend.x - plan.boxes["b"].x) > 50


def test_mermaid_takes_only_what_it_can_read():
    text = drawn().draw()
    for label in re.findall(r'"(.*?)"', text):
        assert not re.search(r'["<>]', re.sub(r"</?b>|<br/>", "", label))
