# Two commands do all the set-up: `make run` and `make test`, each from a bare clone with Python >= 3.11 and make.
TASK   ?= digits
DRIFT  ?=
PYTHON ?= python3
VENV   ?= .venv
TORCH  ?= 2.13.0
# PyTorch's own index of CPU wheels (see the installation page of PyTorch). Without it pip takes what it finds by
# itself: on Linux that may be the CUDA build, which works too but is some gigabytes larger.
TORCH_CPU_INDEX ?=

BIN     := $(VENV)/bin
FEDLOOP := $(BIN)/fedloop
INSTALL := $(VENV)/.installed

.PHONY: run test lint up down status traffic setup clean help bench-rehearsal bench-federated bench-labels \
	bench-diagnosis bench-serving bench-alarm bench-recovery bench-log

run: $(INSTALL)  ## rehearse the whole loop for TASK on this machine
	@$(FEDLOOP) run $(TASK)

test: $(INSTALL)  ## lint, types, import contracts, tests
	@$(MAKE) --no-print-directory lint
	@$(BIN)/pytest

lint: $(INSTALL)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo

up: $(INSTALL)  ## start Prefect, MLflow, the dashboard, the service and the served flows
	@$(FEDLOOP) up $(TASK)

down: $(INSTALL)  ## stop them
	@$(FEDLOOP) down

status: $(INSTALL)  ## which of them run, and where
	@$(FEDLOOP) status

traffic: $(INSTALL)  ## replay traffic at the running service; DRIFT=low-light darkens it
	@$(FEDLOOP) traffic $(TASK) $(if $(DRIFT),--drift $(DRIFT))

setup: $(INSTALL)

$(INSTALL): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedloop needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + ". Name another: make run PYTHON=python3.12")'
	@echo "fedloop: installing into $(VENV) (once, two or three minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --retries 0 --timeout 60 --no-deps $(if $(TORCH_CPU_INDEX),--index-url "$(TORCH_CPU_INDEX)") "torch==$(TORCH)" \
		|| $(BIN)/python -m pip install -q --no-deps "torch==$(TORCH)"
	@$(BIN)/python -m pip install -q -c constraints.txt uv
	@$(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode -c constraints.txt -e ".[dev]"
	@$(BIN)/uv pip check -q --python $(BIN)/python
	@touch $@

bench-rehearsal: $(INSTALL)  ## rehearse and keep the figures under benchmarks/results
	@$(BIN)/python benchmarks/rehearsal.py --task $(TASK)

bench-federated: $(INSTALL)  ## every figure of the federated engine (hours; QUICK=1: a minute)
	@$(BIN)/python benchmarks/federated.py $(if $(QUICK),--quick)

bench-diagnosis: $(INSTALL)  ## are the causes of errors found? (QUICK=1: one seed)
	@$(BIN)/python benchmarks/diagnosis.py $(if $(QUICK),--quick)

bench-alarm: $(INSTALL)  ## how often is the alarm false, how soon does it come? Needs FEDLOOP_DATA (QUICK=1: a minute)
	@$(BIN)/python benchmarks/alarm.py $(if $(QUICK),--quick)

bench-log: $(INSTALL)  ## what a window costs in a long log (QUICK=1: two minutes)
	@$(BIN)/python benchmarks/log.py $(if $(QUICK),--quick)

bench-serving: $(INSTALL)  ## requests a second beside MLflow and a plain handler, and kills under load (QUICK=1: a minute)
	@$(BIN)/python benchmarks/serving.py $(if $(QUICK),--quick)

bench-labels: $(INSTALL)  ## what a label is worth by how it was chosen, and clusters of rows that stay (QUICK=1: a minute)
	@$(BIN)/python benchmarks/clustering.py $(if $(QUICK),--quick)
	@$(BIN)/python benchmarks/labels.py $(if $(QUICK),--quick)

bench-recovery: $(INSTALL)  ## retraining on an alarm beside never, on a schedule and every window (QUICK=1: a minute)
	@$(BIN)/python benchmarks/recovery.py $(if $(QUICK),--quick)

clean:  ## forget everything the rehearsals made (keeps the environment)
	rm -rf .fedloop out

help:
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12
