"""Pipelines of any shape, with rows that fail and runs that are stopped, held against a plain account of what is due.

`HYPOTHESIS_PROFILE=long python -m pytest tests/test_invariants.py` tries far more of them than CI does.
"""

import json
import os
import signal
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from flows import Distiset, Pipeline
from llms import BudgetExceeded, Fatal, OpenAILLM, store
from tasks import (
    CombineOutputs,
    ExpandColumns,
    Filter,
    GlobalStep,
    GroupColumns,
    LoadDataFromDicts,
    Step,
    TextGeneration,
    route,
)
from tasks.typing import Row

LONG = os.getenv("HYPOTHESIS_PROFILE") == "long"
PATIENT = settings(
    max_examples=400 if LONG else 20,
    deadline=None,
    derandomize=not LONG,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.timeout(0 if LONG else 900)]

BATCHES = 5
"""Batches a source brings at most: every task run costs Prefect's server its time."""

places = count()
"""A number for every pipeline made, so that no answer or result of one is another's."""


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """The columns that are equal whenever and wherever a row is made."""
    return {name: value for name, value in row.items() if name != "place" and not name.endswith("_metadata")}


def lot(seed: int, content: Any) -> float:
    """A number from 0 to 1 that follows from what is in a row."""
    return zlib.crc32(f"{seed} {json.dumps(content, sort_keys=True)}".encode()) / 2**32


