import re
from html.parser import HTMLParser
from operator import itemgetter

import numpy as np
import pytest
from rows import example_of, spec_of

from deploykit import data, report, tasks
from deploykit.artifact import Artifact, Metric
from deploykit.artifact.execution import Execution
from deploykit.errors import StorageError
from deploykit.evaluation import gates, scoring
from deploykit.evaluation.comparison import Comparison
from deploykit.evaluation.timing import Latency
from deploykit.recipe import GateSection
from deploykit.selection.choice import Candidate

LABELS = ("negative", "positive")
BATCH = "batch 1, 27 tokens"
GATES = GateSection(max_drop=0.02, max_flips=0.1)
EVIL = "<script>alert('x')</script> | a & b"
SIZES = [{"heads": 11, "neurons": 1472}, {"heads": 2, "neurons": 64}]
PRUNED = [
    {"method": "layers", "gone": [4, 1], "layers": SIZES},
    {
        "method": "width",
        "layers": SIZES,
        "speedup": {"wanted": 1.5, "predicted": 1.62, "measured": {"value": 1.53, "low": 1.52, "high": 1.56}},
    },
    {
        "method": "vocabulary",
        "tokens": 9000,
        "tokens_before": 30522,
        "bytes_saved": 33_058_368,
        "validation_unchanged": 0.987,
    },
    {"method": "width", "layers": []},
]
VOID = {"meta", "path", "use", "rect", "br", "img", "link", "input", "hr", "stop", "circle", "line"}


def about(value, half=0.01):
    return Metric(value=value, low=value - half, high=value + half)


def comparison(drop, flips):
    return Comparison(
        metric="accuracy",
        drop=about(drop),
        flips=about(flips),
        calibration=about(0.0456),
        by_label={"negative": about(0.0011), "positive | bad": about(0.0777)},
        by_length={"up to 9 tokens": about(0.0022), "10 to 19 tokens": about(0.0033)},
        rows=60,
        flipped=(),
    )


def candidate(name, milliseconds, kept, reason):
    batches = ("batch 1, 7 tokens", "batch 8, 15 tokens")
    return Candidate(
        name=name,
        graph="exported",
        quantizer="none" if name == "float32" else "dynamic",
        precision=name,
        execution=Execution(threads=2),
        bytes=123_456,
        metric=Metric(value=0.9, low=0.85, high=0.95),
        latency={
            batch: Latency(p50=milliseconds, low=milliseconds, high=milliseconds, p95=milliseconds) for batch in batches
        },
        throughput=about(500 / milliseconds, 1.0),
        comparison=comparison(0.0, 0.05),
        verdicts=gates.verdicts(GATES, comparison(0.0, 0.05)),
        kept=kept,
        reason=reason,
    ).model_dump()


@pytest.fixture(scope="module")
def details(dataset_of, tokenizer):
    """The details that each stage stores in its manifest."""
    dataset = dataset_of("text-classification")
    rows = [example_of("a film", label=LABELS[index % 2]) for index in range(60)]
    logits = [np.eye(2, dtype=np.float32)[[(index + (index >= 50)) % 2]] for index in range(60)]  # the last ten: wrong
    table = scoring.report_tables(tasks.load("text-classification"), spec_of(LABELS), rows, logits, 0)
    judged = {"split": "validation", "loss": 0.4, "accuracy": 0.9, "macro_f1": 0.9}
    curve = [
        *({"split": "train", "step": step, "epoch": step / 4, "loss": 1 / step} for step in range(1, 5)),
        {**judged, "epoch": 1.0},
    ]
    summary = {**dataset.summary, "warnings": [f"{EVIL} is odd"]}
    return {
        "train": {"data": summary, "lengths": data.describe_lengths(dataset, tokenizer), "curve": curve, "test": table},
        "prune": {"steps": PRUNED, "curve": [], "comparison": comparison(0.0123, 0.045).model_dump()},
        "export": {"parity": {"batch 1": 2.5e-6, "batch 8, left padding": 3.5e-6}, "tolerance": 1e-3},
        "quantize": {
            "candidates": [
                candidate("float32", 2.0, kept=False, reason="2.00 times slower than int8"),
                candidate("int8", 1.0, kept=True, reason="the fastest that passes every gate"),
            ],
            "flips": [{"text": EVIL, "true": "positive", "before": "positive", "after": "negative"}],
        },
        "package": {"comparison": comparison(-0.0077, 0.031).model_dump(), "flips": [], "test": table},
    }


