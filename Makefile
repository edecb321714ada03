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

# Each process of the tests compiles all tests if this variable of the user forbids to store them compiled.
unexport PYTHONDONTWRITEBYTECODE
test-unit: $(VENV)/.tested
	$(BIN)/pytest --import-mode=importlib -n 2 --dist loadfile tests/unit

# Breaks studies at random, seed after seed; COUNT=0 until it is stopped: make chaos SEED=1000 COUNT=100 PLACE=slurm
SEED ?= 0
COUNT ?= 8
PLACE ?= both
chaos: $(VENV)/.tested servers
	cd tests && ../$(BIN)/python -m chaos --seed $(SEED) --count $(COUNT) --place $(PLACE)

# Simulated clusters and broken studies in turn, until it is stopped: make soak SEED=5000 PROFILE=nfs
PROFILE ?= storm
soak: $(VENV)/.tested servers
	cd tests && ../$(BIN)/python -m soak --seed $(SEED) --profile $(PROFILE) --place $(PLACE)

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
