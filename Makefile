# Every target stands for one documented command; `make help` lists them.
SHELL := /bin/bash
WHERE ?= lab
SYSTEM ?= pneumonia
DATA ?=
OUT ?=
T ?=
VERSION ?=
ONLY ?=

VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
ANSIBLE := $(BIN)/ansible-playbook -i inventories/$(WHERE) -i inventories/$(SYSTEM)
VARS := $(if $(DATA),-e data=$(abspath $(DATA)))
# An extra variable for a word given to make; some shells set HOST by themselves.
given = $(if $(filter command,$(origin $(1))),-e '{"$(2)": "$($(1))"}')
export PATH := $(CURDIR)/$(BIN):$(PATH)
export CONTAINERS_CONF := $(CURDIR)/.lab/containers.conf
# Images of containers often set it. Ansible and TensorFlow would then be compiled anew by each of hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help up lab train models approve rollback rotate verify status logs lab-logs destroy down test test-mutations lint bench-serving bench-engines bench-soak bench-watching bench-rollback bench-converge picture tables locks changelog clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  WHERE=lab|aws ($(WHERE))   SYSTEM=pneumonia|mnist ($(SYSTEM))   DATA=directory, archive or synthetic   OUT=FILE (verify, bench-…)   T=subset (test)   VERSION=… (approve, rollback)"
	@echo "  HOST=pneumonia-api   SERVICE=lightbox-api   ID=request id   SINCE=-2d   FOLLOW=1   (logs)"

up: $(if $(filter lab,$(WHERE)),lab,$(VENV)/ready) ## Bring SYSTEM up: network, hosts, model, proof; prints its URL
	$(ANSIBLE) site.yml $(VARS)

lab: $(VENV)/ready .cache/lab-packages ## Start the lab (AWS rehearsed on this machine)
	$(SUDO) $(BIN)/python -m lab up

train: $(VENV)/ready ## Train on DATA and release the model if it is good enough
	$(ANSIBLE) train.yml $(VARS)

models: $(VENV)/ready ## Show every model in the store, and what was released when, by whom and why
	$(ANSIBLE) playbooks/models.yml

approve: $(VENV)/ready ## Approve VERSION and release it
	$(ANSIBLE) playbooks/approve.yml -e version=$(VERSION)

rollback: $(VENV)/ready ## Make the model before the live one live again, or VERSION
	$(ANSIBLE) playbooks/rollback.yml $(if $(VERSION),-e version=$(VERSION))

rotate: $(VENV)/ready ## Make passwords anew, all or ONLY=redis_api,status, and bring them to every host
	$(ANSIBLE) playbooks/rotate.yml $(if $(ONLY),-e only=$(ONLY))

verify: $(VENV)/ready ## Examine the running system; OUT=FILE writes the findings as JSON
	$(ANSIBLE) playbooks/verify.yml $(if $(OUT),-e verify_out=$(abspath $(OUT)))

status: $(VENV)/ready ## Show the lab's hosts, addresses and rules
	$(SUDO) $(BIN)/python -m lab status

logs: $(VENV)/ready ## Show and search the logs of all hosts: HOST= SERVICE= ID= SINCE=-2d, FOLLOW=1 goes on
	@$(ANSIBLE) playbooks/logs.yml $(call given,HOST,host) $(call given,SERVICE,service) $(call given,ID,id) $(call given,SINCE,since) $(if $(FOLLOW),-e follow=true)

lab-logs: $(VENV)/ready ## Follow the lab's own log
	$(SUDO) $(BIN)/python -m lab logs --follow

destroy: $(VENV)/ready ## Remove everything that `make up` made for SYSTEM (asks first on AWS)
	$(ANSIBLE) playbooks/destroy.yml

down: $(VENV)/ready ## Stop the lab and leave nothing of it on this machine
	$(SUDO) $(BIN)/python -m lab down

test: $(VENV)/ready-dev .venv-app/ready .cache/lab-packages .cache/test-packages ## Run every test; T=unit|lint|lab|molecule|system|mnist|collection|sanity, a linter, a file of tests/unit (T=tasks) or a role for a subset
	$(BIN)/python tests/run.py $(T)

test-mutations: $(VENV)/ready-dev .venv-app/ready .cache/lab-packages .cache/test-packages ## Put faults into the roles, one at a time, and see that tests notice; T=a fault, a role or a subset
	$(BIN)/python -m tests.mutate $(T)

lint: $(VENV)/ready-dev .venv-app/ready ## Run every linter and type checker
	$(BIN)/python tests/run.py lint

bench-serving: .venv-bench/ready .cache/bench-packages ## Measure the API beside Flask + Keras, a framework and the bare engine; OUT=FILE
	.venv-bench/bin/python benchmarks/serving.py $(if $(OUT),--out $(abspath $(OUT)))

