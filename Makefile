# Everything starts here, on a fresh checkout with Python 3.11 to 3.13 and make. What is installed lies in .venv/, what is stored in var/.

export DAGSTER_HOME := $(CURDIR)
export DAGSTER_DISABLE_TELEMETRY := 1
PORT ?= 3000
JOBS ?= 2
# The tests' files lie in memory where there is plenty: on some disks, to wait for each commit takes as long as all the rest.
IN_MEMORY := $(shell [ -w /dev/shm ] && awk -v free="$$(df -Pk /dev/shm | awk 'NR == 2 { print $$4 }')" '/^MemAvailable/ && $$2 > 8e6 && free > 4e6 { print "/dev/shm" }' /proc/meminfo 2>/dev/null)
VENV := .venv
PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install -qq --disable-pip-version-check --no-input --no-compile -c constraints.txt
# Without bytecode every process takes three times as long to start; pip compiles on one core, and some environments keep Python from writing any.
COMPILE := $(PY) -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib pixels_assets pixels_assets_tests benchmarks || true
unexport PYTHONDONTWRITEBYTECODE
NEEDS := constraints.txt pyproject.toml setup.cfg

.PHONY: help run test lint ui view install clean again

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

run: $(VENV)/.installed  ## ingest SRC=folder (without SRC: DICOM files that pydicom carries), print what was found
	@: "$${SRC:=$$($(PY) -c 'from pydicom.data import DATA_ROOT; print(DATA_ROOT + "/test_files")')}" && $(VENV)/bin/pixels ingest -- "$$SRC"

test: $(VENV)/.installed-test  ## run the tests; ARGS="-k words" chooses some, JOBS=1 runs one at a time, ARGS=--durations=20 tells the slowest
	@$(if $(IN_MEMORY),PYTEST_DEBUG_TEMPROOT="$${PYTEST_DEBUG_TEMPROOT:-$(IN_MEMORY)}" )$(PY) -m pytest $(if $(filter-out 0 1,$(JOBS)),-n $(JOBS) --dist loadfile --no-loadscope-reorder) $(ARGS)

lint: $(VENV)/.installed-test  ## check style, format and types
	@$(PY) -m ruff check && $(PY) -m ruff format --check && $(PY) -m mypy

ui: $(VENV)/.installed  ## Dagster on http://127.0.0.1:3000 (PORT=number for another port)
	@mkdir -p var && echo "Dagster: http://127.0.0.1:$(PORT) (Ctrl-C ends it)"
	@exec $(PY) -W ignore -m dagster dev -w workspace.yaml -h 127.0.0.1 -p $(PORT)

view: $(VENV)/.installed var/viewer/.installed  ## OHIF on http://127.0.0.1:8090 (PORT=number for another port), over DICOMweb
	@$(VENV)/bin/pixels serve --port $(if $(filter 3000,$(PORT)),8090,$(PORT))

install: $(VENV)/.installed-test  ## only set up .venv, with all that the tests need

clean:  ## remove .venv and caches; var/ with the lake stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pixels_assets pixels_assets_tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that was made in another folder points there, and one whose Python is gone does not start: make it again.
ifneq ($(shell $(PY) -c '' 2>/dev/null && cat $(VENV)/.folder),$(CURDIR))
$(VENV)/.folder: again
endif

$(VENV)/.folder:
	@for python in $(PYTHON) python3.13 python3.12 python3.11 python3 python; do \
	  if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "There is no Python 3.11, 3.12 or 3.13 here: apt-get install python3 python3-venv (macOS: brew install python@3.13), or make PYTHON=/path/to/python" >&2; \
	  exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
	  version=$$("$$found" -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  echo "$$found cannot make virtual environments: apt-get install python$$version-venv" >&2; \
	  exit 1; \
	fi; \
	rm -rf $(VENV) && "$$found" -m venv $(VENV) && echo '$(CURDIR)' > $@

$(VENV)/.installed: $(VENV)/.folder $(NEEDS)
	@echo "installing into $(VENV): about a minute"
	@$(PIP_INSTALL) -e .
	@$(COMPILE)
	@touch $@

# Clients of others, which tests run; they skip without them.
var/clients/.installed: pixels_assets_tests/dicomweb/node/package-lock.json
	@mkdir -p var/clients && cp pixels_assets_tests/dicomweb/node/package.json pixels_assets_tests/dicomweb/node/package-lock.json var/clients/
	@cd var/clients && npm ci --ignore-scripts --no-audit --no-fund --silent
	@touch $@

# The prebuilt viewer, by the lock's checksum. Its source maps and the models' runtime are not used, and larger than all the rest.
var/viewer/.installed: pixels_assets/dicomweb/viewer/package-lock.json
	@if ! command -v npm >/dev/null; then \
	  echo "The viewer comes from npm, which is not here: apt-get install npm (macOS: brew install node). Without it, \`pixels serve\` serves DICOMweb alone." >&2; \
	  exit 1; \
	fi
	@echo "installing the viewer into var/viewer: 50 MB"
	@mkdir -p var/viewer && cp pixels_assets/dicomweb/viewer/package.json pixels_assets/dicomweb/viewer/package-lock.json var/viewer/
	@cd var/viewer && npm ci --ignore-scripts --no-audit --no-fund --silent
	@rm -rf var/viewer/node_modules/@ohif/app/dist/ort && find var/viewer -name '*.map' -delete
	@touch $@

$(VENV)/.installed-test: $(VENV)/.folder $(NEEDS)
	@echo "installing into $(VENV), with what the tests need: about a minute"
	@$(PIP_INSTALL) -e '.[bench,test]'
	@$(COMPILE)
	@touch $@ $(VENV)/.installed
