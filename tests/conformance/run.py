#!/usr/bin/env python3
"""llama.cpp's server's own tests against backend.py: does what was written for llama-server run unchanged?

    python tests/conformance/run.py                        all of them: three minutes on two cores
    python tests/conformance/run.py completion security    these files only
    python tests/conformance/run.py --show completion      with what each failing test says

The tests are not copied: they stand in llama-cpp-python's source distribution, which pip fetches once into
~/.cache/comeapi; LLAMA_CPP=DIR names another vendor/llama.cpp. Where it can't be had, nothing is tested, and that is
said. What is compared:

    passes.txt    the tests that llama-server itself passes, with the same models
    kept.txt      those of them that fail here, each with the reason why

Anything else that fails, and anything in kept.txt that passes, ends this with status 1. backend.py is started with the
command lines that the tests have for llama-server, unchanged. In the environment are the options that give
llama-server's meaning where ours is another one (core/README.md has them).
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree

import models

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
VERSION = "0.3.36"
WORKERS = 2
FIRST_PORT = int(os.environ.get("PORT", "28090"))
THEIR_WAY = {  # options that give llama-server's meaning
    "COMEAPI_SHARE_CTX": "1",
    "COMEAPI_FLASH_ATTN": "on",
    "COMEAPI_DRAW": "llama.cpp",
    "COMEAPI_CORS_ORIGIN": "*",
    "COMEAPI_DRAIN_TIMEOUT": "1",  # their tests wait 5 s for a server's end
}


def main():
    """Run the tests, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="*")
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args()
    cache = os.path.join(os.path.expanduser("~"), ".cache", "comeapi")
    llama = os.environ.get("LLAMA_CPP") or source(cache)
    if not llama:
        print("conformance: skipped, since llama-cpp-python's source distribution can't be had")
        return 0
    passes = [line for line in lines("passes.txt") if not asked.files or file_of(line) in asked.files]
    kept = dict(line.split(" | ", 1) for line in lines("kept.txt"))
    with tempfile.TemporaryDirectory() as work:
        results = run(llama, sorted({file_of(line) for line in passes}), cache, work)
    return report(passes, kept, results, asked.show)


def lines(name):
    """Return the lines of a list, without comments."""
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file if line.strip() and not line.startswith("#")]


def file_of(test):
    """Return the short name of a test's file: completion of test_completion::test_x."""
    return test.partition("::")[0][len("test_") :]


def source(cache):
    """Return llama.cpp's folder in the source distribution, fetched once; None where it can't be had."""
    folder = os.path.join(cache, "llama-cpp-python-%s-source" % VERSION)
    if not os.path.isdir(folder):
        with tempfile.TemporaryDirectory() as work:
            command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
            command += ["--no-binary", ":all:", "--dest", work, "llama-cpp-python==" + VERSION]
            if subprocess.run(command).returncode:
                return None
            with tarfile.open(os.path.join(work, os.listdir(work)[0])) as archive:
                archive.extractall(os.path.join(work, "out"))
            os.makedirs(cache, exist_ok=True)
            unpacked = os.path.join(work, "out", os.listdir(os.path.join(work, "out"))[0])
            subprocess.run(["cp", "-r", unpacked, folder], check=True)
    return os.path.join(folder, "vendor", "llama.cpp")


def run(llama, files, cache, work):
    """Run files of tests, some at a time; return {test: what went wrong, or an empty text}."""
    server = os.path.join(work, "llama-server")
    with open(server, "w", encoding="utf-8") as script:
        script.write('#!/bin/sh\nexec "%s" "%s" "$@"\n' % (sys.executable, os.path.join(ROOT, "backend.py")))
    os.chmod(server, 0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COMEAPI_", "LLAMA_"))}
    made = models.make(os.path.join(cache, "conformance-models"), os.path.join(llama, "models"))
    tests = os.path.join(llama, "tools", "server", "tests")
    environment.update(
        THEIR_WAY, LLAMA_SERVER_BIN_PATH=server, CONFORMANCE_MODELS=json.dumps(made), PYTHONDONTWRITEBYTECODE="1",
        PYTHONPATH=os.pathsep.join([HERE, tests]),
    )  # fmt: skip
    ports = [FIRST_PORT + 10 * index for index in range(WORKERS)]
    results = {}
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:

        def one(name):
            port = ports.pop()
            try:
                return run_file(name, tests, dict(environment, PORT=str(port)), os.path.join(work, name + ".xml"))
            finally:
                ports.append(port)

        for found in pool.map(one, files):
            results.update(found)
    return results


def run_file(name, tests, environment, output):
    """Run one file of tests in llama.cpp's tree."""
    command = [sys.executable, "-m", "pytest", "-p", "plugin", "-p", "no:cacheprovider", "-p", "no:randomly", "-q"]
    command += ["-m", "not slow", "--tb=short", "--junitxml", output, "unit/test_%s.py" % name]
    done = subprocess.run(
        command, cwd=tests, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if not os.path.exists(output):
        sys.exit("conformance: %s could not be run:\n%s" % (name, done.stdout.decode("utf-8", "replace")[-4000:]))
    results = {}
    for case in xml.etree.ElementTree.parse(output).getroot().iter("testcase"):
        test = "%s::%s" % (case.get("classname").split(".")[-1], case.get("name").encode("unicode_escape").decode())
        wrong = [child for child in case if child.tag in ("failure", "error", "skipped")]
        results[test] = " ".join((wrong[0].get("message") or wrong[0].tag).split()) if wrong else ""
    return results


def report(passes, kept, results, show):
    """Print what passes and what does not; return 0 where that is as it is expected to be."""
    failed = {test: results.get(test, "it was not run") for test in passes if results.get(test, "it was not run")}
    new = {test: why for test, why in failed.items() if test not in kept}
    better = [test for test in passes if test in kept and test not in failed]
    for test, why in failed.items() if show else new.items():
        print("FAILED %s: %s" % (test, why[:400]))
    for test in better:
        print("PASSES, though kept.txt has it: %s" % test)
    files = sorted({file_of(test) for test in passes})
    for name in files:
        own = [test for test in passes if file_of(test) == name]
        print("%-18s %3d of %3d" % (name, sum(test not in failed for test in own), len(own)))
    print("conformance: %d of %d pass; %d fail for reasons that kept.txt gives, %d others" % (
        len(passes) - len(failed), len(passes), len(failed) - len(new), len(new)
    ))  # fmt: skip
    return 1 if new or better else 0


if __name__ == "__main__":
    sys.exit(main())
