#!/usr/bin/env bash
# Fetches Beam's Flink job server, with a Flink inside, as .cache/engines/flink-job-server-BEAM.jar. Again does nothing.
# Both versions are the installed apache-beam's: its own, and the Flink that its FlinkRunner takes by default. Where Maven
# has no such jar, it is put together from Beam's libraries of the newest version that Maven may have: of another Beam
# then, with which this one's Python workers talk all the same. What it is stands in the .txt beside it.
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
if ! mvn -B -q -U dependency:copy -Dartifact="$artifact" -DoutputDirectory="$folder" >"$folder/log" 2>&1; then
  why=$(grep -m 1 -oE "(Could not find artifact|Could not transfer|Unknown host|No plugin found)[^(]*[^( ]" "$folder/log" ||
    tail -n 1 "$folder/log")
  pom=tests/engines/flink-job-server.xml
  artifact="beam-runners-flink-$(grep -oPm 1 '(?<=<flink>)[^<]+' $pom) $(grep -oPm 1 '(?<=<beam>)[^<]+' $pom), from its libraries"
  echo "$why; building $artifact"
  mvn -B -q -f "$pom" package -Doutput="$folder" >"$folder/log" 2>&1 ||
    fail "no job server: $(grep -m 1 ERROR "$folder/log"); put its jar at $target by hand"
  rm -f "$folder"/original-*.jar
fi
echo "$artifact" >"${target%.jar}.txt"
mv "$folder"/*job-server*.jar "$target"
