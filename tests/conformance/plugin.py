"""A plugin for pytest, with which llama-server's own tests run without a network: their files stay as they are.

The models that they would download give way to the local ones of models.py; a test that needs another model, or any
download, is skipped. No test may take longer than SECONDS. CONFORMANCE_MODELS holds {name: path} as JSON.
"""

import contextlib
import json
import os
import signal
import sys
import types

import pytest

SECONDS = 120
_OURS = {  # what llama-server's tests name, by Hugging Face's repository and file: what stands in for it
    ("ggml-org/test-model-stories260K", None): "stories",
    ("ggml-org/models", "tinyllamas/stories260K.gguf"): "stories",
    ("ggml-org/test-model-stories260K-infill", None): "infill",
    ("ggml-org/models", "bert-bge-small/ggml-model-f16.gguf"): "bert",
    ("ggml-org/models", "jina-reranker-v1-tiny-en/ggml-model-f16.gguf"): "ranker",
}


def _no_download(url, *args, **kwargs):
    pytest.skip("it would download %s" % url)


def _stand_in(name, **members):
    """Let a package that is needed for downloads alone be found, whether or not it is installed."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)


_stand_in("wget", download=_no_download)
_stand_in("filelock", FileLock=contextlib.nullcontext)

import requests  # noqa: E402
import utils  # noqa: E402  llama-server's, found by PYTHONPATH


class TooSlow(BaseException):
    """A test has taken too long. No `except Exception` of a test's may catch it."""


def _local(server):
    """Let a server load the local model that stands in for its own; skip the test where there is none."""
    name = _OURS.get((server.model_hf_repo, server.model_hf_file))
    if name is None:
        pytest.skip("it needs the model %s %s" % (server.model_hf_repo, server.model_hf_file or ""))
    server.model_file = json.loads(os.environ["CONFORMANCE_MODELS"])[name]
    server.model_hf_repo = server.model_hf_file = None
    server.offline = False


_start, _get = utils.ServerProcess.start, requests.get


def start(self, *args, **kwargs):
    """Start a server as its test wants it, with one thread: other tests run beside."""
    if self.model_hf_repo:
        _local(self)
    self.n_threads = self.n_threads or 1
    return _start(self, *args, **kwargs)


def get(url, *args, **kwargs):
    """Get what is on this machine."""
    if not url.startswith(("http://127.0.0.1", "http://localhost", "http://[::1]")):
        _no_download(url)
    return _get(url, *args, **kwargs)


utils.ServerProcess.start = start
utils.ServerPreset.load_all = staticmethod(lambda: None)
utils.download_file = _no_download
requests.get = get


def _ring(number, frame):
    raise TooSlow("more than %d s" % SECONDS)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item):
    """Interrupt a test that takes too long."""
    signal.signal(signal.SIGALRM, _ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
