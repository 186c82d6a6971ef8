"""What is measured, by the definitions, and how it is told to the operator and to Prometheus."""

import pytest
from prometheus_client import generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tuneloop_core.serving import GatewayLoad
from tuneloop_gateway.exposition import registry
from tuneloop_gateway.histogram import Histogram
from tuneloop_gateway.load import gateway_load
from tuneloop_gateway.measure import Labels, Measures, Objective
from tuneloop_gateway.sse import Usage

QA = Labels("team", "qa", "qa", "chat")
BOT = Labels("team", "qa", "bot", "chat")


def measures() -> Measures:
    return Measures("gw-0", "2026-01-01T00:00:00+00:00")


def test_a_histogram_counts_at_or_under_its_bounds() -> None:
    histogram = Histogram((0.1, 0.2))
    for seconds in (0.05, 0.1, 0.15, 0.2, 5.0):
        histogram.observe(seconds)
    assert histogram.cumulative() == [2, 4, 5]
    assert histogram.sum == pytest.approx(5.5)
    assert histogram.buckets() == [("0.1", 2.0), ("0.2", 4.0), ("+Inf", 5.0)]


def test_ttft_itl_and_tpot_of_a_stream() -> None:
    """Received at 10, output at 11, 11.5 and two at 12.5, done at 13, five tokens."""
    found = measures()
    meter = found.meter(QA, 10.0)
    for events, now in ((1, 11.0), (1, 11.5), (2, 12.5)):
        meter.output(events, now)
    meter.usage = Usage(7, 5)
    meter.end("200", False, 13.0)
    series = found.series[QA]
    assert (series.ttft.sum, series.itl.sum, series.tpot.sum, series.duration.sum) == (1.0, 1.5, 0.5, 3.0)
    assert [h.cumulative()[-1] for h in (series.ttft, series.itl, series.tpot, series.duration)] == [1, 3, 1, 1]
    assert (series.prompt_tokens, series.completion_tokens, series.ongoing, series.codes) == (7, 5, 0, {"200": 1})


@pytest.mark.parametrize(("code", "failed"), [("503", True), ("400", False), ("499", False), ("200", True)])
def test_what_did_not_succeed_has_no_latency(code: str, failed: bool) -> None:
    found = measures()
    found.meter(QA, 0.0).end(code, failed, 1.0)
    load = gateway_load(found).deployments[0]
    assert load.e2e is not None
    assert (load.requests, load.errors, load.e2e.counts[-1]) == (1, int(failed), 0)


@pytest.mark.parametrize(("code", "failed"), [("200", True), ("499", False)])
def test_what_was_felt_of_a_stream_that_broke_or_was_left_counts(code: str, failed: bool) -> None:
    found = measures()
    meter = found.meter(QA, 0.0)
    for now in (0.3, 0.5):
        meter.output(1, now)
    meter.end(code, failed, 1.0)
    series = found.series[QA]
    counts = [h.cumulative()[-1] for h in (series.ttft, series.itl, series.tpot, series.duration)]
    assert counts == [1, 1, 0, 0]


def test_one_token_has_no_tpot() -> None:
    found = measures()
    meter = found.meter(QA, 0.0)
    meter.output(1, 1.0)
    meter.usage = Usage(1, 1)
    meter.end("200", False, 2.0)
    assert found.series[QA].tpot.cumulative()[-1] == 0


def test_load_adds_the_models_of_a_deployment() -> None:
    found = measures()
    for labels in (QA, BOT, QA):
        meter = found.meter(labels, 0.0)
        meter.output(1, 0.3)
        meter.end("200", False, 0.5)
    found.meter(BOT, 0.0)
    load = GatewayLoad.model_validate_json(gateway_load(found).model_dump_json(by_alias=True))
    assert (load.instance, load.started) == ("gw-0", "2026-01-01T00:00:00+00:00")
    assert [(each.namespace, each.name) for each in load.deployments] == [("team", "qa")]
    assert (load.deployments[0].requests, load.deployments[0].ongoing) == (3, 1)
    assert load.deployments[0].ttft is not None
    assert load.deployments[0].ttft.counts[-1] == 3
    assert len(load.deployments[0].ttft.counts) == len(load.deployments[0].ttft.bounds) + 1


