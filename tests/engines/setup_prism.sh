#!/usr/bin/env bash
# Builds Prism, of the very version of the installed apache-beam, as .cache/engines/prism-VERSION. Again does nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."
fail() {
  echo "setup_prism.sh: $*" >&2
  exit 1
}

version=$("${PYTHON:-.venv/bin/python}" -c 'import importlib.metadata as m; print(m.version("apache-beam"))' 2>/dev/null) ||
  fail "no apache-beam in ${PYTHON:-.venv/bin/python}; run 'make test-engines', or set PYTHON to one that has it"
target=.cache/engines/prism-$version
[ -x "$target" ] && exit
command -v go >/dev/null || fail "needs Go to build Prism; install it (Debian: apt-get install golang) and run this again"

mkdir -p .cache/engines
folder=$(mktemp -d "$PWD/.cache/engines/prism.XXXXXX")
trap 'rm -rf "$folder"' EXIT
echo "Building Prism $version (a few minutes)"
GOBIN=$folder go install "github.com/apache/beam/sdks/v2/go/cmd/prism@v$version" >"$folder/log" 2>&1 ||
  fail "Prism $version cannot be built: $(tail -n 1 "$folder/log")"
mv "$folder/prism" "$target"
