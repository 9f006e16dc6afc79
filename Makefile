# Two commands matter: `make demo` and `make test`. Both start from nothing but Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo serve-demo test check lint types contract pytest test-numpy1 exhaustive bench papers validate-gpu validation readme clean

demo: $(STAMP)  ## PREBA's what-if: CPU, DPU and ideal preprocessing on 1g(7x) and 7g(1x)
	$(BIN)/preba demo --out out/demo

serve-demo: $(STAMP)  ## the live server in small: real photographs through it, measured beside simulated
	$(BIN)/preba validate docs/examples/live-image.yaml --report-only --out out/serve-demo --payloads \
	  "$$($(BIN)/python -c 'import pathlib, sklearn; print(pathlib.Path(sklearn.__file__).parent / "datasets" / "images")')"

test: lint types contract pytest  ## everything CI checks

check: test

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "preba needs Python 3.11 or newer, this is %s" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	# Triton's server; its metadata ask for NumPy below 2, which what is used of it does not need.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps nvidia-pytriton
	# The last wheel of the client that brings a perf_analyzer which runs on glibc 2.34; unpacked, not installed.
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/wheels tritonclient==2.51.0
	$(BIN)/python -m zipfile -e $(VENV)/wheels/tritonclient-2.51.0-*.whl $(VENV)/tritonclient-2.51.0
	touch $(STAMP)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

contract: $(STAMP)
	$(BIN)/lint-imports

# What only computes runs on two cores at once; what serves and is timed has the machine to itself.
COMPUTES := tests/accel tests/papers tests/preba tests/sim

pytest: $(STAMP)
	$(BIN)/python -m pytest -q --durations=5 -n 2 --dist loadfile $(COMPUTES)
	$(BIN)/python -m pytest -q --durations=10 $(COMPUTES:%=--ignore=%)

exhaustive: $(STAMP)  ## every case of what `make test` samples
	$(BIN)/python -m pytest -q -m exhaustive

test-numpy1:  ## the tests again under NumPy 1.26, which the live server's wheel insists on
	$(PYTHON) -m venv .venv-numpy1
	.venv-numpy1/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' 'numpy<2'
	.venv-numpy1/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps nvidia-pytriton
	.venv-numpy1/bin/python -m pytest -q -n 2 --dist loadfile $(COMPUTES)
	.venv-numpy1/bin/python -m pytest -q $(COMPUTES:%=--ignore=%)

bench: $(STAMP)  ## timings, printed and never asserted
	$(BIN)/python -m pytest -q -s -m bench

readme: $(STAMP)  ## put the demo's output and picture into README.md again
	$(BIN)/python docs/make_readme.py

validate-gpu: $(STAMP)  ## what only a GPU can tell, within nine minutes; pieces that cannot run here say why
	$(BIN)/preba validate-gpu --out out/gpu

validation: $(STAMP)  ## measure every comparison of docs/validation.md again (live servers, two and a half hours) and write it
	$(BIN)/python docs/make_validation.py measure
	$(BIN)/python docs/make_validation.py write

papers: $(STAMP)  ## derive profiles from published numbers, fit PREBA's open parameters, compare with the paper
	$(BIN)/python papers/parvagpu/make_profiles.py
	$(BIN)/python papers/migprofiler/make_profiles.py
	$(BIN)/python papers/mlperf/make_profiles.py
	$(BIN)/python papers/parvagpu/predict.py
	$(BIN)/python papers/mlperf/predict.py
	$(BIN)/python papers/preba/make_profiles.py
	$(BIN)/python papers/preba/fit.py
	$(BIN)/python papers/preba/compare.py

clean:
	rm -rf $(VENV) .venv-numpy1 out build *.egg-info
