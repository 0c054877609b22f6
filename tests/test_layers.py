"""The architecture, held by reading the source: who may import whom, and what may stand where."""

import ast
import functools
import glob
import os
import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAMS = {"comeapi", "backend", "balancer"}
TOP = {
    "comeapi.py", "backend.py", "balancer.py", "core", "models", "tests", "setup.cfg", "README.md", ".gitignore",
    "LICENSE", ".ci",
}  # fmt: skip
# What a package may reach, itself and the files beside it included, through whatever it imports.
GROUND = {"errors", "bounds", "jsonbody", "options", "loops", "fields", "models", "hardware", "settings", "process"}
GROUND |= {"opening", "output", "names", "carriage", "owners", "cookie", "memory", "needs", "terminal", "llamaserver"}
GROUND |= {"board", "tuned", "notify", "handing", "places", "version", "adapters"}
ASKED = {"ask", "sampling"}  # what an engine may be asked: those who ask need not know of one
LAW = {
    "http": {"errors", "options"},
    "balancing": GROUND | {"http"},
    "page": {"errors", "http", "options"},
    "system": GROUND | {"http", "balancing"},
    "grammar": {"errors"},
    "chat": GROUND | ASKED | {"grammar"},
    "engine": GROUND | ASKED | {"grammar"},
    "apis": GROUND | ASKED | {"http", "chat", "engine", "grammar"},
}
ALLOWED_OUTSIDE = {"llama_cpp", "numpy", "jinja2"}


def product_files():
    found = list(glob.glob(os.path.join(ROOT, "*.py")))
    found += glob.glob(os.path.join(ROOT, "core", "**", "*.py"), recursive=True)
    return sorted(os.path.relpath(path, ROOT) for path in found)


def module_name(path):
    return path[: -len(".py")].replace(os.sep, ".")


MODULES = {module_name(path): path for path in product_files()}


@functools.lru_cache(maxsize=None)
def imports(path):
    """Return the modules that a file imports, wherever it does: whole names."""
    with open(os.path.join(ROOT, path), encoding="utf-8") as source:
        tree = ast.parse(source.read())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "%s uses a relative import" % path
            names |= {node.module} | {"%s.%s" % (node.module, alias.name) for alias in node.names}
    return names


def roots(path):
    return {name.split(".")[0] for name in imports(path)}


def standard_library():
    names = getattr(sys, "stdlib_module_names", None)
    if names:
        return set(names)
    folder = os.path.dirname(os.__file__)  # Python 3.8 and 3.9 have no list
    files = os.listdir(folder) + os.listdir(os.path.join(folder, "lib-dynload"))
    return {name.split(".")[0] for name in files} | set(sys.builtin_module_names)


@pytest.mark.parametrize("path", list(product_files()))
def test_everything_that_runs_is_the_standard_library_and_llama_cpp(path):
    foreign = roots(path) - standard_library() - PROGRAMS - {"core"} - ALLOWED_OUTSIDE
    assert not foreign


@pytest.mark.parametrize("path", [path for path in product_files() if path.startswith("core")])
def test_nothing_in_core_imports_a_program(path):
    assert not roots(path) & PROGRAMS


def neighbours(path):
    """Return the project's modules that a file imports."""
    return {name for name in imports(path) if name in MODULES}


def reach(start):
    """Return all the project's modules that some modules import, directly or through others."""
    known, left = set(), list(start)
    while left:
        module = left.pop()
        if module not in known:
            known.add(module)
            left += neighbours(MODULES[module])
    return known


def room(module):
    """Return a module's package in core, or its own name where it stands in core itself."""
    return module.split(".")[1]


@pytest.mark.parametrize("package", sorted(LAW))
def test_a_package_reaches_only_what_the_law_allows(package):
    inside = [module for module in MODULES if module.startswith("core.%s." % package)]
    assert inside
    assert {room(module) for module in reach(inside)} - {package} <= LAW[package]


def test_the_server_and_the_client_share_one_parser_of_heads_and_one_of_chunks():
    shared = reach(["core.http.connection"]) & reach(["core.http.client"])
    assert {"core.http.sockets", "core.http.heads", "core.http.chunks"} <= shared


def test_dialects_know_of_the_engine_what_it_tells_and_nothing_of_its_work():
    dialects = ["core.apis." + name for name in ("anthropic", "openai", "responses", "ollama", "generate", "llamacpp")]
    direct = {module for name in dialects for module in neighbours(MODULES[name]) if room(module) == "engine"}
    allowed = {"defaults", "outcome"}
    allowed.add("generation")  # GET /slots describes those that run
    assert direct <= {"core.engine." + name for name in allowed}


def test_no_file_imports_itself_through_others():
    assert not [module for module in MODULES if module in reach(neighbours(MODULES[module]))]


def test_the_errors_import_nothing_of_the_project():
    assert not roots("core/errors.py") & (PROGRAMS | {"core"})


def test_only_one_package_imports_llama_cpp():
    users = {path for path in product_files() if "llama_cpp" in roots(path)}
    assert {os.path.dirname(path) for path in users} == {os.path.join("core", "engine", "llama")}


def test_no_program_imports_another():
    for program in PROGRAMS:
        assert not roots(program + ".py") & PROGRAMS


def test_the_balancer_and_the_scheduler_know_nothing_of_the_engine():
    for module in ("balancer", "core.engine.scheduler"):
        known = reach([module])
        assert not [each for each in known if each == "core.engine.engine" or "core.engine.llama" in each], module


@pytest.mark.parametrize("module", ["balancer", "comeapi"])
def test_importing_the_balancer_loads_no_native_package(module):
    code = "import sys, %s; print([n for n in ('llama_cpp', 'numpy', 'jinja2') if n in sys.modules])" % module
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, timeout=60, check=True)
    assert done.stdout.decode().strip() == "[]"


@pytest.mark.skipif(not os.path.exists(os.path.join(ROOT, ".git")), reason="git knows which files are the project's")
def test_only_what_the_design_names_stands_at_the_top():
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]  # whoever the files belong to
    listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout.decode()
    assert {name.split("/")[0] for name in listed.split("\0") if name} <= TOP


def test_every_public_thing_has_a_docstring():
    missing = []
    for path in product_files():
        with open(os.path.join(ROOT, path), encoding="utf-8") as source:
            tree = ast.parse(source.read())
        missing += ["%s: %s" % (path, name) for name in undocumented(tree)]
    assert not missing


def overloads(node):
    """Whether a function only tells types of another one that follows it."""
    return any(isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list)


def undocumented(tree):
    if not ast.get_docstring(tree):
        yield "the module"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and not overloads(node):
            if not ast.get_docstring(node):
                yield node.name
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if (
                    isinstance(inner, ast.FunctionDef)
                    and not inner.name.startswith("_")
                    and not ast.get_docstring(inner)
                ):
                    yield "%s.%s" % (node.name, inner.name)
