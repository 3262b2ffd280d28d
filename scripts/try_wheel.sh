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
"$folder/venv/bin/et-train" experiment=demo_graphs trainer.max_epochs=1 trainer.accelerator=cpu callbacks.progress=false | tee "$folder/trained"
grep --quiet "^  et-evaluate run=runs/demo_graphs/" "$folder/trained"
"$folder/venv/bin/et-evaluate" run="$(dirname runs/demo_graphs/*/result.json)" device=cpu progress=false
"$folder/venv/bin/et-tables" 2 --runs runs
test -f experiments/table02/table.md

list >"$folder/after"
diff "$folder/before" "$folder/after" || { echo "a command wrote into site-packages" >&2; exit 1; }
echo "the wheel works"