@pytest.fixture
def chain(tmp_path, tiny_artifact, manifest_facts, details):
    """`chain(until) -> artifacts` of a run."""

    def build(until):
        stages = list(details)[: list(details).index(until) + 1]
        (template,) = manifest_facts()["history"]
        both = {name: Metric(value=0.9, low=0.8, high=1.0) for name in ("accuracy", "macro_f1")}
        steps = tuple(
            template.model_copy(
                update={
                    "stage": stage,
                    "method": stage,
                    "metrics": {"validation": both, "test": both},
                    "bytes": 4000 + n,
                }
            )
            for n, stage in enumerate(stages)
        )
        return [
            tiny_artifact(
                tmp_path / "run" / stage,
                stage=stage,
                method=stage,
                history=steps[: n + 1],
                details={name: details[name] for name in stages[: n + 1]},
                hardware={"cpu": "a processor", "cores": 2, "cpu_features": ["avx2"]},
                versions={"torch": "2.0", "onnxruntime": "1.25"},
            )
            for n, stage in enumerate(stages)
        ]

    return build


class Page(HTMLParser):
    """Collects tags, attributes and texts, and checks that every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


def written(folder, artifacts):
    path = report.write(folder, artifacts, GATES)
    assert path == folder / "report.html"
    return path.read_text(encoding="utf-8"), (folder / "report.md").read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_a_clear_error(chain, tmp_path, monkeypatch):
    artifacts = chain("train")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(tmp_path / "report.html"))

    monkeypatch.setattr(type(tmp_path), "write_text", refuse)
    with pytest.raises(StorageError, match=r"no permission .*report\.html"):
        report.write(tmp_path, artifacts, GATES)


def test_markup_in_the_data_is_shown_and_never_executed(chain, tmp_path):
    html, markdown = written(tmp_path, chain("quantize"))
    page = Page(html)
    assert "script" not in page.tags
    assert EVIL in page.texts
    assert "<script>" not in html
    (line,) = (line for line in markdown.splitlines() if line.startswith("| <script>"))
    assert re.split(r"(?<!\\)\|", line)[1:-1] == [
        " <script>alert('x')</script> \\| a & b ", " positive ", " positive ", " negative "
    ]  # fmt: skip


@pytest.mark.parametrize("until", ["train", "prune", "export", "quantize", "package"])
def test_every_part_of_a_run_has_a_report_that_stands_alone(until, chain, tmp_path):
    artifacts = chain(until)
    html, markdown = written(tmp_path, artifacts)
    page = Page(html)
    assert page.open == []
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "data", "action")]
    assert all(link.startswith("#") for link in links)
    assert not re.search(r"url\((?!#)|@import", html)
    assert {"link", "img", "iframe", "object"} & set(page.tags) == set()
    for artifact in artifacts:
        assert artifact.path.name in html
        assert str(tmp_path) not in html  # reports are shared, and local paths are private
        assert artifact.path.name in markdown
    figures = {"train": 2, "prune": 2, "export": 2, "quantize": 3, "package": 3}
    assert page.tags.count("svg") == figures[until]


def test_both_forms_hold_the_facts_of_the_manifests(chain, tmp_path, details):
    facts = (
        *("0.0123", "0.0023", "0.0223", "4.5 (3.5 to 5.5)", "-0.0077", "3.1 (2.1 to 4.1)"),  # and flips, in %
        *("0.0456 (0.0356 to 0.0556)", "inconclusive with 60 rows, about 110 would be enough", "0.1000", "passed"),
        *("0.0777", "up to 9 tokens", "0.0022"),
        *("Removed layers: 1, 4.", "1.53 times as fast as before (95 % interval 1.52 to 1.56); wanted 1.50"),
        *(
            "9,000 of 30,522 tokens, which saves 33,058,368 bytes",
            "1472",
            "2.5e-06",
            "3.5e-06",
            "batch 8, left padding",
        ),
        *(
            "98.7% of the validation texts are tokenized as before",
            "Kept a share of the heads and of the neurons of all",
        ),
        *("2.00 times slower than int8", "kept: the fastest that passes every gate", "123,456", "batch 8, 15 tokens"),
        *("torch 2.0", "onnxruntime 1.25", "a processor", "tiny-bert", "4,004"),
        *(f"{row['precision']:.3f}" for row in details["train"]["test"]["labels"].values()),
        *(f"{label} {count}" for label, count in details["train"]["data"]["labels"]["train"].items()),
        *("280", "test accuracy", "the packaged model", "2025-01-01T00:00:00+00:00"),
    )
    html, markdown = written(tmp_path, chain("package"))
    text = " ".join(" ".join(Page(html).texts).split())
    assert [fact for fact in facts if fact not in text] == []
    assert [fact for fact in facts if fact not in markdown] == []


def test_tables_of_the_markdown_are_whole(chain, tmp_path):
    _, markdown = written(tmp_path, chain("package"))
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)]
    assert len(tables) == 14
    for table in tables:
        assert re.fullmatch(r"\|( --- \|)+", table[1])
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {table[0].count("|")}


def test_the_table_of_labels_is_that_of_the_packaged_model_once_there_is_one(chain, tmp_path):
    for until, model in (("quantize", "the trained model"), ("package", "the packaged model")):
        _, markdown = written(tmp_path, chain(until))
        assert f"## Labels on the test split ({model})" in markdown


def test_a_task_without_labels_has_no_tables_of_them(chain, tmp_path, details):
    compared = comparison(0.01, 0.02).model_copy(update={"calibration": None, "by_label": {}}).model_dump()
    plain = {"package": {"comparison": compared, "flips": [], "test": {}}}
    artifacts = [
        Artifact(found.path, found.manifest.model_copy(update={"details": {**details, **plain}}))
        for found in chain("package")
    ]
    html, markdown = written(tmp_path, artifacts)
    assert Page(html).open == []
    for text in ("Labels on the test split", "Confusion matrix", "by label"):
        assert text not in html
        assert text not in markdown
    assert "| package | the trained model | 0.0100 (0.0000 to 0.0200) | 2.0 (1.0 to 3.0) |  |" in markdown


def test_the_confusion_matrix_has_a_row_for_each_label(chain, tmp_path, details):
    html, _ = written(tmp_path, chain("train"))
    (table,) = re.findall(r"<caption>Confusion matrix.*?</table>", html, flags=re.DOTALL)
    rows = [[int(count) for count in re.findall(r">(\d+)</td>", row)] for row in table.split("<tr>")[2:]]
    assert rows == details["train"]["test"]["confusion"]


@pytest.mark.parametrize("below", [None, 0.7, 1.0])
def test_coverage_and_accuracy_at_the_threshold_are_those_of_both_models(below, chain, tmp_path, details):
    """The trained model is right where it is sure, the packaged model where it is not."""
    examples = [example_of("a film", label=LABELS[index % 2]) for index in range(60)]
    tables = {}
    for stage, rows in (("train", ([0.8, 0.2], [0.4, 0.6])), ("package", ([0.2, 0.8], [0.4, 0.6]))):
        logits = [np.log(np.array([rows[index % 2]], np.float32)) for index in range(60)]
        table = scoring.report_tables(
            tasks.load("text-classification"), spec_of(LABELS, abstain_below=below), examples, logits, 0
        )
        tables[stage] = {**details[stage], "test": table}
    artifacts = [
        Artifact(artifact.path, artifact.manifest.model_copy(update={"details": {**details, **tables}}))
        for artifact in chain("package")
    ]
    html, markdown = written(tmp_path, artifacts)
    text = "".join(Page(html).texts).replace(" ", "")
    assert "| 0.6000 | 100.0 | 0.5000 (0.3774 to 0.6226) |" in markdown
    assert "| 0.8000 | 50.0 | 0.0000 (0.0000 to 0.1135) |" in markdown
    said = {
        None: ("The model never abstains.",),
        0.7: (
            "as trained: 50.0 (37.7 to 62.3) % of the rows, with an accuracy of 1.0000 (0.8865 to 1.0000)",
            "as packaged: 50.0 (37.7 to 62.3) % of the rows, with an accuracy of 0.0000 (0.0000 to 0.1135)",
        ),
        1.0: ("as packaged: 0.0 (0.0 to 6.0) % of the rows, with an accuracy of –",),
    }
    for line in said[below]:
        assert line in markdown
        assert line.replace(" ", "") in text


def test_the_same_manifests_give_the_same_bytes(chain, tmp_path):
    artifacts = chain("package")
    assert written(tmp_path, artifacts) == written(tmp_path, artifacts)


# twenty candidates


def many(count=20):
    """Candidates as a search returns them: most are measured, some break a gate, some were given up early."""
    random, candidates = np.random.default_rng(3), []
    for index in range(count):
        loss, p50, early = 0.03 * random.random() - 0.005, 2 + 10 * random.random() ** 2, index % 7 == 5
        engine, precision = ("onnxruntime", "openvino")[index % 2], ("float32", "bfloat16")[index % 2]
        scales = {BATCH: 1} if early else {BATCH: 1, "batch 1, 9 tokens": 0.6, "batch 8, 41 tokens": 6}
        compared = comparison(round(loss, 4), 0.02).model_copy(update={"drop": about(loss, 0.004)})
        entry = {
            "name": f"{('exported', 'fused', 'merged qkv')[index % 3]} {precision} {index}",
            "graph": "exported",
            "quantizer": "dynamic",
            "precision": ("int8", "float32")[index % 2],
            "execution": {"engine": engine, "precision": precision, "threads": 1 + index % 2, "streams": 1},
            "bytes": 10_000_000 + index,
            "latency": {
                batch: {
                    "p50": p50 * scale,
                    "low": p50 * scale * 0.97,
                    "high": p50 * scale * 1.04,
                    "p95": p50 * scale * 1.2,
                }
                for batch, scale in scales.items()
            },
            "throughput": {"value": 900 / p50, "low": 850 / p50, "high": 950 / p50},
            "metric": about(0.88 - loss).model_dump(),
            "comparison": compared.model_dump(),
            "verdicts": [verdict.model_dump() for verdict in gates.verdicts(GATES, compared)],
            "kept": False,
            "reason": "slower than the one that was kept",
        }
        absent = {**dict.fromkeys(("throughput", "metric", "comparison")), "verdicts": [], "reason": "given up early"}
        candidates.append({**entry, **(absent if early else {})})
    passing = [entry for entry in candidates if entry["metric"] and not gates.failing(GATES, _verdicts(entry))]
    best = min(passing, key=lambda entry: entry["latency"][BATCH]["p50"])
    return [{**entry, "kept": True, "reason": "the fastest"} if entry is best else entry for entry in candidates]


def _verdicts(candidate):
    return [gates.Verdict.model_validate(verdict) for verdict in candidate["verdicts"]]


@pytest.fixture
def searched(details, monkeypatch):
    """Puts twenty candidates into the details of the run."""
    monkeypatch.setitem(details["quantize"], "candidates", many())
    return details["quantize"]["candidates"]


def test_twenty_candidates_are_listed_from_the_fastest_and_drawn_if_they_were_evaluated(searched, chain, tmp_path):
    html, markdown = written(tmp_path, chain("package"))
    text = " ".join(" ".join(Page(html).texts).split())
    assert [name for name in map(itemgetter("name"), searched) if f" {name} " not in text or name not in markdown] == []
    rows = re.findall(r"^\| (\d+) \| (.+?) \| (.+?) \|", markdown.partition("## Candidates")[2], flags=re.MULTILINE)
    rows = rows[: len(searched)]
    times = {entry["name"]: entry["latency"][BATCH]["p50"] for entry in searched}
    assert [name for _, name, _ in rows] == sorted(times, key=times.__getitem__)
    assert {where for *_, where in rows} == {"int8 on onnxruntime, 1 thread", "float32 on openvino bfloat16, 2 threads"}
    figure = html[html.index("Quality against latency") :].partition("</svg>")[0]
    drawn = {int(number) for number in re.findall(r">(\d+)</text>", figure)}
    measured = {entry["name"] for entry in searched if entry["metric"]}
    evaluated = {int(number) for number, name, _ in rows if name in measured}
    assert evaluated < {int(number) for number, _, _ in rows}
    assert evaluated <= drawn
    assert text.count("given up early") == len(searched) - len(measured)


def test_the_line_is_the_pareto_front_and_candidates_stopped_by_a_gate_are_hollow(searched, chain):
    candidates = report.facts(chain("package"), GATES)["candidates"]
    axes = report.Figure().subplots()
    report._draw_candidates(axes, candidates, "accuracy")
    (front,) = (line for line in axes.lines if line.get_drawstyle() == "steps-post")
    points = {(report._median_ms(entry), entry["metric"]["value"]): entry for entry in candidates if entry["metric"]}
    assert set(zip(*front.get_data(), strict=True)) == {
        (fast, good)
        for (fast, good), entry in points.items()
        if not entry["stopping_verdicts"]
        and not any(x < fast and y >= good for (x, y), other in points.items() if not other["stopping_verdicts"])
    }
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert len(dots) == len(points)
    for dot in dots:
        entry = points[dot.get_xdata()[0], dot.get_ydata()[0]]
        assert (dot.get_markerfacecolor() == "none") is bool(entry["stopping_verdicts"])
        assert (dot.get_color() == report.ORANGE) is entry["kept"]
    assert {bool(entry["stopping_verdicts"]) for entry in points.values()} == {True, False}


def test_every_gate_of_every_stage_is_listed_with_its_outcome(searched, chain, tmp_path):
    verdicts = report.facts(chain("package"), GATES)["verdicts"]
    (kept,) = (entry for entry in searched if entry["kept"])
    assert {stage for stage, verdict, _ in verdicts if verdict.outcome == "passed"} == {
        "prune",
        f"quantize: {kept['name']}",
        "package",
    }
    assert len({(stage, verdict.gate) for stage, verdict, _ in verdicts}) == len(verdicts)
    stopped = {stage.removeprefix("quantize: ") for stage, _, stops in verdicts if stops}
    assert {entry["name"] for entry in searched if gates.failing(GATES, _verdicts(entry))} <= stopped


def test_where_every_candidate_is_stopped_there_is_no_front(searched, chain, tmp_path):
    candidates = report.facts(chain("quantize"), GATES)["candidates"]
    axes = report.Figure().subplots()
    report._draw_candidates(axes, [{**entry, "stopping_verdicts": ("all",)} for entry in candidates], "accuracy")
    (front,) = (line for line in axes.lines if line.get_drawstyle() == "steps-post")
    assert len(front.get_xdata()) == 0
