#!/usr/bin/env bash
# Every check of the project, in ./.venv. Arguments go to pytest (tools/test.sh tests/losses -k padding -m "not slow");
# the coverage bar of setup.cfg holds for the whole suite, so it is checked only without arguments.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/environment.sh

ensure_environment .venv constraints.txt av,synthesis,serving,test
python=.venv/bin/python
timed "lint (ruff check)" "$python" -m ruff check --output-format concise
timed "format (ruff format --check)" "$python" -m ruff format --check
timed "layers (lint-imports)" "$python" -c "from importlinter import cli; cli.lint_imports_command()" --no-logo
if [ $# -gt 0 ]; then
  exec "$python" -m pytest "$@"
fi
echo "tests (pytest, two processes)"
exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term
