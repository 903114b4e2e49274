"""Candidates ranked for a query: which packages have the route, its answers, its limits, and the client."""

import pytest
from asgi import PREDICT, assert_problem, metrics

from deploykit.artifact import GRAPH, ServeOptions
from deploykit.serving.access import keys
from deploykit.serving.api import openapi

RANK = "/v1/rank"
QUERY = "a great film"
CANDIDATES = ["the plot is weak", "the end", "film", "a story that moved us", "the end"]
POSITIVE = {"positive_label": "positive"}


@pytest.fixture
def ranking(serve, make_package, tmp_path):
    """A service that ranks by the probability of `positive`."""
    return serve(make_package(tmp_path / "package", pair=True, task_options=POSITIVE).path)


def test_candidates_are_sorted_by_the_probability_of_the_positive_label(ranking):
    found = ranking.post(RANK, json_body={"query": QUERY, "candidates": CANDIDATES})
    assert found.status == 200, found.content
    pairs = {"texts": [QUERY] * len(CANDIDATES), "text_pairs": CANDIDATES}
    answered = ranking.post(PREDICT, json_body=pairs).json()
    scores = [answer["scores"]["positive"] for answer in answered["predictions"]]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])  # the two equal ones keep their order
    assert [candidate["index"] for candidate in found.json()["ranking"]] == order
    assert [candidate["score"] for candidate in found.json()["ranking"]] == pytest.approx(sorted(scores)[::-1])
    assert len(set(scores)) == len(CANDIDATES) - 1
    assert found.json()["model"] == answered["model"]


def test_top_k_gives_the_first_ones(ranking):
    whole, top, more = (
        ranking.post(RANK, json_body={"query": QUERY, "candidates": CANDIDATES, "top_k": top_k}).json()["ranking"]
        for top_k in (None, 2, 100)
    )
    assert [candidate["index"] for candidate in top] == [candidate["index"] for candidate in whole][:2]
    assert len(whole) == len(more) == len(CANDIDATES)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": QUERY}, "Field required"),
        ({"candidates": ["a"]}, "Field required"),
        ({"query": QUERY, "candidates": []}, "at least 1 item"),
        ({"query": QUERY, "candidates": ["a"] * 5}, "at most 4 items"),
        ({"query": [QUERY], "candidates": ["a"]}, "valid string"),
        ({"query": QUERY, "candidates": ["a"], "top_k": 0}, "greater than or equal to 1"),
        ({"query": QUERY, "candidates": ["a"], "texts": ["b"]}, "Extra inputs"),
    ],
)
def test_bodies_that_do_not_fit(serve, make_package, tmp_path, body, message):
    limits = ServeOptions(max_texts=4)
    client = serve(make_package(tmp_path / "package", pair=True, task_options=POSITIVE, serve=limits).path)
    answer = client.post(RANK, json_body=body)
    assert_problem(answer, 422, "does not fit")
    assert message in answer.json()["errors"][0]["message"]


def test_candidates_count_as_predictions_and_the_key_needs_the_scope_to_predict(ranking, key_file):
    ranking.post(RANK, json_body={"query": QUERY, "candidates": CANDIDATES})
    counts = metrics(ranking)
    assert counts["deploykit_input_tokens_count"] == len(CANDIDATES)
    assert counts[f'deploykit_requests_total{{route="{RANK}",status="200"}}'] == 1
    ranking._headers["x-api-key"] = keys.add(key_file, "scraper", ["metrics"])
    refused = ranking.post(RANK, json_body={"query": QUERY, "candidates": CANDIDATES})
    assert_problem(refused, 403, "lacks the scope 'predict'")


@pytest.mark.parametrize(
    "changes",
    [
        {"pair": False, "task_options": POSITIVE},
        {"pair": True},  # negative and positive: neither is surely meant
        {"pair": True, "task": "token-classification", "labels": ("O", "B-A", "I-A")},
    ],
    ids=["single texts", "no positive label", "another task"],
)
def test_other_packages_have_no_such_route(serve, make_package, tmp_path, changes):
    client = serve(make_package(tmp_path / "package", **changes).path)
    assert_problem(client.post(RANK, json_body={"query": QUERY, "candidates": CANDIDATES}), 404, "no such path")


def test_regression_ranks_by_its_number(serve, make_package, tmp_path, tiny_graph):
    package = make_package(
        tmp_path / "package",
        before=lambda draft: tiny_graph(draft / GRAPH, labels=1),
        task="regression",
        labels=(),
        pair=True,
        task_options={"mean": 3.0, "deviation": 2.0},
    )
    client = serve(package.path)
    found = client.post(RANK, json_body={"query": QUERY, "candidates": CANDIDATES}).json()["ranking"]
    pairs = {"texts": [QUERY] * len(CANDIDATES), "text_pairs": CANDIDATES}
    numbers = [answer["score"] for answer in client.post(PREDICT, json_body=pairs).json()["predictions"]]
    assert [candidate["score"] for candidate in found] == pytest.approx(sorted(numbers)[::-1])


def test_it_is_described(ranking, key_file):
    document = ranking.get("/docs.json", headers={"x-api-key": keys.add(key_file, "docs", keys.SCOPES)}).json()
    operation = document["paths"][RANK]["post"]
    assert operation["operationId"] == "rank"
    schemas = document["components"]["schemas"]
    assert set(schemas["RankRequest"]["properties"]) == {"query", "candidates", "top_k"}
    assert schemas["RankRequest"]["required"] == ["query", "candidates"]
    assert set(schemas["Ranked"]["properties"]) == {"index", "score"}
    assert set(map(str, openapi.BODY_ERROR_STATUSES)) <= set(operation["responses"])
