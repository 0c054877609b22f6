"""The manifests of core/balancing/deploy: right by Kubernetes' own schemas, and true of these programs."""

import os

import pytest
from conftest import ROOT, call

import backend
import balancer
from core import options, process

yaml = pytest.importorskip("yaml")
OLDEST = (1, 25)


def manifests():
    with open(os.path.join(ROOT, "core", "balancing", "deploy", "kubernetes.yaml"), encoding="utf-8") as file:
        return list(yaml.safe_load_all(file))


def one(kind, name):
    (found,) = [each for each in manifests() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def pod(name):
    return one("Deployment", name)["spec"]["template"]


def container(name):
    (found,) = pod(name)["spec"]["containers"]
    return found


def test_the_schemas_of_the_api_know_every_field():
    validator = pytest.importorskip("kubernetes_validate.utils")
    versions = [each for each in validator.all_versions() if tuple(map(int, each.split("."))) >= OLDEST]
    assert len(manifests()) == 8 and len(versions) > 2
    for version in (versions[0], versions[-1]):
        for each in manifests():
            validator.validate(each, version, strict=True)


def test_a_schema_refuses_what_is_spelt_wrong():
    validator = pytest.importorskip("kubernetes_validate.utils")
    wrong = one("Deployment", "llm")
    wrong["spec"]["template"]["spec"]["terminationGraceSeconds"] = 60
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, validator.all_versions()[-1], strict=True)


@pytest.mark.parametrize("name, program", [("llm", backend), ("llm-balancer", balancer)])
def test_the_programs_understand_their_command_lines_and_have_time_to_stop(name, program):
    python, file, *arguments = container(name)["command"]
    assert (python, file) == ("python", program.__name__ + ".py")
    variables = {each["name"]: "a-value-for-each" for each in container(name)["env"]}
    config = options.parse(program.Config, "A program.", argv=arguments, environ=variables)
    assert config.carry_secret and config.drain_grace >= 10
    assert (config.port or 9000) == container(name)["ports"][0]["containerPort"]
    given = pod(name)["spec"]["terminationGracePeriodSeconds"]
    assert given > config.drain_grace + config.drain_timeout + process.STOP_SECONDS
    assert pod(name)["metadata"]["annotations"]["prometheus.io/port"] == str(config.port)


@pytest.mark.parametrize("name", ["llm", "llm-balancer"])
def test_everything_that_selects_pods_finds_these(name):
    labels = pod(name)["metadata"]["labels"]
    deployment, service, budget = (one(kind, name) for kind in ("Deployment", "Service", "PodDisruptionBudget"))
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert labels == budget["spec"]["selector"]["matchLabels"]


def test_the_balancer_looks_the_backends_up_by_the_name_of_their_headless_service():
    (port,) = one("Service", "llm")["spec"]["ports"]
    assert "--discover=dns://llm:%d" % port["port"] in container("llm-balancer")["command"]
    assert one("Service", "llm")["spec"]["clusterIP"] == "None"


def test_probes_and_scaling_ask_for_what_there_is(start):
    running = start("balancer.py", "--child", "--port=0", "--backends=0")
    url = running.wait_for_event("listening")["url"]
    probes = {"readinessProbe": 503, "livenessProbe": 200}  # no backend: not ready, but alive
    for kind, status in probes.items():
        path = container("llm-balancer")[kind]["httpGet"]["path"]
        assert path == container("llm")[kind]["httpGet"]["path"]
        assert call(url + path).status == status
    assert container("llm")["startupProbe"]["httpGet"]["path"] == "/health"
    metrics = [each["object"]["metric"]["name"] for each in one("HorizontalPodAutoscaler", "llm")["spec"]["metrics"]]
    told = call(url + pod("llm-balancer")["metadata"]["annotations"]["prometheus.io/path"]).body.decode()
    assert all("\n%s 0\n" % name in told for name in metrics)
