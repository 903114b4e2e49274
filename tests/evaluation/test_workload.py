import pytest

from deploykit.errors import InputError
from deploykit.evaluation.workload import HISTOGRAM, Lengths
from deploykit.serving.telemetry.metrics import Metrics

PAGE = f"""# TYPE {HISTOGRAM} histogram
{HISTOGRAM}_bucket{{le="16.0"}} 0.0
{HISTOGRAM}_bucket{{le="20.0"}} 3.0
{HISTOGRAM}_bucket{{le="24.0"}} 3.0
{HISTOGRAM}_bucket{{le="+Inf"}} 4.0
{HISTOGRAM}_count 4.0
{HISTOGRAM}_sum 99.0
"""


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("<!doctype html>", "this is not a page of metrics"),
        ("", f"this page has no histogram {HISTOGRAM}"),
        (PAGE.replace(HISTOGRAM, "deploykit_batch_tokens"), f"this page has no histogram {HISTOGRAM}"),
        (PAGE.replace(" 3.0", " 0.0").replace(" 4.0", " 0.0"), "has not answered a text yet"),
    ],
)
def test_a_page_that_tells_nothing_of_lengths(page, message):
    with pytest.raises(InputError, match=rf"{message}.* Save the page /metrics"):
        Lengths.from_metrics(page)


def test_nothing_counted():
    with pytest.raises(InputError, match="no text was counted"):
        Lengths.from_counts({})
    with pytest.raises(InputError, match="no text was counted"):
        Lengths.from_counts({5: 0})


def test_counts_become_shares_in_ascending_order():
    assert Lengths.from_counts({12: 3, 8: 1, 9: 0}) == Lengths((8, 12), (0.25, 0.75))


def test_a_bucket_lies_at_the_geometric_middle_of_its_lengths_and_the_last_at_its_start():
    assert Lengths.from_metrics(PAGE) == Lengths((18, 25), (0.75, 0.25))  # 17 to 20; above 24


def test_replicas_are_added():
    other = PAGE.replace('{le="', '{instance="b",le="').replace(" 3.0", " 1.0")  # 1 text, then 3 beyond the buckets
    joined = "\n".join(line for line in (PAGE + other).splitlines() if not line.startswith("#"))
    assert Lengths.from_metrics(joined) == Lengths((18, 25), (0.5, 0.5))


def test_what_a_service_counts_is_read_back_within_an_eighth():
    lengths = [2, 5, 6, 7, 9, 11, 26, 31, 77, 128, 129, 300, 511, 2000, 8192]
    metrics = Metrics(["/v1/predict"], ["a"])
    for tokens in lengths:
        metrics.input_tokens.observe(tokens)
    found = Lengths.from_metrics(metrics.page().decode())
    assert sum(found.shares) == pytest.approx(1)
    read = [found.quantile((index + 0.5) / len(lengths)) for index in range(len(lengths))]
    assert all(abs(near - tokens) <= tokens / 8 for near, tokens in zip(read, lengths, strict=True))


def test_quantiles():
    found = Lengths.from_counts({8: 1, 12: 2, 40: 1})
    assert [found.quantile(share) for share in (0, 0.25, 0.26, 0.75, 0.76, 1)] == [8, 8, 12, 12, 40, 40]
    thirds = Lengths.from_counts({1: 1, 2: 1, 3: 1})  # shares that do not sum to 1 exactly
    assert [thirds.quantile(share) for share in (1 / 3, 2 / 3, 1)] == [1, 2, 3]


def test_a_draw_stands_for_the_distribution_whatever_the_seed():
    found = Lengths.from_counts({8: 1, 12: 2, 40: 1})
    draws = [found.draw(8, seed) for seed in range(5)]
    assert [sorted(draw) for draw in draws] == [[8, 8, 12, 12, 12, 12, 40, 40]] * 5
    assert len({tuple(draw) for draw in draws}) > 1
    assert found.draw(8, 0) == draws[0]
    assert found.draw(0, 0) == []


def test_a_draw_of_few_texts_is_right_on_average():
    found = Lengths.from_counts({10: 2, 100: 1})
    drawn = [tokens for seed in range(600) for tokens in found.draw(1, seed)]
    assert sum(drawn) / len(drawn) == pytest.approx(40, rel=0.1)
