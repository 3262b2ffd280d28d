#!/usr/bin/env bash
# Build the wheel, install it into an environment of its own and use it from an empty folder:
#   scripts/try_wheel.sh [PYTHON]
# The environment takes the libraries of PYTHON (.venv/bin/python) and nothing of this checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(readlink -f "$(dirname "${1:-.venv/bin/python}")")/$(basename "${1:-.venv/bin/python}")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$python" -m hatchling build --target wheel --directory "$folder/dist" >/dev/null
"$python" -m venv --without-pip "$folder/venv"
site=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$python" -m pip --quiet --python "$folder/venv/bin/python" install --no-deps --no-index "$folder"/dist/*.whl
list() { (cd "$site" && find . -type f -not -path '*/__pycache__/*' | sort); }
list >"$folder/before"

mkdir "$folder/work"
cd "$folder/work"
unset PYTHONPATH ET_DATA_DIR ET_RUNS_DIR
if "$folder/venv/bin/et-train" experiment=demo_graphs 2>"$folder/error"; then
    echo "et-train ran without its libraries" >&2
    exit 1
fi
[ "$(wc -l <"$folder/error")" -eq 1 ] && grep --quiet "pip install 'energy-transformer\[all\]'" "$folder/error"

# Where PYTHON finds its libraries; a path file of this checkout is not read from PYTHONPATH.
PYTHONPATH=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
export PYTHONPATH OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$folder/venv/bin/python" - "$site" <<'PYTHON'
import sys

import et
import et.core
import et.integrations.pyg

assert et.__file__.startswith(sys.argv[1]), et.__file__
heavy = {"hydra", "pytorch_lightning", "torch_geometric", "timm", "scipy", "sklearn", "pandas"} & set(sys.modules)
assert not heavy, f"et.core and EnergyConv import {heavy}"
PYTHON
# An experiment without a file: composed by the Hydra plugin of the wheel.
"$folder/venv/bin/et-train" --cfg job experiment=demo_graphs_gin >"$folder/composed"
grep --quiet '^name: demo_graphs_gin$' "$folder/composed"
for command in et-evaluate et-complete et-tables; do
    "$folder/venv/bin/$command" --help >/dev/null
done
# What these commands call, in one process: importing the libraries takes longer than the work.
"$folder/venv/bin/python" - <<'PYTHON' | tee "$folder/trained"
import glob
import os
import sys

from hydra.core.global_hydra import GlobalHydra

from et import commands


def run(command, *arguments):
    sys.argv = [f"et-{command.__name__}", *arguments]
    try:
        command()
    except SystemExit as end:
        assert not end.code, (sys.argv, end.code)
    GlobalHydra.instance().clear()


run(commands.train, "experiment=demo_graphs", "trainer.max_epochs=1", "trainer.accelerator=cpu", "callbacks.progress=false")
(result,) = glob.glob("runs/demo_graphs/*/result.json")
run(commands.evaluate, f"run={os.path.dirname(result)}", "device=cpu", "progress=false")
run(commands.tables, "2", "--runs", "runs")
PYTHON
grep --quiet "^  et-evaluate run=runs/demo_graphs/" "$folder/trained"
test -f experiments/table02/table.md

list >"$folder/after"
diff "$folder/before" "$folder/after" || { echo "a command wrote into site-packages" >&2; exit 1; }
echo "the wheel works"
