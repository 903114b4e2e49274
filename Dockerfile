# An image that serves one package: no torch, no compiler, not root, and only the package's own files.
#
#   docker build --build-arg PACKAGE=runs/movie-reviews/package -t movie-reviews .
#   deploykit keys add NAME --keys keys/keys.json && chmod 755 keys && chmod 644 keys/keys.json
#   docker run --read-only --tmpfs /tmp -p 127.0.0.1:3000:3000 -v "$PWD/keys:/run/keys:ro" movie-reviews
#
# The key file holds hashes only and must be readable by user 10001; later changes keep its permissions. It is the
# directory that is mounted: a file that is replaced would not be seen, and a revoked key would go on working.

ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG PACKAGE
COPY ${PACKAGE}/requirements.txt /tmp/requirements.txt
RUN python -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check -r /tmp/requirements.txt \
 && /opt/venv/bin/pip uninstall -y pip setuptools

FROM ${BASE}
ARG PACKAGE
RUN groupadd --gid 10001 deploykit \
 && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin deploykit
COPY --from=build /opt/venv /opt/venv
COPY ${PACKAGE} /opt/package
# The BentoML home holds the files of the metrics: one for each container, and in memory.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BENTOML_HOME=/tmp/bentoml \
    BENTOML_CONTAINERIZED=true \
    BENTOML_DO_NOT_TRACK=True \
    HF_HUB_DISABLE_TELEMETRY=1 \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_OFFLINE=1 \
    DEPLOYKIT_KEYS=/run/keys/keys.json
WORKDIR /tmp
USER 10001:10001
EXPOSE 3000
# A worker that dies is not started again in a container: the process ends, and the orchestrator restarts it.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:3000/readyz', timeout=2)"]
# The orchestrator must wait longer than the graceful shutdown takes.
CMD ["bentoml", "serve", "/opt/package", "--host", "0.0.0.0", "--port", "3000", "--timeout-graceful-shutdown", "25"]
