"""The settings of a balancer that comeapi.py passes on to it, each with its default, check and help text."""

from dataclasses import dataclass
from typing import Tuple

from core.balancing.policies import POLICIES
from core.names import check_alias
from core.options import between, setting
from core.settings import one_of


@dataclass(frozen=True)
class RelaySettings:
    """How a balancer treats its backends."""

    health_interval: float = setting(
        30.0, "seconds between probes of a backend that is up", "health", check=between(0.1, 3600, float)
    )
    health_timeout: float = setting(5.0, "seconds a probe may take", "health", check=between(0.1, 600, float))
    connect_timeout: float = setting(3.0, "seconds a connection may take", "health", check=between(0.1, 600, float))
    slow_start: float = setting(
        10.0,
        "seconds over which a backend that has come back gets its share of the requests again",
        "health",
        check=between(0, 3600, float),
    )
    policy: str = setting(
        "round-robin",
        "which backend takes a request: round-robin, least-busy, or prefix (the one that has seen the prompt's "
        "beginning, unless it is busier than the others)",
        "routing",
        check=one_of(*POLICIES),
    )
    alias: Tuple[str, ...] = setting(
        (),
        "another name for a model, such as gpt-4o=qwen3-4b.Q4_K_M.gguf; *=MODEL for any name that no model has; "
        "repeatable",
        "routing",
        many=True,
        check=check_alias,
        metavar="NAME=MODEL",
    )
    timeout: float = setting(
        600.0, "seconds without a byte from a backend, or a stream's data, before 504", "limits",
        check=between(0.1, 86400, float),
    )  # fmt: skip
    queue_size: int = setting(
        1024, "requests that may wait for a free slot; more get 429", "limits", check=between(0, 1 << 20)
    )
    queue_timeout: float = setting(
        300.0, "seconds that a request may wait for a free slot before 503", "limits", check=between(0, 86400, float)
    )
    recovery_timeout: float = setting(
        30.0,
        "seconds that a request waits while no backend is up, but may be again, before 503",
        "limits",
        check=between(0, 86400, float),
    )
    retries: int = setting(
        3,
        "how often a request is sent again after a backend refused it (502, 503) or broke off",
        "limits",
        check=between(0, 100),
    )
    migrations: int = setting(
        3,
        "how often an answer that a client has seen a part of is carried on by another backend",
        "limits",
        check=between(0, 1000),
    )
    one_core: str = setting(
        "auto",
        "stay on one core, chosen by the port: Python's threads run one at a time, and changing cores costs them half "
        "of their speed; auto: on Linux, without TLS",
        "other",
        check=one_of("auto", "on", "off"),
    )
    retry_budget: float = setting(
        0.2,
        "share of the requests that may be sent again for being refused, beside the first ten",
        "limits",
        check=between(0, 10, float),
    )
