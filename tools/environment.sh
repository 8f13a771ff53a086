# Sourced by the other scripts: the project's virtual environments, made once and renewed when the pins change.

# The newest supported Python on PATH, or $PYTHON. A name on PATH may be a shim without a Python behind it, so each is asked.
find_python() {
  local candidate found=""
  local -a candidates=(python3.13 python3.12 python3.11 python3 python)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
    found+="$("$candidate" -c 'import sys; print(" %s is %d.%d;" % ((sys.argv[1],) + sys.version_info[:2]))' \
      "$candidate" 2>/dev/null || true)"
  done
  echo "error: this needs Python 3.11, 3.12 or 3.13 with its venv module;${found:- none was found${PYTHON:+ at $PYTHON};}" \
    "name one by PYTHON=/path/to/python" >&2
  return 1
}

# timed LABEL COMMAND...: one line with the seconds it took; what the command says is shown only when it fails.
timed() {
  local label=$1 log start=$SECONDS status=0
  shift
  log=$(mktemp)
  printf '%s ... ' "$label"
  "$@" >"$log" 2>&1 || status=$?
  if [ "$status" -eq 0 ]; then
    echo "$((SECONDS - start)) s"
  else
    echo "failed after $((SECONDS - start)) s"
    cat "$log" >&2
  fi
  rm -f "$log"
  return "$status"
}

# uv installs in a quarter of pip's time, but reads none of pip's settings (mirrors, proxies): where it fails, pip decides.
install_with() {
  local python=$1 quiet=(--quiet --disable-pip-version-check)
  shift
  if "$python" -m pip install "${quiet[@]}" uv && "$python" -m uv pip install --quiet --python "$python" "$@"; then
    return
  fi
  "$python" -m pip install "${quiet[@]}" --prefer-binary --no-compile "$@"
}

# ensure_environment FOLDER CONSTRAINTS EXTRAS: FOLDER/bin/python runs the project, editable, with these pins and extras.
ensure_environment() {
  local folder=$1 constraints=$2 extras=$3 python key stamp
  if ! "$folder/bin/python" -c '' >/dev/null 2>&1; then
    python=$(find_python) || return
    timed "making $folder with $("$python" --version)" "$python" -m venv --clear "$folder" || return
  fi
  stamp="$folder/.installed-$extras"
  # The path counts because an editable install points at it.
  key="$(cat "$constraints" setup.cfg pyproject.toml | cksum) $PWD"
  [ "$key" != "$(cat "$stamp" 2>/dev/null)" ] || return 0
  timed "installing tf_rnnt_kd[$extras] with the pins of $constraints" \
    install_with "$folder/bin/python" --editable ".[$extras]" --constraint "$constraints" || return
  printf '%s\n' "$key" >"$stamp"
}
