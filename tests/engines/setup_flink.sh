#!/usr/bin/env bash
# Fetches Beam's Flink job server, with a Flink inside, as .cache/engines/flink-job-server-BEAM.jar. Again does nothing.
# Both versions are the installed apache-beam's: its own, and the Flink that its FlinkRunner takes by default.
set -euo pipefail
cd "$(dirname "$0")/../.."
fail() {
  echo "setup_flink.sh: $*" >&2
  exit 1
}

versions=$("${PYTHON:-.venv/bin/python}" -c '
import importlib.metadata as m
from apache_beam.options.pipeline_options import FlinkRunnerOptions
print(m.version("apache-beam"), FlinkRunnerOptions.PUBLISHED_FLINK_VERSIONS[-1])' 2>/dev/null) ||
  fail "no apache-beam in ${PYTHON:-.venv/bin/python}; run 'make test-engines', or set PYTHON to one that has it"
read -r beam flink <<<"$versions"
target=.cache/engines/flink-job-server-$beam.jar
[ -f "$target" ] && exit
command -v java >/dev/null || fail "needs Java 17; install it (Debian: apt-get install openjdk-17-jre-headless)"
command -v mvn >/dev/null || fail "needs Maven's mvn; install it (Debian: apt-get install maven)"

mkdir -p .cache/engines
folder=$(mktemp -d "$PWD/.cache/engines/flink.XXXXXX")
trap 'rm -rf "$folder"' EXIT
artifact=org.apache.beam:beam-runners-flink-$flink-job-server:$beam
echo "Fetching $artifact"
mvn -B -q -U dependency:copy -Dartifact="$artifact" -DoutputDirectory="$folder" >"$folder/log" 2>&1 || {
  why=$(grep -m 1 -oE "(Could not find artifact|Could not transfer|Unknown host|No plugin found)[^(]*[^( ]" "$folder/log" ||
    tail -n 1 "$folder/log")
  fail "no job server: $why; put its jar at $target by hand"
}
mv "$folder"/*.jar "$target"
