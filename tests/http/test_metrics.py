"""Metrics in Prometheus' format, what a service counts, and its access log."""

import logging

import serving
from serving import PATIENCE, Gate, Pieces, eventually, request

from core.http.metrics import Metrics
from core.http.routing import Route
from core.http.server import ServerConfig, Service

serve, connect, background = serving.serve, serving.connect, serving.background  # fixtures


def test_metrics_are_written_in_prometheus_text_format():
    metrics = Metrics()
    asked = metrics.counter("asked_total", "Questions.", "who", "how")
    plain = metrics.counter("plain_total", "Without labels.")
    heat = metrics.gauge("heat", "Degrees.")
    metrics.gauge("silent", "Labelled, and never set.", "who")
    took = metrics.histogram("took_seconds", "Time.", "who", buckets=(0.5, 2))
    asked.inc("me", "softly")
    asked.inc("me", "softly", by=2)
    asked.inc("a", "b")
    heat.set(36.5)
    for value in (0.25, 0.5, 1, 8):
        took.observe(value, "me")
    assert metrics.render() == (
        "# HELP asked_total Questions.\n"
        "# TYPE asked_total counter\n"
        'asked_total{who="a",how="b"} 1\n'
        'asked_total{who="me",how="softly"} 3\n'
        "# HELP plain_total Without labels.\n"
        "# TYPE plain_total counter\n"
        "plain_total 0\n"
        "# HELP heat Degrees.\n"
        "# TYPE heat gauge\n"
        "heat 36.5\n"
        "# HELP silent Labelled, and never set.\n"
        "# TYPE silent gauge\n"
        "# HELP took_seconds Time.\n"
        "# TYPE took_seconds histogram\n"
        'took_seconds_bucket{who="me",le="0.5"} 2\n'
        'took_seconds_bucket{who="me",le="2"} 3\n'
        'took_seconds_bucket{who="me",le="+Inf"} 4\n'
        'took_seconds_sum{who="me"} 9.75\n'
        'took_seconds_count{who="me"} 4\n'
    )
    plain.inc()
    assert "\nplain_total 1\n" in metrics.render()


def test_label_values_are_escaped():
    metrics = Metrics()
    metrics.counter("x_total", "X.", "path").inc('C:\\models\\"a"\nb')
    assert 'x_total{path="C:\\\\models\\\\\\"a\\"\\nb"} 1\n' in metrics.render()


def test_hooks_set_gauges_before_each_rendering():
    metrics = Metrics()
    level = metrics.gauge("level", "Level.")
    levels = iter([1, 2])
    metrics.collect(lambda: level.set(next(levels)))
    assert "\nlevel 1\n" in metrics.render()
    assert "\nlevel 2\n" in metrics.render()


def test_counting_from_many_threads_loses_nothing(background):
    metrics = Metrics()
    counter = metrics.counter("n_total", "N.", "k")
    jobs = [background(lambda: [counter.inc("x") for _ in range(2000)]) for _ in range(4)]
    for job in jobs:
        job.result(PATIENCE)
    assert 'n_total{k="x"} 8000\n' in metrics.render()


def samples(service, name):
    """The samples of one family, as {line without its value: value}."""
    lines = [line for line in service.metrics.render().splitlines() if line.startswith(name)]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_requests_are_counted_by_method_route_and_status(serve, connect):
    service = serve(max_body=1000)
    client = connect(service)
    for path in ("/hello", "/hello", "/items/a", "/items/b", "/fail"):
        client.ask(path)
    client.ask("/echo", "POST", body=b"x")
    client.ask()  # once this is answered, those before it have been counted
    count = samples(service, "comeapi_http_requests_total")
    assert count['comeapi_http_requests_total{method="GET",route="/items/{name}",status="200"}'] == 2
    assert count['comeapi_http_requests_total{method="GET",route="/fail",status="500"}'] == 1
    assert count['comeapi_http_requests_total{method="POST",route="/echo",status="200"}'] == 1
    assert count['comeapi_http_requests_total{method="GET",route="/hello",status="200"}'] >= 2
    took = samples(service, "comeapi_http_request_duration_seconds_count")
    assert took['comeapi_http_request_duration_seconds_count{route="/items/{name}"}'] == 2
    assert samples(service, "comeapi_http_connections") == {"comeapi_http_connections": 1}


def test_the_metrics_prefix_is_the_services_name():
    assert "\nbalancer_http_requests_active 0\n" in Service(ServerConfig(), [], name="balancer").metrics.render()


def test_unknown_methods_and_paths_add_no_series(serve, connect):
    service = serve()
    client = connect(service)
    for i in range(5):
        client.ask("/nowhere/%d" % i)
        client.ask("/nowhere/%d" % i, "BREW%d" % i)
    client.ask()
    assert {name for name in samples(service, "comeapi_http_requests_total") if "other" in name} == {
        'comeapi_http_requests_total{method="GET",route="other",status="404"}',
        'comeapi_http_requests_total{method="other",route="other",status="404"}',
    }


def test_a_client_that_left_is_counted_as_499(serve, connect):
    pieces = Pieces(before=["one"])
    service = serve([Route("GET", "/", pieces)])
    client = connect(service)
    client.send(request("/"))
    assert client.head()[1] == 200
    client.close()
    wanted = 'comeapi_http_requests_total{method="GET",route="/",status="499"}'
    eventually(lambda: samples(service, "comeapi_http_requests_total") == {wanted: 1})


def test_a_client_that_left_before_its_answer_began_is_counted_as_499_too(serve, connect):
    gate = Gate()
    service = serve([Route("GET", "/", gate)])
    client = connect(service)
    client.send(request("/"))
    assert gate.arrived.wait(PATIENCE)
    client.close()
    eventually(lambda: service.connections_open() == 0)
    wanted = 'comeapi_http_requests_total{method="GET",route="/",status="499"}'
    assert samples(service, "comeapi_http_requests_total") == {wanted: 1}


def test_the_access_log_has_one_line_a_request(serve, connect, caplog):
    caplog.set_level(logging.INFO, "comeapi.access")
    client = connect(serve(access_log=True))
    client.ask("/items/x?y=z", headers={"X-Request-Id": "id-1"})
    client.ask("/nowhere", headers={"X-Request-Id": "id-2"})
    client.ask()  # once this is answered, those before it have been logged
    lines = [record.getMessage() for record in caplog.records if record.name == "comeapi.access"]
    assert len([line for line in lines if "id-1" in line]) == 1
    assert '127.0.0.1 id-1 "GET /items/x?y=z" 200 ' in lines[0]
    assert 'id-2 "GET /nowhere" 404 ' in lines[1]


def test_the_access_log_is_off_by_default(serve, connect, caplog):
    caplog.set_level(logging.INFO, "comeapi.access")
    client = connect(serve())
    assert [client.ask("/hello?quietly").status, client.ask("/hello?quietly").status] == [200, 200]
    assert "quietly" not in caplog.text
