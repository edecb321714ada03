# The two commands of the README are `make demo` and `make test`; everything here runs on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find maestro_celery_plugin -name '*.py') pyproject.toml setup.cfg README.md
DEMO := demo_study

.PHONY: demo test test-unit test-all chaos soak lint bench wheel install servers docs clean

demo: install
	@rm -rf $(DEMO)
	$(BIN)/maestro -d 3 run -fg -y -s 5 -o $(DEMO) specs/hello_samples.yaml
	$(BIN)/maestro-celery status $(DEMO)
	@echo
	@echo "The output of one sample:     $(DEMO)/greet/GREETING.hola/03/greet_GREETING.hola.out"
	@echo "The output of the last step:  $(DEMO)/count/greetings.txt"
	@head -3 $(DEMO)/count/greetings.txt

test: servers lint test-all

test-all: test-unit
	$(BIN)/python tools/lanes.py

test-unit: $(VENV)/.tested
	$(BIN)/pytest --import-mode=importlib -n 2 tests/unit

# Breaks studies at random: make chaos SEEDS="$$(seq -s ' ' 1 100)"
SEEDS ?= 1 2 3 4 5 6 7 8
chaos: $(VENV)/.tested servers
	CHAOS_SEEDS="$(SEEDS)" $(BIN)/pytest --import-mode=importlib tests/faults/test_chaos.py -q

# Simulates a cluster with one seed after the other until it is stopped: make soak SEED=5000 PROFILE=nfs
SEED ?= 0
PROFILE ?= storm
soak: $(VENV)/.tested
	cd tests && ../$(BIN)/python -m simulation --profile $(PROFILE) --seed $(SEED) --count 0 --keep-going

lint: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tests use the installed wheel.
$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip build
	rm -rf build dist
	$(BIN)/python -m build --outdir dist > build.log 2>&1 || { cat build.log; exit 1; }
	rm -rf build build.log *.egg-info
	$(BIN)/pip install --quiet dist/*.whl
	$(BIN)/pip install --quiet --force-reinstall --no-deps dist/*.whl
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/pip install --quiet "$$(echo dist/*.whl)[test]"
	touch $@

install: $(VENV)/.installed

wheel: $(VENV)/.installed

# The servers of the tests; without root, nothing is installed, and tests of missing servers are skipped.
servers:
	@.ci/servers

bench: install
	@.ci/servers
	$(BIN)/python -m benchmarks

# The site, in build/site; the reference comes from the package.
docs: $(VENV)/.tested
	$(BIN)/python tools/reference.py docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist *.egg-info $(DEMO) .bench
