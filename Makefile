# make setup, make test, make demo, make check, make bench NAME=…   Each sets up what it needs.
PYTHON ?= python3
# Of the packaged Triton's own environment; with 3.11 and 3.12 it needs that Python's shared library.
TRITON_PYTHON ?= $(PYTHON)
UV = .venv/bin/uv
UV_VERSION = 0.13.9
# The machine's own certificates, as pip and git use them: behind a company's proxy no others will do.
export UV_SYSTEM_CERTS = 1
export PYTHONPATH := $(CURDIR)

.PHONY: setup test demo check lint types bench lock clean

setup: .venv/ready .venv-triton/ready

.venv/ready: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed, $(PYTHON) is another: make PYTHON=python3.12"; exit 2; }
	@test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@test -x $(UV) || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip sync --quiet --compile-bytecode --python .venv/bin/python requirements.lock
	@touch $@

.venv-triton/ready: deploy/triton_server/requirements.lock .venv/ready
	@test -x .venv-triton/bin/python || $(TRITON_PYTHON) -m venv .venv-triton
	$(UV) pip sync --quiet --compile-bytecode --python .venv-triton/bin/python deploy/triton_server/requirements.lock
	@touch $@

# Two at a time, a module in one of the two: what its tests share is made once.
test: setup
	.venv/bin/python -P -m pytest -n 2 --dist loadfile

demo: setup
	./relearn demo

lint: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: setup
	.venv/bin/mypy

check: lint types test

bench: setup
	.venv/bin/python -P -m benchmarks.$(NAME)

# Resolves the versions anew; no address of any registry is written.
lock: setup
	$(UV) pip compile pyproject.toml --all-extras --universal --generate-hashes --no-header --quiet \
		--python-version 3.11 --output-file requirements.lock
	$(UV) pip compile deploy/triton_server/requirements.in --override deploy/triton_server/overrides.txt \
		--universal --generate-hashes --no-header --quiet --python-version 3.11 --output-file deploy/triton_server/requirements.lock

clean:
	rm -rf .venv .venv-triton .mypy_cache .ruff_cache .pytest_cache
