# SPDX-License-Identifier: Apache-2.0
# Short names for the commands of run.py, which does the work.

.DEFAULT_GOAL := help
.PHONY: help example test brokers coverage lint docs format bench package clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s  %s\n", $$1, $$2}' Makefile

example: ## Run the example end to end with a private RabbitMQ
	python3 run.py example

test: ## Run the linters and all tests with private servers
	python3 run.py test

brokers: ## Run the tests on several RabbitMQ versions, with classic and quorum queues
	python3 run.py brokers

coverage: ## Measure which code the unit tests reach; fail below the floor
	python3 run.py coverage

lint: ## Run ruff and mypy
	python3 run.py lint

docs: ## Build the documentation as HTML
	python3 run.py docs

format: ## Let ruff format the code and repair what it can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: ## Run the benchmarks
	python3 run.py bench

package: ## Build sdist and wheel into dist/, the same bytes each time
	python3 run.py package

clean: ## Delete the virtual environment and all caches
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
