#!/usr/bin/env bash
# The README's first command: installs the project into ./.venv and trains two generations on generated speech, on CPUs.
# Start it again to go on after an interruption. Further arguments go to tf_rnnt_kd.train.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

ensure_environment .venv constraints.txt synthesis
echo "for other commands: source .venv/bin/activate; python -m tf_rnnt_kd lists them"
exec .venv/bin/python -m tf_rnnt_kd.train --config configs/quickstart.gin --work_dir runs/quickstart "$@"
