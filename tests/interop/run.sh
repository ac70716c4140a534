#!/usr/bin/env bash
# Other tools read what we write, and we read what they write: tests/interop/TOOL/test_*.py, run in
# an environment with that tool's own packages (TOOL/requirements.txt).
#
#     tests/interop/run.sh [TOOL...]
#
# The packages of PYTHON (default: .venv/bin/python) lie behind those of the tool, so that tests may
# import tagclip. INTEROP_HOME keeps the environments for the next run; without it they are removed.
# Ends with 1 if a test failed. A tool that cannot be installed is named, with the reason.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
PYTHON=${PYTHON:-$root/.venv/bin/python}
export PIP_DISABLE_PIP_VERSION_CHECK=1 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

if [ -z "${INTEROP_HOME:-}" ]; then
	INTEROP_HOME=$(mktemp -d)
	trap 'rm -rf "$INTEROP_HOME"' EXIT
fi
mkdir -p "$INTEROP_HOME" && INTEROP_HOME=$(cd "$INTEROP_HOME" && pwd) || exit 1

# Makes the environment of a tool, unless it is there with these packages.
install() {
	local tool=$1 venv=$INTEROP_HOME/$1
	cmp -s "$here/$tool/requirements.txt" "$venv/.installed" && return
	"$PYTHON" -m venv --clear "$venv" || return
	"$PYTHON" -c 'import sys; print(*(p for p in sys.path if "site-packages" in p), sep="\n")' \
		>"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/zz.pth"
	"$venv/bin/python" -m pip install --quiet -r "$here/$tool/requirements.txt" || return
	cp "$here/$tool/requirements.txt" "$venv/.installed"
}

passed=0 failed=0 missing=0 table=()
if [ $# -eq 0 ]; then
	for file in "$here"/*/requirements.txt; do set -- "$@" "$(basename "$(dirname "$file")")"; done
fi
for tool in "$@"; do
	log=$INTEROP_HOME/$tool.log
	if [ ! -f "$here/$tool/requirements.txt" ]; then
		echo "$tool: found no $here/$tool/requirements.txt, expected one; mend the name" >&2
		exit 2
	fi
	versions=$(grep -v '^#' "$here/$tool/requirements.txt" | paste -sd ' ')
	if ! install "$tool" >"$log" 2>&1; then
		missing=$((missing + 1))
		table+=("$tool|could not be installed|$(grep -v '^ *$' "$log" | tail -n 1 | cut -c 1-160)")
	# A conftest.py above would import what the other environments have.
	elif (cd "$root" && PYTHONPATH=$root "$INTEROP_HOME/$tool/bin/python" -m pytest -o addopts= \
		-p no:cacheprovider --confcutdir "$here/$tool" -rs "$here/$tool") >"$log" 2>&1; then
		passed=$((passed + 1))
		table+=("$tool|passed|$versions: $(tail -n 1 "$log" | tr -d =)")
	else
		failed=$((failed + 1))
		cat "$log"
		table+=("$tool|failed|$versions: $(tail -n 1 "$log" | tr -d =)")
	fi
	printf '%s\n' "${table[-1]}"
	grep '^SKIPPED' "$log"
done
printf '\n%-16s %-24s %s\n' tool result "packages, tests"
for row in "${table[@]}"; do
	IFS='|' read -r tool result text <<<"$row"
	printf '%-16s %-24s %s\n' "$tool" "$result" "$text"
done
printf '\n%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$missing"
[ "$failed" -eq 0 ]
