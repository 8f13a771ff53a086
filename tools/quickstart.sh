#!/usr/bin/env bash
# The README's first command: installs the project into ./.venv and trains two generations on generated speech, on CPUs.
# Start it again to go on after an interruption. Further arguments go to tf_rnnt_kd.train.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

ensure_environment .venv constraints.txt synthesis
.venv/bin/python -m tf_rnnt_kd.train --config configs/quickstart.gin --work_dir runs/quickstart "$@"
printf '\nnext: source .venv/bin/activate, and python -m tf_rnnt_kd for the commands\n'
