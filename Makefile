# Needs Python 3.11 or newer with venv, and make. No PostgreSQL: each target starts one of its own.
#
#   make demo               legacy tenants, the migrations, some statistics, and all the way back
#   make play               a shell with legacy tenants on a server of their own, to try docs/runbook.md by hand
#   make test               the tests; make test ARGS="-k rollback" for some of them
#   make test-all           the tests, slow ones too, on every PostgreSQL and Python that can be had; takes ARGS, too
#   make lint               style, types, what the DDL would lock, and what Citus would refuse
#   make bench              docs/benchmarks.md anew, in a quarter of an hour; make bench ARGS=--quick: in two minutes, printed only
#   make clean              remove .venv and caches

PYTHON = python3
VENV = .venv
ARGS =
unexport PIP_DRY_RUN PIP_PREFIX PIP_ROOT PIP_TARGET PIP_USER PYTHONPATH PYTHONSAFEPATH
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/installed
	python -m dev.demo

play: $(VENV)/installed
	@python -m dev.server sh -c 'psql -qXv ON_ERROR_STOP=1 --single-transaction -f dev/legacy.sql && \
	    echo "The tenants of dev/legacy.sql are laid out: follow docs/runbook.md. All of it is gone after exit." && \
	    PS1="play\$$ " bash --norc'

test: $(VENV)/installed
	python -m pytest $(ARGS)

test-all: $(VENV)/installed
	python -m dev.test_all

bench: $(VENV)/installed
	python -m dev.bench $(ARGS)

lint: $(VENV)/installed
	ruff check
	ruff format --check
	mypy
	sqlfluff lint --disable-progress-bar dev sql stats_lib
	python -m dev.tenant_ddl $$(find sql -name '*.sql' | sort)
	python -m dev.names $$(find sql stats_lib -name '*.sql' | sort)
	python -m dev.portable_sql $$(find sql stats_lib -name '*.sql' | sort)

clean:
	rm -rf .venv* .servers .*_cache

# --no-deps and pip check: what is not pinned is an error, not a surprise.
$(VENV)/installed: dev/requirements.txt
	@echo "installing dev/requirements.txt into $(VENV)"
	@rm -rf $(VENV) && $(PYTHON) -m venv $(VENV)
	@python -m pip install --disable-pip-version-check -qq --no-deps --requirement dev/requirements.txt
	@python -m pip check --disable-pip-version-check
	@touch $@

.PHONY: help demo play test test-all bench lint clean
