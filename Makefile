# make run | demo | test | check | bench | train | setup      .venv is made by whichever comes first
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
CONFIG ?= config.toml
# Programs the acceptance tests use as peers and judges: modality and PACS (dcmtk, Orthanc), validators, a browser.
PEERS := dcmtk dicom3tools pixelmed-apps default-jdk-headless orthanc orthanc-dicomweb chromium
PEER_COMMANDS := /usr/bin/storescu /usr/bin/dciodvfy /usr/bin/javac /usr/sbin/Orthanc /usr/bin/chromium
.PHONY: run demo test check validate fuzz bench train setup peers clean

run: .venv/installed
	@$(BIN)/pacs-node --config $(CONFIG) migrate
	@exec $(BIN)/pacs-node --config $(CONFIG) run

demo: .venv/installed
	@$(BIN)/python -m pacs_node.demo $(if $(FROM),--from "$(FROM)") $(if $(STAY),--stay)

# Two processes share the files out, the longest (acceptance) first; a file's tests stay together, with what they share.
test: setup check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every kind of every object we make before every judge, one JVM for all; `make test` judges a pairwise subset.
validate: setup
	JUDGE_EVERYTHING=1 $(BIN)/python -m pytest tests/acceptance/test_sr_judges.py --timeout 3600

# make fuzz SECONDS=120: broken radiographs through every door that reads a stranger's bytes
SECONDS ?= 120
fuzz: .venv/installed-dev
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)

bench: setup
	$(BIN)/python -m bench

# make train DATA="folder [more]" VERSION=X.Y.Z [RECIPE=default NAME=chest-pneumonia ABOUT=card.toml SPLIT=test]: train (or go on), export, judge;
# with AGAINST=bundle folder, beside that model.
RECIPE ?= default
NAME ?= chest-pneumonia
SPLIT ?= validation
RUN = var/runs/$(NAME)-$(VERSION)
train: .venv/installed-training
	@[ -n "$(DATA)" ] && [ -n "$(VERSION)" ] || { echo 'Say what to train from and what to call it: make train DATA="folder [more]" VERSION=0.3.0'; exit 2; }
	$(BIN)/python -m training.train --recipe $(RECIPE) --data $(DATA) --out $(RUN) $(if $(wildcard $(RUN)/checkpoint.pt),--resume)
	$(BIN)/python -m training.export --run $(RUN) --data $(DATA) --name $(NAME) --version $(VERSION) $(if $(ABOUT),--about $(ABOUT)) --to var/trained
	$(BIN)/python -m training.evaluate --model var/trained/$(NAME)/$(VERSION) $(if $(AGAINST),--model $(AGAINST)) --data $(DATA) --split $(SPLIT) --out $(RUN)/report --run $(RUN) --cache $(RUN)/cache
	@echo "Next: pacs-node models add var/trained/$(NAME)/$(VERSION), then pacs-node models activate $(NAME)/$(VERSION)"

setup: .venv/installed-dev peers

# The interpreter of .venv, then what `run` needs, then what the tests need: each only when it changed.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	@echo "Installing the node into .venv (PyTorch is large: this can take some minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-training: pyproject.toml | .venv/bin/python
	@echo "Installing the node and its training into .venv (PyTorch is large: this can take some minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[training]'
	@touch $@ .venv/installed

.venv/installed-dev: pyproject.toml | .venv/bin/python
	@echo "Installing the node and its tests into .venv (PyTorch is large: this can take some minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/installed .venv/installed-training

# A missing peer skips its tests with the reason shown; in CI it fails them. RUNLEVEL=1 keeps Debian from starting Orthanc as a service.
peers:
	@missing=0; for command in $(PEER_COMMANDS); do [ -x $$command ] || missing=1; done; \
	if [ $$missing = 0 ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "No apt here: tests against $(PEERS) are skipped where one is missing."; exit 0; fi; \
	if [ -z "$$CI" ]; then \
	  answer=n; if [ -t 0 ]; then read -r -p "Install the test peers with apt ($(PEERS))? [y/N] " answer; fi; \
	  case "$$answer" in [yY]*) ;; *) echo "Not installed: the tests that need them are skipped."; exit 0;; esac; \
	fi; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	$$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $(PEERS) >/dev/null

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
