"""Stored answers: which backends are asked for one, and whom the balancer tells whose a request is."""

import json

import pytest
from conftest import call, wait_until

from balancer import Balancer, Config
from core.balancing.backends import Backend
from core.balancing.elsewhere import may_be_elsewhere, neighbours
from core.balancing.specs import Spec
from core.errors import APIError
from core.http import server
from core.http.messages import Reply, error_reply, json_reply
from core.http.routing import Route
from core.http.server import Service
from core.owners import NOBODY, OWNER, owner_of

ONE = "/v1/responses/resp_1"


def refusal(status, code):
    return error_reply(APIError(status, "x", code))


@pytest.mark.parametrize(
    "path, reply, wanted",
    [
        (ONE, refusal(404, "response_not_found"), True),
        (ONE, Reply(b"Not Found", 404), True),  # of a server that has no such path
        ("/v1/responses", refusal(400, "previous_response_not_found"), True),
        ("/v1/responses", refusal(400, "item_not_found"), True),
        ("/v1/responses", refusal(400, "invalid_value"), False),
        ("/v1/responses", Reply(b"{", 400), False),
        (ONE, json_reply({"error": None}), False),
        (ONE, refusal(503, "response_not_found"), False),
        ("/v1/chat/completions", refusal(404, "model_not_found"), False),
    ],
)
def test_what_another_machine_may_have(path, reply, wanted):
    assert may_be_elsewhere(path, reply) is wanted


def test_one_backend_speaks_for_those_of_its_machine():
    urls = ["http://a:1", "http://a:2", "http://b:1", "http://a:3"]
    backends = [Backend(Spec(url), number, lambda: 0.0) for number, url in enumerate(urls)]
    backends[3].foreign = True  # it shares a folder with nobody
    assert neighbours(backends[0], backends) == backends[:2]
    assert neighbours(backends[3], backends) == backends[3:]


class StandIn:
    """A backend that answers 404 and notes whose it is told that a request is. `ours`: it says so at /health."""

    def __init__(self, ours):
        self.owners = []
        health = json_reply(dict({"status": "ok"}, **({"slots": 2} if ours else {})))
        self.service = Service(server.ServerConfig(), [Route("GET", "/health", lambda request: health)], self._answer)
        self.service.start()

    def _answer(self, request):
        if request.path.startswith(("/v1/responses", "/v1/chat")):
            self.owners.append(request.headers.get(OWNER))
        raise APIError(404, "It is not here.", "response_not_found")


@pytest.fixture
def system():
    stand_ins = [StandIn(ours=False), StandIn(ours=True), StandIn(ours=True)]
    urls = tuple(each.service.url for each in stand_ins)
    balancer = Balancer(Config(port=0, backend=urls, api_key=("alice",), carry_secret="x")).start()
    balancer.stand_ins = stand_ins
    wait_until(lambda: balancer.status()["healthy_backends"] == 3)
    yield balancer
    balancer.stop(0)
    for each in stand_ins:
        each.service.drain(0)


KEY = {"Authorization": "Bearer alice"}


def test_each_machine_is_asked_once_and_servers_of_others_are_not_told_the_owner(system):
    forged = dict(KEY, **{OWNER: "forged"})
    for method in ("GET", "DELETE"):
        assert call(system.url + ONE, headers=forged, method=method).status == 404
    foreign, first, second = (each.owners for each in system.stand_ins)
    assert foreign == [None] * 2  # a machine's neighbours that are not ours speak for themselves
    assert first + second == [owner_of("alice")] * 2


def test_only_requests_about_responses_have_an_owner(system):
    body = json.dumps({"messages": []}).encode()
    assert call(system.url + "/v1/chat/completions", body, KEY).status == 404
    assert [owner for each in system.stand_ins for owner in each.owners] == [None]


def test_all_who_need_no_key_are_one_owner():
    assert owner_of("") == NOBODY != owner_of("x")