bench-engines: .venv-bench/ready ## Measure inference engines beside Keras; OUT=FILE
	.venv-bench/bin/python benchmarks/engines.py $(if $(OUT),--out $(abspath $(OUT)))

bench-soak: $(VENV)/ready ## Load the running system for ten minutes, kill its workers, release in the middle; OUT=FILE
	$(BIN)/python benchmarks/soak.py $(if $(OUT),--out $(abspath $(OUT)))

bench-watching: $(VENV)/ready ## Measure what exporters and log shippers cost on every host of the running system; OUT=FILE
	$(BIN)/python benchmarks/watching.py $(if $(OUT),--out $(abspath $(OUT)))

bench-rollback: $(VENV)/ready ## Time the way back to the model before, under requests; OUT=FILE
	$(BIN)/python benchmarks/rollback.py $(if $(OUT),--out $(abspath $(OUT)))

bench-converge: $(VENV)/ready ## Time first and second run in the lab, beside Ansible's own settings; removes SYSTEM first; OUT=FILE
	$(BIN)/python benchmarks/converge.py --system $(SYSTEM) $(if $(OUT),--out $(abspath $(OUT)))

picture: $(VENV)/ready ## Draw the documents' pictures of the networks from the inventories
	$(BIN)/python docs/draw_network.py inventories/pneumonia docs/network.svg
	$(BIN)/python docs/draw_network.py inventories/mnist docs/network-mnist.svg

tables: $(VENV)/ready ## Write the documents' tables of variables, flows and costs
	$(BIN)/python docs/role_tables.py
	$(BIN)/python docs/system_tables.py

locks: $(VENV)/ready ## Resolve every lock file anew
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header requirements/controller.in -o requirements/controller.txt
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header -c requirements/controller.txt requirements/dev.in -o requirements/dev.txt
	$(MAKE) -C app locks

changelog: $(VENV)/ready-dev ## Make CHANGELOG.rst of the fragments, for the version in galaxy.yml
	$(BIN)/antsibull-changelog release

clean: ## Remove virtual environments and caches (not a running lab)
	rm -rf .venv .venv-app .venv-bench .build .cache .ansible .mypy_cache .pytest_cache .ruff_cache .hypothesis

# --- what the targets above stand on -------------------------------------------------------------------------------

.cache:
	mkdir -p .cache

.cache/python-packages: | .cache
	python3 -c 'import venv, ensurepip' 2>/dev/null || { $(SUDO) apt-get update -q && $(SUDO) apt-get install -y -q --no-install-recommends python3-venv; }
	touch $@

.cache/lab-packages: lab/packages.txt | .cache
	$(SUDO) env DEBIAN_FRONTEND=noninteractive sh -c 'dpkg -s $$(cat lab/packages.txt) >/dev/null 2>&1 || { apt-get update -q && apt-get install -y -q --no-install-recommends $$(cat lab/packages.txt); }'
	touch $@

# Tests start what they need: a service that came with a package of this list is not left running.
.cache/test-packages: tests/packages.txt | .cache
	$(SUDO) env DEBIAN_FRONTEND=noninteractive sh -c 'new=$$(for name in $$(cat tests/packages.txt); do dpkg -s $$name >/dev/null 2>&1 || echo $$name; done); [ -z "$$new" ] || { apt-get update -q && apt-get install -y -q --no-install-recommends $$new && for name in $$new; do systemctl disable --now $$name >/dev/null 2>&1 || true; done; }'
	touch $@

.cache/bench-packages: benchmarks/packages.txt | .cache
	$(SUDO) env DEBIAN_FRONTEND=noninteractive sh -c 'dpkg -s $$(cat benchmarks/packages.txt) >/dev/null 2>&1 || { apt-get update -q && apt-get install -y -q --no-install-recommends $$(cat benchmarks/packages.txt); }'
	touch $@

$(VENV)/bin/uv: requirements/uv.txt | .cache/python-packages
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt

$(VENV)/ready: requirements/controller.txt $(VENV)/bin/uv
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/controller.txt
	touch $@

$(VENV)/ready-dev: requirements/dev.txt $(VENV)/ready
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/dev.txt
	touch $@

.venv-app/ready: app/locks/dev.txt app/pyproject.toml $(VENV)/bin/uv
	$(BIN)/uv venv -q --allow-existing --python python3 .venv-app
	$(BIN)/uv pip sync -q --python .venv-app/bin/python --require-hashes app/locks/dev.txt
	$(BIN)/uv pip install -q --python .venv-app/bin/python --no-deps --editable app
	touch $@

.venv-bench/ready: app/locks/bench.txt app/pyproject.toml $(VENV)/bin/uv
	$(BIN)/uv venv -q --allow-existing --python python3 .venv-bench
	$(BIN)/uv pip sync -q --python .venv-bench/bin/python --require-hashes app/locks/bench.txt
	$(BIN)/uv pip install -q --python .venv-bench/bin/python --no-deps --editable app
	touch $@