def test_series_of_models_that_are_gone_are_dropped_once_idle() -> None:
    found = measures()
    found.meter(QA, 0.0).end("200", False, 1.0)
    busy = found.meter(BOT, 0.0)
    found.forget_all_but(set())
    assert list(found.series) == [BOT]
    busy.end("200", False, 1.0)
    found.forget_all_but({("team", "qa", "bot", "")})
    assert list(found.series) == [BOT]


@pytest.mark.parametrize(
    ("first", "end", "code", "failed", "judged"),
    [
        (0.5, 1.0, "200", False, (1, 0)),  # TTFT 0.5, TPOT 0.125
        (0.6, 1.0, "200", False, (0, 1)),
        (0.5, 1.5, "200", False, (0, 1)),  # TPOT 0.25
        (None, 1.0, "502", True, (0, 1)),
        (None, 1.0, "200", False, (0, 0)),  # not streamed
        (0.5, 1.0, "499", False, (0, 0)),  # the client left
    ],
)
def test_each_request_is_judged_by_the_objectives(
    first: float | None, end: float, code: str, failed: bool, judged: tuple[int, int]
) -> None:
    found = measures()
    meter = found.meter(QA, 0.0, Objective(ttft=0.5, tpot=0.2))
    if first:
        meter.output(1, first)
    meter.usage = None if failed else Usage(7, 5)
    meter.end(code, failed, end)
    load = gateway_load(found).deployments[0]
    assert (load.slo_met, load.slo_missed) == (load.models[0].slo_met, load.models[0].slo_missed) == judged


def test_load_by_model_and_version() -> None:
    found = measures()
    old, new = (Labels("team", "qa", "bot", "chat", f"bot@{version}") for version in ("1", "2"))
    for labels, code in ((old, "200"), (new, "200"), (new, "502"), (QA, "200")):
        meter = found.meter(labels, 0.0)
        meter.output(1, 0.3)
        meter.end(code, code != "200", 0.5)
    models = gateway_load(found).deployments[0].models
    assert [(each.name, each.engine_name, each.revision, each.requests, each.errors) for each in models] == [
        ("bot", "bot@1", "", 1, 0),
        ("bot", "bot@2", "", 2, 1),
        ("qa", "", "", 1, 0),
    ]
    assert models[1].ttft is not None
    assert models[1].ttft.counts[-1] == 2


def test_totals_of_a_deployment_do_not_fall_when_a_version_goes() -> None:
    found = measures()
    for labels in (QA, BOT):
        meter = found.meter(labels, 0.0)
        meter.output(1, 0.3)
        meter.end("200", False, 0.5)
    found.forget_all_but({("team", "qa", "qa", "")})
    load = gateway_load(found).deployments[0]
    assert (load.requests, [model.name for model in load.models]) == (2, ["qa"])
    assert load.ttft is not None
    assert load.ttft.counts[-1] == 2
    found.forget_all_but({("team", "qa", "new", "")})
    assert [(each.requests, each.models) for each in gateway_load(found).deployments] == [(2, [])]
    found.forget_all_but(set())
    assert gateway_load(found).deployments == []


def test_exemplars_name_the_request_in_openmetrics_only() -> None:
    found = measures()
    for identity in (b"abc-1", b"x" * 120):  # the second is too long for an exemplar
        meter = found.meter(QA, 0.0, None, identity)
        for now in (0.3, 0.31, 0.36):
            meter.output(1, now)
        meter.usage = Usage(7, 3)
        meter.end("200", False, 0.5)
    metrics = registry(found, dict)
    plain, _ = choose_encoder("text/plain")
    assert b"abc-1" not in plain(metrics)
    encode, content_type = choose_encoder("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text")
    text = encode(metrics).decode()
    families = {family.name: family for family in openmetrics(text)}
    seen = {
        name: [
            (sample.exemplar.labels["request_id"], sample.exemplar.value)
            for sample in family.samples
            if sample.exemplar
        ]
        for name, family in families.items()
    }
    assert {name: values for name, values in seen.items() if values} == {
        "gen_ai_server_time_to_first_token_seconds": [("abc-1", 0.3)],
        "gen_ai_server_time_per_output_token_seconds": [("abc-1", pytest.approx(0.1))],
        "gen_ai_server_request_duration_seconds": [("abc-1", 0.5)],
        "tuneloop_gateway_inter_token_latency_seconds": [("abc-1", pytest.approx(0.05))],
    }