@dataclass(frozen=True)
class Node:
    """A step of a random pipeline, as plain data; its seed and the content of a row decide what it does to it."""

    name: str
    kind: str
    parents: tuple[str, ...] = ()
    seed: int = 0
    fails: float = 0.0
    size: int | None = None
    rows: int = 0
    column: str = "said"
    generations: int = 1
    routed: tuple[str, ...] = ()
    """The names its parent's router chooses from; the router's seed is the number after them."""
    router: int = 0

    def breaks(self, row: dict[str, Any]) -> bool:
        """Whether a row fails here."""
        return lot(self.seed, plain(row)) < self.fails

    def refuses(self, prompt: str) -> bool:
        """Whether the model cannot answer a prompt."""
        return lot(self.seed, prompt) < self.fails

    def chosen(self, row: dict[str, Any]) -> list[str] | str | None:
        """Where the router before it sends a row: to some of the steps, to none, or to one there is not."""
        drawn = lot(self.router, plain(row))
        if drawn < 0.1:
            return "nowhere"
        if drawn < 0.2:
            return None
        return [name for at, name in enumerate(self.routed) if lot(self.router + at + 1, plain(row)) < 0.6]

    def mark(self, row: dict[str, Any]) -> str:
        return f"{self.name}-{lot(0, plain(row)):.9f}"


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Node, ...]:
    """Chains, branches, routes, joins and unions, in an order in which each stands after those before it."""
    nodes: list[Node] = []
    sizes = st.one_of(st.none(), st.integers(1, 9))
    share = st.sampled_from([0.0, 0.0, 0.0, 0.2, 1.0])

    def add(kind: str, *parents: str, **fields: Any) -> Node:
        seed = draw(st.integers(0, 999))
        nodes.append(Node(f"{kind}{len(nodes)}", kind, parents, seed=seed, **fields))
        return nodes[-1]

    def mark(*parents: str, **fields: Any) -> Node:
        return add("mark", *parents, **{"fails": draw(share), "size": draw(sizes)} | fields)

    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        rows = draw(st.integers(1, 40))
        size = draw(st.one_of(st.none(), st.integers(-(-rows // BATCHES), rows)))
        add("source", rows=rows, size=size)
    for _ in range(draw(st.integers(1, 5))):
        kinds = ["mark", "ask", "filter", "expand", "whole", "branch", "route", "group", "combine", "union"]
        kind = draw(st.sampled_from(kinds))
        # `parts` alone holds a list where others hold a text, and `group` no text: what follows them is made with them
        open_ends = [each for each in nodes if each.kind not in ("parts", "group")]
        before = draw(st.sampled_from(open_ends)).name
        match kind:
            case "mark":
                mark(before, column=draw(st.sampled_from(["said", f"own{len(nodes)}"])))
            case "ask":
                add("ask", before, fails=draw(share), size=draw(sizes), generations=draw(st.sampled_from([1, 1, 2])))
            case "filter" | "whole":
                add(kind, before, fails=draw(share), size=draw(sizes) if kind == "filter" else None)
            case "expand":
                parts = add("parts", before, column=f"parts{len(nodes)}")
                add("expand", parts.name, column=parts.column)
            case "branch":
                mark(before)
                mark(before, column=f"own{len(nodes)}")
            case "route":
                names = tuple(f"mark{len(nodes) + at}" for at in range(2))
                router = draw(st.integers(0, 999))
                for _ in names:
                    mark(before, routed=names, router=router)
            case _:
                others = [each.name for each in open_ends if kind != "union" or alike(nodes, each.name, before)]
                parents = draw(st.lists(st.sampled_from(others), min_size=1, max_size=3, unique=True))
                parents = list(dict.fromkeys([before, *parents]))
                if kind == "union":
                    mark(*parents)
                else:
                    mark(add(kind, *parents).name)
    return tuple(nodes)


def alike(nodes: Iterable[Node], one: str, other: str) -> bool:
    """Whether rows of two steps come in the same stream, or straight from sources: then they have an order together."""
    streams = Account.of_shape(nodes).streams
    sources = {node.name for node in nodes if node.kind == "source"}
    return streams[one] == streams[other] or streams[one] | streams[other] <= sources


@dataclass(frozen=True)
class Made:
    """A row, which one it is, and in which stream it comes."""

    id: tuple[int, ...]
    origin: str
    stream: str
    columns: dict[str, Any]


@dataclass
class Account:
    """What is due of a pipeline: worked out step by step over all the rows, without batches, threads or Prefect."""

    streams: dict[str, frozenset[str]] = field(default_factory=dict)
    through: dict[str, list[str]] = field(default_factory=dict)
    rows: dict[str, list[Made]] = field(default_factory=dict)
    rows_in: Counter[str] = field(default_factory=Counter)
    failures: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    asked: dict[tuple[str, str], int] = field(default_factory=dict)

    @classmethod
    def of_shape(cls, nodes: Iterable[Node]) -> "Account":
        """Only where rows come together, and in which order."""
        account = cls()
        for node in nodes:
            before = [account.streams[name] for name in node.parents]
            apart = node.kind in ("group", "combine") and len(set(before)) > 1
            late = not before or node.kind == "whole" or apart
            account.streams[node.name] = frozenset([node.name]) if late else frozenset().union(*before)
            paths = [account.through[name] for name in node.parents]
            common = [name for name in paths[0] if all(name in path for path in paths)] if paths else []
            account.through[node.name] = [*common, node.name]
        return account

    @classmethod
    def of(cls, nodes: Iterable[Node]) -> "Account":
        account = cls.of_shape(nodes)
        for number, node in enumerate(nodes):
            if node.kind == "source":
                account.rows[node.name] = [
                    Made((number, at), f"data[{at}]", node.name, columns)
                    for at, columns in enumerate(source_rows(node))
                ]
                continue
            account.rows[node.name] = []
            late = account.streams[node.name] == {node.name}
            for stream in (
                [node.name] if late else [name for name in account.rows if name in account.streams[node.name]]
            ):
                account.work(node, stream, None if late else stream)
        return account

    def work(self, node: Node, stream: str, only: str | None) -> None:
        """What a step makes of a stream; of everything before it, if it waits for all."""
        taken = [
            [row for row in self.rows[name] if only in (None, row.stream) and self.comes(node, row)]
            for name in node.parents
            if only is None or only in self.streams[name]
        ]
        if node.kind in ("group", "combine"):
            made = self.joined(node, taken, only)
        else:
            rows = taken[0] if len(taken) == 1 else sorted((row for each in taken for row in each), key=lambda r: r.id)
            self.rows_in[node.name] += len(rows)
            made = list(self.whole(node, rows) if node.kind == "whole" else self.each(node, rows))
        same, seen = Counter(row.id for row in made), Counter[tuple[int, ...]]()
        for row in made:
            id = row.id
            if same[id] > 1:
                id, seen[row.id] = (*id, seen[row.id]), seen[row.id] + 1
            self.rows[node.name].append(replace(row, id=id, stream=stream))

    def comes(self, node: Node, row: Made) -> bool:
        """Whether a router sends a row here; one it cannot place fails in the first step it could have gone to."""
        if not node.routed:
            return True
        chosen = node.chosen(row.columns)
        if chosen == "nowhere" and node.name == node.routed[0]:
            self.rows_in[node.name] += 1
            self.fail(node, row)
        return node.name in (chosen or ())

    def each(self, node: Node, rows: list[Made]) -> Iterator[Made]:
        for row in rows:
            columns, prompt = row.columns, row.columns.get("said", "")
            if node.kind == "ask":
                self.asked[node.name, prompt] = node.generations
            if node.refuses(prompt) if node.kind == "ask" else node.breaks(columns):
                self.fail(node, row)
                continue
            match node.kind:
                case "mark":
                    yield replace(row, columns=columns | {node.column: node.mark(columns)})
                case "filter":
                    if lot(node.seed + 1, plain(columns)) < 0.7:
                        yield row
                case "parts":
                    yield replace(row, columns=columns | {node.column: parts(node, columns)})
                case "expand":
                    rest = {name: value for name, value in columns.items() if name != node.column}
                    uncounted = {name: (value[0], False) for name, value in rest.items() if name.endswith("_metadata")}
                    for at, part in enumerate(columns[node.column]):
                        yield replace(row, columns=rest | (uncounted if at else {}) | {node.column: part})
                case "ask":
                    for at, text in enumerate(answers(prompt, node.generations)):
                        new = {"generation": text, "model_name": node.name, f"{node.name}_metadata": (text, at == 0)}
                        yield replace(row, columns=columns | new)

    def whole(self, node: Node, rows: list[Made]) -> Iterator[Made]:
        if any(node.breaks(row.columns) for row in rows):
            for row in rows:
                self.fail(node, row)
            return
        for row in rows:
            if lot(node.seed + 1, plain(row.columns)) < 0.7:
                yield replace(row, columns=row.columns | {node.name: len(rows)})

    def joined(self, node: Node, taken: list[list[Made]], only: str | None) -> list[Made]:
        common = self.through[node.name][:-1]
        known = {row.id for row in self.rows[common[-1]] if only in (None, row.stream)} if common else None
        groups: dict[tuple[int, ...], list[Made]] = {}
        for row in (row for each in taken for row in each):
            if known is None:
                id = (0, *row.id[1:])
            else:
                id = next((row.id[:end] for end in range(len(row.id), 0, -1) if row.id[:end] in known), row.id)
            groups.setdefault(id, []).append(row)
        self.rows_in[node.name] += len(groups)
        made: list[Made] = []
        for id in sorted(groups):
            first, columns = groups[id][0], [row.columns for row in groups[id]]
            merged = {name: value for each in columns for name, value in each.items()}
            if node.kind == "group":
                rest = {name: value for name, value in first.columns.items() if name != "said"}
                made.append(replace(first, id=id, columns=rest | {node.name: [each["said"] for each in columns]}))
            elif any(each[name] != merged[name] for each in columns for name in each if name != "model_name"):
                self.fail(node, replace(first, columns=merged))
            else:
                made.append(replace(first, id=id, columns=merged))
        return made

    def fail(self, node: Node, row: Made) -> None:
        self.failures[node.name, row.origin, json.dumps(plain(row.columns), sort_keys=True)] += 1

    def leaf(self, name: str) -> list[dict[str, Any]]:
        """The rows of a leaf as they are read back: each with the columns of all."""
        rows = [plain(row.columns) for row in self.rows[name]]
        columns = dict.fromkeys(column for row in rows for column in row)
        return [columns | row for row in rows]


def source_rows(node: Node) -> list[dict[str, Any]]:
    return [{"n": at, "said": f"{node.name} {at}"} for at in range(node.rows)]


def parts(node: Node, row: dict[str, Any]) -> list[int]:
    return list(range(int(lot(node.seed + 1, plain(row)) * 4)))


def answers(prompt: str, generations: int) -> list[str]:
    return [f"{at}: {prompt}" for at in range(generations)]


class Trap:
    """Goes off once, when a step meets a row, or a model a prompt. No part of what a step is: that stays the same."""

    def __getstate__(self) -> None:
        pass

    def __init__(self) -> None:
        self.where: tuple[str, str] | None = None
        self.how = ""

    def set(self, where: tuple[str, str], how: str) -> None:
        """At which step, and at what text there; what then happens."""
        self.where, self.how = where, how

    def meets(self, *where: str | None) -> bool:
        """Whether it goes off, and it is for the caller to say so."""
        if where != self.where:
            return False
        self.where = None
        if self.how == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)
        if self.how == "Fatal":
            raise Fatal("there is no more of it")
        return self.how == "no key"


trap = Trap()


class Marks(Step):
    """Writes down what a row was."""

    node: Any

    keeps_rows = True

    @property
    def outputs(self):
        return [self.node.column]

    def process(self, inputs):
        for row in inputs:
            trap.meets(self.node.name, row.get("said"))
            if self.node.breaks(row):
                raise ValueError("this one is broken")
        make = self.node.mark if self.node.kind == "mark" else lambda row: parts(self.node, row)
        yield [Row(row | {self.node.column: make(row)}, row.origin) for row in inputs]


class Whole(GlobalStep):
    """Leaves some out, and says how many there were."""

    node: Any

    def process(self, inputs):
        for row in inputs:
            trap.meets(self.node.name, row.get("said"))
            if self.node.breaks(row):
                raise ValueError("this one is broken")
        kept = [row for row in inputs if lot(self.node.seed + 1, plain(row)) < 0.7]
        yield [Row(row | {self.node.name: len(inputs)}, row.origin) for row in kept]


def made(node: Node, place: str) -> Step:
    """A node as the step it stands for."""
    named: dict[str, Any] = {"name": node.name}
    if node.kind != "source":
        named["input_batch_size"] = node.size

    def keep(row: Row) -> bool:
        trap.meets(node.name, row.get("said"))
        if node.breaks(row):
            raise ValueError("this one is broken")
        return lot(node.seed + 1, plain(row)) < 0.7

    match node.kind:
        case "source":
            rows = [row | {"place": place} for row in source_rows(node)]
            return LoadDataFromDicts(data=rows, batch_size=node.size, **named)
        case "mark" | "parts":
            return Marks(node=node, **named)
        case "filter":
            return Filter(where=keep, **named)
        case "expand":
            return ExpandColumns(columns=[node.column], **named)
        case "whole":
            return Whole(node=node, **named)
        case "group":
            return GroupColumns(columns=["said"], output_columns=[node.name], **named)
        case "combine":
            return CombineOutputs(**named)
    llm = OpenAILLM(model=node.name, base_url=place, api_key="k")
    return TextGeneration(
        llm=llm, template="{{ said }}", num_generations=node.generations, add_raw_input=False, **named
    )


class Bench:
    """A random pipeline that can be run again and again, and what its models were asked."""

    def __init__(self, nodes: tuple[Node, ...], wire: Any, folder: Any) -> None:
        self.nodes = nodes
        self.due = Account.of(nodes)
        self.place = f"{wire.url}/{next(places)}"
        self.output = folder / self.place.rsplit("/", 1)[1]
        self.answered: Counter[tuple[str, str]] = Counter()
        self._wire = wire
        named = {node.name: node for node in nodes}

        def answer(request: Any) -> Any:
            name, prompt = request.body["model"], request.body["messages"][-1]["content"]
            if f"{wire.url}{request.path.removeprefix('/v1')}" != f"{self.place}/chat/completions":
                return wire.Reply(status=400)  # of a pipeline that was stopped before
            if trap.meets(name, prompt):
                return wire.Reply({"error": {"message": "no such key"}}, status=401)
            if named[name].refuses(prompt):
                return wire.Reply({"error": {"message": "not this one"}}, status=400)
            self.answered[name, prompt] += 1
            return wire.Reply(wire.completion(*answers(prompt, request.body.get("n") or 1)))

        wire.answer = answer

    def run(self, **limits: Any) -> Any:
        """Run the pipeline, made anew."""
        with Pipeline(name="random") as pipeline:
            steps = {node.name: made(node, self.place) for node in self.nodes}
            for node in self.nodes:
                if not node.routed:
                    for name in node.parents:
                        steps[name] >> steps[node.name]
                elif node.name == node.routed[-1]:
                    steps[node.parents[0]] >> route(node.chosen) >> [steps[name] for name in node.routed]
        return pipeline.run(output=self.output, max_error_rate=1, **limits)

    @property
    def leaves(self) -> dict[str, str]:
        """The steps nothing follows, by the name of their dataset."""
        followed = {name for node in self.nodes for name in node.parents}
        last = [node.name for node in self.nodes if node.name not in followed]
        return {"default": last[0]} if len(last) == 1 else {name: name for name in last}

    def check(self, dataset: Any) -> None:
        """Hold a finished run against what is due."""
        assert set(dataset) == set(self.leaves)
        for leaf, name in self.leaves.items():
            assert [plain(row) for row in dataset[leaf]["train"]] == self.due.leaf(name)
        assert failures(dataset) == self.due.failures
        lost = Counter(dict.fromkeys((node.name for node in self.nodes), 0))
        for (name, _, _), times in self.due.failures.items():
            lost[name] += times
        for node in self.nodes:
            did = dataset.summary.steps[node.name]
            assert (did.rows, did.failures) == (len(self.due.rows[node.name]), lost[node.name])
            if node.kind != "source":
                assert did.rows_in == self.due.rows_in[node.name]
            if node.kind in ("mark", "parts", "group", "combine"):
                assert did.rows_in == did.rows + did.failures

    def check_stopped(self) -> None:
        """What a stopped run has left is the beginning of what is due, and no failure that is not."""
        partial = self.output.with_name(f"{self.output.name}.partial")
        run = json.loads((partial / "run.json").read_text())
        assert run["state"] in ("drained", "failed")
        dataset = Distiset(partial)
        for leaf, name in self.leaves.items():
            rows = [plain(row) for row in dataset[leaf]["train"]]
            known = {column for row in rows for column in row}
            due = [{column: row.get(column) for column in known} for row in self.due.leaf(name)[: len(rows)]]
            assert rows == due
        assert failures(dataset) <= self.due.failures

    def stored(self) -> int:
        """Answers that nobody need be asked for again."""
        if not store.path().exists():
            return 0
        with sqlite3.connect(store.path()) as database:
            return database.execute("SELECT count(*) FROM answers").fetchone()[0]

    def wanted(self) -> dict[tuple[str, str], int]:
        """How many answers each prompt is asked for that a model can answer."""
        named = {node.name: node for node in self.nodes}
        return {each: times for each, times in self.due.asked.items() if not named[each[0]].refuses(each[1])}


def failures(dataset: Any) -> Counter[tuple[str, str, str]]:
    """Where rows failed, where they came from, and what they were."""
    return Counter(
        (each["step"], each["origin"], json.dumps(plain(json.loads(each["row"])), sort_keys=True))
        for each in dataset.errors
    )


@contextmanager
def an_empty_home(folder: Any) -> Iterator[None]:
    """A store of its own for every example."""
    with pytest.MonkeyPatch.context() as patch:
        store.close()
        patch.setenv("DISTILFLOW_HOME", str(folder / f"home-{next(places)}"))
        yield
    store.close()


@given(nodes=shapes())
@PATIENT
@pytest.mark.slow
def test_random_pipelines_match_a_reference_and_resume_without_requests(nodes, wire, tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    with an_empty_home(folder):
        bench = Bench(nodes, wire, folder)
        bench.check(bench.run())
        assert bench.answered == dict.fromkeys(bench.wanted(), 1)
        bench.check(bench.run())
        assert bench.answered == dict.fromkeys(bench.wanted(), 1), "nothing answered is asked again"


@given(nodes=shapes(), how=st.sampled_from(["Ctrl-C", "Fatal", "no key", "drained"]), data=st.data())
@PATIENT
@pytest.mark.slow
def test_stopped_runs_resume(nodes, how, data, wire, tmp_path_factory):
    folder = tmp_path_factory.mktemp("random")
    with an_empty_home(folder):
        bench = Bench(nodes, wire, folder)
        limits: dict[str, Any] = {}
        if how == "drained":
            limits["max_tokens_total"] = data.draw(st.integers(20, 40 + 13 * len(bench.wanted())))
        else:
            asking = how == "no key"
            kinds = ["ask"] if asking else ["mark", "filter", "whole", *(["ask"] if how == "Ctrl-C" else [])]
            met = [
                (node.name, row.columns["said"])
                for node in nodes
                if node.kind in kinds and len(node.parents) == 1 and not node.routed
                for row in bench.due.rows[node.parents[0]]
                if "said" in row.columns
            ]
            if met:
                trap.set(data.draw(st.sampled_from(met)), how)
        try:
            bench.check(bench.run(**limits))
            event(f"{how}: finished")
        except (Fatal, KeyboardInterrupt) as error:
            event(f"{how}: {type(error).__name__}")
            assert isinstance(error, {"Ctrl-C": KeyboardInterrupt, "drained": BudgetExceeded}.get(how, Fatal))
            bench.check_stopped()
        finally:
            trap.where = None
        store.close()
        kept, before, due = bench.stored(), Counter(bench.answered), bench.wanted()
        bench.check(bench.run())
        asked = bench.answered - before
        assert sum(due[each] * times for each, times in asked.items()) == sum(due.values()) - kept
        assert set(bench.answered) == set(due)


def test_a_global_step_gets_all_rows_or_none():
    with Pipeline(name="whole") as pipeline:
        LoadDataFromDicts(data=source_rows(Node("data", "source", rows=9)), batch_size=4) >> made(
            Node("whole", "whole", fails=0.5), "here"
        )
    dataset = pipeline.run(max_error_rate=1)
    assert not dataset["default"]["train"].num_rows and len(dataset.errors) == 9


def test_a_row_whose_route_fails_counts_as_taken_in():
    with Pipeline(name="nowhere") as pipeline:
        data = LoadDataFromDicts(data=source_rows(Node("data", "source", rows=30)))
        data >> route(lambda row: "nowhere") >> [made(Node(name, "mark"), "here") for name in ("left", "right")]
    dataset = pipeline.run(max_error_rate=1)
    left = dataset.summary.steps["left"]
    assert (left.rows_in, left.rows, left.failures) == (30, 0, 30) and len(dataset.errors) == 30
