# A worker of `curate score-reference` for engines that start containers (Dataflow, Flink, Spark): see docs/engines.md.
#   docker build --tag REGISTRY/curate:VERSION .
# Python and Beam must be those of the machine that launches. STORES are fsspec's packages for the stores that are read.
ARG PYTHON=3.11
ARG BEAM=2.77.0
FROM apache/beam_python${PYTHON}_sdk:${BEAM}
ARG STORES="s3fs gcsfs"
# Not the folder where workers start: its datasets/ and options.py would be found before packages of these names.
COPY . /opt/curate
# One line of words, so that several stores are several packages.
# hadolint ignore=SC2086
RUN pip install --no-cache-dir --constraint /opt/curate/constraints.txt /opt/curate ${STORES} && rm -r /opt/curate
