"""Which packages may import which, read from the syntax trees of et/ (docs/explanation/code.md)."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "explanation" / "code.md"
_spec = spec_from_file_location("draw_imports", ROOT / "scripts" / "draw_imports.py")
draw_imports = module_from_spec(_spec)
sys.modules["draw_imports"] = draw_imports
_spec.loader.exec_module(draw_imports)

TASKS = draw_imports.TASKS
MODELS = {"core", "baselines"}  # and et.TASK.model, et.TASK.lit


@pytest.fixture(scope="module")
def imports():
    return draw_imports.imports(ROOT)


def crossing(imports, sources, targets):
    """Imports from a package of ``sources`` into one of ``targets``, as readable texts."""
    package = draw_imports.package
    return [
        f"{i.source} imports {i.target}"
        for i in imports
        if package(i.source) in sources and package(i.target) in targets and package(i.source) != package(i.target)
    ]


def test_every_package_is_read(imports):
    folders = {path.name for path in (ROOT / "et").iterdir() if (path / "__init__.py").is_file()}
    modules = {path.stem for path in (ROOT / "et").glob("*.py")}  # the entry points
    assert {draw_imports.package(i.source) for i in imports} - modules == folders


def test_the_page_lists_the_imports_of_each_package(imports):
    pairs = {(i.late, draw_imports.package(i.source), draw_imports.package(i.target)) for i in imports}
    top, late = ({pair[1:] for pair in pairs if pair[0] is when} for when in (False, True))
    rows = re.findall(r"^\| (`et/.*?) \|.*?\|(.*?)\|(.*?)\|$", PAGE.read_text(), re.MULTILINE)
    listed = [(re.findall(r"`et/(\w+)`", row[0]), *(re.findall(r"`(\w+)`", part) for part in row[1:])) for row in rows]
    packages = {name for names, _, _ in listed for name in names}
    assert packages == {source for source, _ in top | late if (ROOT / "et" / source).is_dir()}
    for names, imported, inside in listed:
        for pairs, column in ((top, imported), (late - top, inside)):
            found = {target for source, target in pairs if source in names} - {"utils", *names}
            assert found == set(column), f"docs/explanation/code.md: {', '.join(names)}"


def test_core_imports_nothing_of_the_project(imports):
    everything = {draw_imports.package(i.target) for i in imports}
    assert crossing(imports, {"core"}, everything) == []


def test_utils_import_nothing_else_of_the_project(imports):
    everything = {draw_imports.package(i.target) for i in imports}
    assert crossing(imports, {"utils"}, everything) == []


def test_tasks_never_import_each_other_nor_baselines(imports):
    assert crossing(imports, set(TASKS), {*TASKS, "baselines"}) == []


def top_level(imports):
    """For each module the modules that importing it loads directly."""
    loads = {}
    for i in imports:
        if not i.late:
            loads.setdefault(i.source, set()).add(i.target)
    return loads


def reachable(start, loads):
    reached, left = set(), [start]
    while left:
        new = loads.get(left.pop(), set()) - reached
        reached |= new
        left += new
    return reached


def is_model_code(module):
    return draw_imports.package(module) in MODELS or module.split(".")[-1] in ("model", "lit")


def test_results_import_no_model_code(imports):
    """Neither directly, at the top or late, nor through what importing a module of results loads."""
    ours = {i.source for i in imports if draw_imports.package(i.source) == "results"}
    loads = top_level(imports)
    reached = {i.target for i in imports if i.source in ours}.union(*(reachable(module, loads) for module in ours))
    assert {module for module in reached if is_model_code(module)} == set()


def test_no_module_loads_itself(imports):
    loads = top_level(imports)
    assert [module for module in loads if module in reachable(module, loads)] == []


def test_a_wrong_import_is_found(tmp_path):
    (tmp_path / "et" / "core").mkdir(parents=True)
    (tmp_path / "et" / "runs").mkdir()
    (tmp_path / "et" / "runs" / "record.py").write_text("")
    (tmp_path / "et" / "core" / "norm.py").write_text("def f():\n    from et.runs import record, missing\n")
    found = draw_imports.imports(tmp_path)
    assert found == [("et.core.norm", "et.runs.record", True), ("et.core.norm", "et.runs", True)]
    assert crossing(found, {"core"}, {"runs"}) == [
        "et.core.norm imports et.runs.record",
        "et.core.norm imports et.runs",
    ]


def test_the_drawing_is_of_these_imports(imports):
    drawn = draw_imports.DRAWING.read_text()
    assert draw_imports.drawing(imports) == drawn, "python scripts/draw_imports.py draws it again"
