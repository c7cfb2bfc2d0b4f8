"""Who may import whom, and what nobody may: DESIGN's table, held by the syntax trees of all modules."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGES = ("policies", "daemon", "pipeline", "deploy")
ENGINES = {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx_bindings", "torch2trt", "torch_tensorrt", "tvm", "cuda"}
TRAINING = {"torch", "torchvision", "timm", "lightning", "pytorch_lightning", "ray"}
IMPURE = {
    "asyncio", "fcntl", "getpass", "glob", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "random",
    "secrets", "select", "shutil", "signal", "socket", "sqlite3", "subprocess", "tempfile", "threading", "time",
    "uuid", "warnings",
}  # fmt: skip
# What talks to Triton and its repository, and what that stands on.
DEPLOY_FOR_DAEMON = {
    "deploy.access", "deploy.artifact", "deploy.client", "deploy.config_pbtxt", "deploy.device", "deploy.durable",
    "deploy.engines", "deploy.fitness", "deploy.lifeline", "deploy.repository", "deploy.server", "deploy.specimens",
    "deploy.switch", "deploy.triton", "deploy.wire",
}  # fmt: skip
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources(package: str) -> list[Path]:
    return sorted(path for path in (CHECKOUT / package).rglob("*.py") if "__pycache__" not in path.parts)


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def module_name(file: Path) -> str:
    parts = list(file.relative_to(CHECKOUT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    place = CHECKOUT.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def named(node: ast.AST, file: Path) -> Iterator[str]:
    """The modules that an import statement names, in full; `from deploy import artifact` names deploy.artifact."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = module_name(file).split(".")
            parts = parts if file.name == "__init__.py" else parts[:-1]
            base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            yield full if is_module(full) else base
    elif isinstance(node, ast.Call) and called(node) in ("importlib.import_module", "import_module", "__import__"):
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def imports(file: Path, *, top_level: bool = False) -> set[str]:
    """Modules that a file imports anywhere, or when it is loaded (`top_level`: not in functions, not for types)."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if top_level and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if top_level and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            found.update(named(child, file))
            visit(child)

    visit(tree_of(file))
    return found


def roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def refused(package: str, never: set[str]) -> list[str]:
    return [
        f"{file.relative_to(CHECKOUT)} imports {name}"
        for file in sources(package)
        for name in sorted(imports(file))
        if name.partition(".")[0] in never
    ]


def test_the_packages_are_found() -> None:
    assert {"daemon.loop", "policies.facts", "deploy.repository"} <= {
        module_name(file) for package in PACKAGES for file in sources(package)
    }


def test_policies_import_the_standard_library_and_themselves_alone() -> None:
    allowed = (set(sys.stdlib_module_names) - IMPURE) | {"policies", "__future__"}
    for file in sources("policies"):
        assert roots(imports(file)) <= allowed, file


def test_policies_read_no_disk_and_no_clock() -> None:
    for file in sources("policies"):
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call):
                assert called(node) not in ("open", "print", "input", "eval", "exec"), (file, node.lineno)
                assert called(node).rpartition(".")[2] not in ("now", "today", "utcnow"), (file, node.lineno)


def test_pipeline_keeps_to_itself() -> None:
    assert refused("pipeline", {"daemon", "deploy", "benchmarks", "tests"}) == []


def test_deploy_keeps_to_itself() -> None:
    assert refused("deploy", {"daemon", "pipeline", "benchmarks", "tests"}) == []


def test_of_deploy_the_converter_that_takes_a_network_alone_loads_torch() -> None:
    found = {line.partition(" ")[0] for line in refused("deploy", TRAINING)}
    assert found == {"deploy/engines/torch2trt.py"}


@pytest.mark.parametrize("package", ["pipeline", "deploy"])
def test_of_the_policies_a_worker_knows_facts_and_job_alone(package: str) -> None:
    for file in sources(package):
        ours = {name for name in imports(file) if name.partition(".")[0] == "policies"}
        assert ours <= {"policies.facts", "policies.job"}, file


def test_the_daemon_imports_no_engine_and_no_training() -> None:
    assert refused("daemon", {"pipeline", "benchmarks", "tests"} | TRAINING | ENGINES) == []


def test_of_deploy_the_daemon_imports_what_talks_to_triton_alone() -> None:
    for file in sources("daemon"):
        ours = {name for name in imports(file) if name.partition(".")[0] == "deploy"}
        assert ours <= DEPLOY_FOR_DAEMON, file


def test_what_the_daemon_imports_of_deploy_loads_no_engine() -> None:
    waiting = {name for file in sources("daemon") for name in imports(file) if name.startswith("deploy.")}
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        place = CHECKOUT.joinpath(*name.split("."))
        file = place.with_suffix(".py") if place.with_suffix(".py").exists() else place / "__init__.py"
        loaded = imports(file, top_level=True)
        assert not roots(loaded) & (ENGINES | TRAINING), file
        waiting |= {other for other in loaded if other.startswith("deploy.") and is_module(other)} - seen
    assert "deploy.repository" in seen


def test_a_running_daemon_has_loaded_neither_torch_nor_an_engine() -> None:
    heavy = sorted(TRAINING | ENGINES)
    code = f"import sys, daemon.loop, daemon.cli; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == []


ALL = [file for package in (*PACKAGES, "benchmarks") for file in sources(package)]


def test_nothing_imports_pickle() -> None:
    assert [str(file) for file in ALL if roots(imports(file)) & PICKLERS] == []


def test_nothing_is_unpickled() -> None:
    """numpy and torch unpickle what they load unless they are told not to."""
    for file in ALL:
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call):
                assert not wrongly_loaded(node), f"{file}:{node.lineno}: {ast.unparse(node)}"


def wrongly_loaded(node: ast.Call) -> bool:
    given = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
    name = called(node)
    if name in ("np.load", "numpy.load"):
        return given.get("allow_pickle") != "False"
    if name in ("torch.load", "torch.hub.load_state_dict_from_url") or name.endswith(".load_from_checkpoint"):
        return given.get("weights_only") != "True"
    if name.endswith(".fit") and "ckpt_path" in given:
        return given.get("weights_only") != "True"
    return name.rpartition(".")[2] in ("read_pickle", "to_pickle") or name == "torch.save"


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("np.load(file)", True),
        ("np.load(file, allow_pickle=True)", True),
        ("np.load(file, mmap_mode='r', allow_pickle=False)", False),
        ("torch.load(file)", True),
        ("torch.load(file, weights_only=True)", False),
        ("trainer.fit(model, ckpt_path=file)", True),
        ("trainer.fit(model, ckpt_path=file, weights_only=True)", False),
        ("json.load(file)", False),
    ],
)
def test_the_check_for_pickles_tells_the_cases(code: str, wrong: bool) -> None:
    call = ast.parse(code, mode="eval").body
    assert isinstance(call, ast.Call)
    assert wrongly_loaded(call) is wrong
