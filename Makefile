# `make` alone lists the targets.
PYTHON ?= python3
# How many tests run at a time. A test waits for processes that it starts, so one more than there are cores.
WORKERS ?= $(shell expr $$(nproc 2>/dev/null || echo 2) + 1)
PARALLEL = --numprocesses $(WORKERS) --maxprocesses 4 --dist worksteal
VENV = .venv/bin/python
export PYTHONUNBUFFERED = 1

.PHONY: help run smoke train decide test test-all check format docs bench bench-router bench-dashboard validate chaos soak
.PHONY: lock fetch manifests publish-notebooks clean

help: ## list the targets
	@grep -E '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

run: .runs ## set up, train, start all services, send a first burst, stay up until Ctrl-C
	@exec $(VENV) -m launch

smoke: .runs ## the same, and stop after the burst: exits 0 when it went through
	@exec $(VENV) -m launch --smoke

train: .runs ## execute the notebooks whose data or code is newer than what the store holds
	@exec $(VENV) -m notebooks.train

decide: .runs ## make the page of the decision from a running router, var/decide.html (ARGS=--help)
	@exec $(VENV) -m notebooks.decide $(ARGS)

test: .develops ## set up, and run the tests but for the slow ones (ARGS='-k split' for some)
	@exec $(VENV) -m pytest -m "not slow" $(PARALLEL) $(ARGS)

test-all: .develops ## set up, and run all tests
	@exec $(VENV) -m pytest $(PARALLEL) $(ARGS)

check: .develops ## lint, formatting, types
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy

format: .develops ## put the code in form
	$(VENV) -m ruff check --fix .
	$(VENV) -m ruff format .

docs: .develops ## bring the README's outputs and screenshots up to date (needs Chromium)
	@exec $(VENV) docs/refresh.py

bench: .develops ## measure our service beside its peers, and write docs/benchmarks.md (needs wrk; ARGS=--help)
	@$(VENV) -m notebooks.train
	@exec $(VENV) -m benchmarks.serving --write docs/benchmarks.md $(ARGS)

bench-router: .develops ## measure our router beside its peers, and write docs/benchmarks-router.md (needs wrk and nginx)
	@$(VENV) -m notebooks.train
	@exec $(VENV) -m benchmarks.router --write docs/benchmarks-router.md $(ARGS)

bench-dashboard: .develops ## measure the dashboard on a million predictions, and write docs/benchmarks-dashboard.md
	@$(VENV) -m notebooks.train
	@exec $(VENV) -m benchmarks.dashboard --write docs/benchmarks-dashboard.md $(ARGS)

validate: .develops ## simulate what the verdict promises, and write docs/validation.md (some minutes)
	@exec $(VENV) -m verdict.validate --write docs/validation.md $(ARGS)

chaos: .develops ## kill, stop and slow everything under load, for some minutes; no answer may be lost
	@RUNOFF_CHAOS_SECONDS=180 exec $(VENV) -m pytest tests/chaos/test_chaos.py $(ARGS)

soak: .develops ## ten tabs on the dashboard for ten minutes under load: memory must not grow (needs Chromium)
	@RUNOFF_SOAK_SECONDS=$${RUNOFF_SOAK_SECONDS:-600} exec $(VENV) -m pytest tests/chaos/test_soak.py -s $(ARGS)

lock: ## compile the locks anew from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 $(UPGRADE) pyproject.toml -o requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 $(UPGRADE) --all-extras -c requirements.txt \
		pyproject.toml -o requirements-dev.txt
	for each in publish/requirements/*.in; do uv pip compile --quiet --universal --python-version 3.11 $(UPGRADE) \
		--no-annotate -c requirements.txt $$each -o $${each%.in}.txt || exit; done

fetch: .develops ## get the whole data set, 30,000 clients, from its publisher
	@exec $(VENV) -m data.fetch

manifests: .develops ## write what would be published, with its manifests, to var/publish/
	@exec $(VENV) -m publish --manifest all

publish-%: .develops ## publish to Posit Connect: model-a, model-b, router, dashboard, notebooks (docs/publishing.md)
	@exec $(VENV) -m publish $* -- $(ARGS)

publish-notebooks: .develops
	@exec $(VENV) -m publish notebook-a notebook-b notebook-decide -- $(ARGS)

clean: ## remove the environment, the models, the ledger and the logs
	rm -rf .venv var *.egg-info

# The environments. The first line is printed before anything is waited for.
.PHONY: .runs .develops
.runs:
	@echo "Runoff: two models, one router, real traffic."
	@$(PYTHON) launch/environment.py run

.develops:
	@$(PYTHON) launch/environment.py dev
