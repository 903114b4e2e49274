"""The metrics: a table that tells all of them, and one page for several processes."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from asgi import PREDICT, metrics
from test_launch import ask

from deploykit.artifact.execution import Execution
from deploykit.hardware import CPU_FEATURES, cpu_features
from deploykit.serving import launch, runtime
from deploykit.serving.access import keys
from deploykit.serving.telemetry.metrics import Metrics

DOCS = Path(__file__).parents[3] / "docs" / "reference" / "metrics.md"
ROW = re.compile(r"\| `(\w+)` \| (counter|gauge|histogram) \| (.*?) ?\| (.+) \|")


def rows():
    """`{name: (type, labels)}` of the table."""
    found = [ROW.fullmatch(line) for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    return {row[1]: (row[2], re.findall(r"`(\w+)`", row[3])) for row in found}


def test_the_table_names_the_metrics():
    assert len(rows()) > 30


def test_the_first_scrape_has_each_metric_with_its_type_and_labels(client):
    page = client.get("/metrics").text
    for name, (kind, labels) in rows().items():
        assert f"# TYPE {name} {kind}" in page
        sample = f"{name}_bucket" if kind == "histogram" else name
        first = next(line for line in page.splitlines() if re.match(rf"{sample}[ {{]", line))
        assert set(re.findall(r'(\w+)="', first)) - {"le"} == set(labels)
    described = re.findall(r"# TYPE (\w+) ", page)
    assert sorted(set(described) - {name for name in described if name.endswith("_created")}) == sorted(rows())


def test_what_waits_longest_is_known(client, hold):
    engine = hold(client)
    assert metrics(client)["deploykit_queue_oldest_seconds"] == 0
    first = client.start("POST", PREDICT, json_body={"texts": ["a film"]})
    assert engine.started.wait(5)
    begun = time.perf_counter()
    waiting = [client.start("POST", PREDICT, json_body={"texts": ["a film"]}) for _ in range(3)]
    while metrics(client)["deploykit_queue_items"] < 3:
        pass
    time.sleep(0.2)
    found = metrics(client)["deploykit_queue_oldest_seconds"]
    assert 0.2 <= found <= time.perf_counter() - begun
    engine.go.set()
    assert [answer.result(5).status for answer in (first, *waiting)] == [200] * 4
    assert metrics(client)["deploykit_queue_oldest_seconds"] == 0


def test_the_features_of_the_cpu_and_those_that_were_counted_on(serve, make_package, tmp_path):
    made = make_package(tmp_path / "p", float_seed=7, execution=Execution(features=("avx2", "avx1024")))
    found = metrics(serve(made.path))
    here = cpu_features()
    for feature in CPU_FEATURES:
        relied = "yes" if feature == "avx2" else "no"
        assert found[f'deploykit_cpu_feature{{feature="{feature}",relied_on="{relied}"}}'] == (feature in here)
    assert found['deploykit_cpu_feature{feature="avx1024",relied_on="yes"}'] == 0
    assert found["deploykit_fallback"] == 1


WORKER = """
import sys
import numpy as np
from deploykit.serving.telemetry.metrics import Metrics
from deploykit.tasks import Observations

number = int(sys.argv[1])
metrics = Metrics(["/v1/predict", "unknown"], ["a", "b"])
metrics.count_response("/v1/predict", 200)
metrics.tokens.inc(10 * number)
metrics.queue_seconds.observe(number)
metrics.count_predictions(["a", "b"], Observations(*map(np.array, ([1], [0], [0.9], [0.1]))))
metrics.queue_items.set(number)
metrics.queue_oldest.set(number)
metrics.drift.labels("length").set(number / 10)
metrics.keys.set(5)
metrics.key_expiry.set(1000)
metrics.started.set(100 + number)
metrics.ready.set(number == 1)
metrics.draining.set(1)
metrics.fallback.set(number == 2)
metrics.model_info.labels("tiny", "v", "t", "e", "p", "g").set(1)
metrics.set_cpu_features(["avx2"], ["avx2"])
metrics.update_process()
print("done", flush=True)
if sys.stdin.read() == "page":
    sys.stdout.buffer.write(metrics.page())
