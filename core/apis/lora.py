"""LoRA adapters, as llama.cpp's server has them: their list, and how much of each goes with requests that name none.

GET  /lora-adapters      [{"id", "path", "scale", …}]
POST /lora-adapters      [{"id", "scale"}]: the others' scales become 0

A request names its own by the field `lora`, in the same form, or by the model's name MODEL:ADAPTER (host.py).
"""

from typing import Any, List, Tuple

from core.apis.endpoint import Endpoint
from core.apis.scales import read_scales
from core.http.messages import Request, json_reply
from core.http.routing import Route
from core.jsonbody import read_value
from core.models import adapter_facts
from core.settings import EngineSettings


def described(settings: EngineSettings, scales: Tuple[float, ...]) -> List[Any]:
    """Return the adapters as GET /lora-adapters lists them."""
    listed = []
    for number, (adapter, scale) in enumerate(zip(settings.adapters, scales)):
        facts = adapter_facts(adapter.path)
        known = {"id": number, "name": adapter.name, "path": adapter.path, "scale": scale}
        listed.append(dict(known, task_name=facts["task_name"], prompt_prefix=facts["prompt_prefix"]))
    return listed


def routes(endpoint: Endpoint) -> List[Route]:
    """Return the routes."""
    engine = endpoint.host.engine

    def listed(request: Request) -> Any:
        """GET /lora-adapters."""
        return json_reply(described(engine.settings, engine.lora_scales))

    def change(request: Request) -> Any:
        """POST /lora-adapters. Raises APIError 400."""
        wanted = read_value(request.body)
        engine.lora_scales = read_scales(wanted, len(engine.lora_scales), "body")
        return json_reply({"success": True})

    return [Route("GET", "/lora-adapters", listed), Route("POST", "/lora-adapters", change)]