def scraped(found: Measures, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """The samples of a family, by some of their labels."""
    families = {
        each.name: each for each in text_string_to_metric_families(generate_latest(registry(found, dict)).decode())
    }
    return {tuple(each.labels[label] for label in labels): each.value for each in families[name].samples}


def test_a_calm_queue_is_a_zero_and_no_absent_series() -> None:
    found = measures()
    found.forget_all_but(
        {("team", "qa", "qa", "qa"), ("team", "qa", "bot", "bot@1"), ("team", "other", "other", "other")}
    )
    name = "tuneloop_gateway_queued_requests"
    assert scraped(found, name, "namespace", "deployment") == {("team", "qa"): 0.0, ("team", "other"): 0.0}
    found.forget_all_but({("team", "qa", "qa", "qa")})
    assert scraped(found, name, "deployment") == {("qa",): 0.0}


def test_what_was_judged_is_counted_and_does_not_fall() -> None:
    found = measures()
    for labels, first in ((QA, 0.4), (QA, 0.6), (BOT, 0.4), (BOT, 0.4)):
        meter = found.meter(labels, 0.0, Objective(ttft=0.5))
        meter.output(1, first)
        meter.end("200", False, 1.0)
    found.meter(Labels("team", "free", "free", "chat"), 0.0).end("502", True, 1.0)
    name = "tuneloop_gateway_slo_requests"
    judged = {("team", "qa", "true"): 3.0, ("team", "qa", "false"): 1.0}
    assert scraped(found, name, "namespace", "deployment", "met") == judged
    found.forget_all_but({("team", "qa", "qa", "")})
    assert scraped(found, name, "namespace", "deployment", "met") == judged, "the adapter went, what it counted stays"
    load = gateway_load(found).deployments[0]
    assert (load.slo_met, load.slo_missed) == (3, 1), "the same that status.latency is made of"


def test_failures_are_counted_whatever_status_their_clients_saw() -> None:
    found = measures()
    for code, failed in (("200", False), ("200", True), ("503", True), ("429", False), ("499", False)):
        found.meter(QA, 0.0).end(code, failed, 1.0)
    found.meter(BOT, 0.0).end("200", False, 1.0)
    counted = {("team", "qa", "qa"): 2.0, ("team", "qa", "bot"): 0.0}
    assert scraped(found, "tuneloop_gateway_failed_requests", "namespace", "deployment", "model") == counted


def test_feedback_is_counted_by_version() -> None:
    found = measures()
    for good in (True, True, False):
        found.feedback(("team", "qa", "bot", "bot@1", ""), good=good)
    found.feedback(("team", "qa", "qa", "qa", "r2"), good=True)
    assert scraped(found, "tuneloop_gateway_feedback", "model", "engine_name", "revision", "score") == {
        ("bot", "bot@1", "", "good"): 2.0,
        ("bot", "bot@1", "", "bad"): 1.0,
        ("qa", "qa", "r2", "good"): 1.0,
        ("qa", "qa", "r2", "bad"): 0.0,
    }


def test_prometheus_text() -> None:
    found = measures()
    meter = found.meter(QA, 0.0)
    meter.output(2, 0.3)
    meter.usage = Usage(7, 2)
    meter.end("200", False, 0.5)
    found.reject(401, "missing_api_key")
    found.upstream_failed("connect")
    text = generate_latest(registry(found, lambda: {"models": 1.0})).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name in (
        "gen_ai_server_time_to_first_token_seconds",
        "gen_ai_server_time_per_output_token_seconds",
        "gen_ai_server_request_duration_seconds",
        "tuneloop_gateway_inter_token_latency_seconds",
    ):
        labels = {"namespace": "team", "deployment": "qa", "model": "qa", "operation": "chat"}
        labels |= {"engine_name": "", "revision": ""}
        counts = [sample for sample in families[name].samples if sample.name.endswith("_count")]
        assert [(sample.labels, sample.value) for sample in counts] == [(labels, 1.0)]
    assert {sample.labels["type"]: sample.value for sample in families["tuneloop_gateway_tokens"].samples} == {
        "prompt": 7.0,
        "completion": 2.0,
    }
    assert 'tuneloop_gateway_rejected_requests_total{code="401",reason="missing_api_key"} 1.0' in text
    assert 'tuneloop_gateway_upstream_failures_total{kind="connect"} 1.0' in text
    assert "tuneloop_gateway_models 1.0" in text
    assert "process_cpu_seconds_total" in text
