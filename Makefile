# Needs Python 3.11 or newer with venv, and make. No PostgreSQL: the tests and the demo start one of their own.
#
#   make demo               legacy tenants, the migrations, some statistics, and all the way back
#   make test               the tests; make test ARGS="-k rollback" for some of them
#   make lint               style, types, and what the DDL would lock
#   make clean              remove .venv and caches

PYTHON = python3
ARGS =
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help:
	@sed -n 's/^#   //p' Makefile

demo: .venv/installed
	python -m dev.demo

test: .venv/installed
	python -m pytest $(ARGS)

lint: .venv/installed
	ruff check
	ruff format --check
	mypy
	sqlfluff lint --disable-progress-bar dev sql stats_lib
	python -m dev.tenant_ddl $$(find sql -name '*.sql' | sort)

clean:
	rm -rf .venv .*_cache

# --no-deps and pip check: what is not pinned is an error, not a surprise.
.venv/installed: dev/requirements.txt
	@echo "installing dev/requirements.txt into .venv"
	@$(PYTHON) -m venv --clear .venv
	@python -m pip install --disable-pip-version-check -qq --no-deps --requirement dev/requirements.txt
	@python -m pip check --disable-pip-version-check
	@touch $@

.PHONY: help demo test lint clean