"""


@pytest.fixture
def workers(tmp_path):
    """Two processes that have counted, and the page as the first of them renders it when it ends."""
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    made = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(number)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for number in (1, 2)
    ]
    for worker in made:
        assert worker.stdout.readline() == b"done\n"
    yield made
    for worker in made:
        worker.kill()
        worker.communicate()


def page_of(worker):
    text = worker.communicate(b"page", 30)[0].decode()
    assert "pid=" not in text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_two_processes_are_one_page(workers):
    found = {name.removeprefix("deploykit_"): value for name, value in page_of(workers[0]).items()}
    assert found['requests_total{route="/v1/predict",status="200"}'] == 2
    assert found["tokens_total"] == 30
    assert (found["queue_seconds_count"], found["queue_seconds_sum"]) == (2, 3)
    assert found['predictions_total{label="a"}'] == found["confidence_count"] == 2
    assert (found["queue_items"], found["queue_oldest_seconds"]) == (3, 2)
    assert (found["keys"], found["next_key_expiry_seconds"], found["process_start_seconds"]) == (5, 1000, 102)
    assert (found["ready"], found["draining"], found["fallback"]) == (0, 1, 1)
    assert found['drift_psi{feature="length"}'] == 0.2
    assert [value for name, value in found.items() if name.startswith("model_info{")] == [1]
    assert found['cpu_feature{feature="avx2",relied_on="yes"}'] == 1
    assert found["process_resident_bytes"] > 2 * 20_000_000


def test_a_process_that_was_killed_leaves_its_counts_and_no_gauges(workers):
    workers[1].kill()
    workers[1].wait()
    found = page_of(workers[0])
    assert found["deploykit_tokens_total"] == 30
    assert (found["deploykit_queue_items"], found["deploykit_queue_oldest_seconds"]) == (1, 1)
    assert (found["deploykit_ready"], found["deploykit_fallback"]) == (1, 0)


def test_every_gauge_says_how_processes_are_joined():
    made = Metrics(["/"], [])
    gauges = [one for one in vars(made).values() if type(one).__name__ == "Gauge"]
    assert len(gauges) == sum(kind == "gauge" for kind, _ in rows().values())
    assert {one._multiprocess_mode for one in gauges} == {"livesum", "livemin", "livemax"}


def resident(folder):
    """Bytes of memory of the processes that have counted, by their ids in the names of files."""
    ids = {file.stem.rpartition("_")[2] for file in folder.glob("gauge_livesum_*.db")}
    assert len(ids) == 2
    pages = [int(Path(f"/proc/{found}/statm").read_text().split()[1]) for found in ids]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def test_two_real_workers_are_one_page(package, key_file, tmp_path):
    key, home = keys.add(key_file, "alice"), tmp_path / "home"
    several = {"BENTOML_HOME": str(home), "BENTOML_CONFIG_OPTIONS": "services.tiny.workers=2"}
    with launch.running_service(package, key_file, environ={**os.environ, **several}, log=tmp_path / "log") as url:
        for _ in range(20):
            assert ask(f"{url}/v1/predict", key, {"texts": ["a film"]})[0] == 200
        time.sleep(runtime.GAUGE_UPDATE_PERIOD_S + 0.5)
        page = ask(f"{url}/metrics", key)[1]
        (counts,) = home.glob("serve-*/prometheus_multiproc_dir")
        memory = resident(counts)
    assert 'deploykit_requests_total{route="/v1/predict",status="200"} 20.0' in page
    assert "deploykit_keys 1.0" in page
    assert "deploykit_ready 1.0" in page
    assert "pid=" not in page
    assert page.count("deploykit_model_info{") == 1
    told = float(re.search(r"^deploykit_process_resident_bytes (.+)$", page, re.M)[1])
    assert told == pytest.approx(memory, rel=0.1)


def test_values_that_are_observed_at_once_are_those_observed_one_by_one():
    values = [0.0, 0.05, 0.1, 0.125, 0.5, 0.9, 1.0, 7.0]
    pages = []
    for all_at_once in (False, True):
        counted = Metrics(["/"], [])
        if all_at_once:
            counted.entropy.observe_all(np.array(values))
            counted.entropy.observe_all(np.array([]))
        else:
            for value in values:
                counted.entropy.observe(value)
        lines = counted.page().decode().splitlines()
        pages.append([line for line in lines if line.startswith("deploykit_entropy_") and "_created" not in line])
    assert pages[0] == pages[1]
    assert "deploykit_entropy_count 8.0" in pages[0]


def test_texts_are_counted_many_at_once_and_before_a_page_shows_them(serve, make_package, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(runtime, "GAUGE_UPDATE_PERIOD_S", 60)
    counted = Metrics.count_texts
    monkeypatch.setattr(Metrics, "count_texts", lambda self, texts: (sizes.append(len(texts)), counted(self, texts))[1])
    client = serve(make_package(tmp_path / "p").path)
    for _ in range(3):
        assert client.post(PREDICT, json_body={"texts": ["a film"]}).status == 200
    assert metrics(client)["deploykit_input_tokens_count"] == 3
    assert sizes == [3]
    assert client.post(PREDICT, json_body={"texts": ["a film"] * 100}).status == 200
    assert sizes == [3, 100]
