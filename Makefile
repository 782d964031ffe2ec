# make demo   a shard of the embedded web becomes a dataset, on this machine, offline
# make test   lint, types and all tests, by TESTERS (6) processes; SEED=… repeats an order
# make quick  the same of the tests that start no process or server and load no model, with few
#             random examples
# make coverage  all tests, and how much of each package they cover, branches included
# make test-nodes  the swarm's nodes and a tracker as real machines, booted by systemd-nspawn
# make test-classic  the notebook with Colab's ipywidgets 7.7.1, in a Jupyter of its time
# make test-index  clip-retrieval, installed apart, indexes a dataset as the guide shows
# make pictures  the README's pictures: of the notebook, made by its test, and of the demo's report
# make docs  the parts of README.md and of the guides that are made from the code, and the list
#             of all messages, tests/data/messages.txt
# make bench  the benchmarks, each beside its peer
# make bench-gpu  judging on a GPU beside the model alone and clip-retrieval
# make fuzz   the readers of strangers' bytes, and the suite's own tests with examples drawn at
#             random, for FUZZ seconds each (300)
# make soak   for MINUTES (60), a run that is left alone, then disturbed, and datasets that are
#             damaged at random and mended
# All set themselves up in .venv.

.PHONY: demo test quick coverage test-nodes test-classic test-index pictures bench bench-gpu fuzz soak docs
PYTHON ?= python3
bin := .venv/bin

demo: .venv/demo
	$(bin)/cah demo
	@echo 'To have cah in this terminal: . $(bin)/activate'

# Many tests start Pythons, each of which would compile cahlib anew where nothing may be kept.
test quick coverage: export PYTHONDONTWRITEBYTECODE :=

TESTERS ?= 6
quick: TESTERS = 3
# of the order of the tests and of what is random in them; pytest's line shows it
SEED := $(or $(SEED),$(shell date +%s))
pytest = $(bin)/pytest -n $(TESTERS) --no-loadscope-reorder --durations=20 --randomly-seed=$(SEED)
# mypy takes one core for half a minute in a fresh clone: beside the tests, and what it finds is
# shown after theirs.
test quick: .venv/dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy >.venv/types 2>&1 & types=$$!; \
	$(pytest) $(if $(filter quick,$@),--quick); tests=$$?; \
	wait $$types; types=$$?; cat .venv/types; exit $$((tests ? tests : types))

# percent of lines and branches: of the modules beside the packages, then of each package
coverage: .venv/dev
	$(bin)/coverage erase
	$(bin)/coverage run -m pytest -n $(TESTERS) --no-loadscope-reorder
	$(bin)/coverage combine --quiet
	@rm -f .coverage/data.*  # of what was killed as it wrote them: each report would try them again
	@set -f; low=0; \
	for each in *.py $$(set +f; cd cahlib && printf '%s**\n' [!_]*/); do \
	printf '%-24s' "cahlib/$$each"; \
	$(bin)/coverage report --include="cahlib/$$each" --format=total --fail-under=90 || low=1; \
	done; exit $$low

# as root, with debootstrap and systemd-container installed
test-nodes: .venv/dev
	$(bin)/python -m tests.world.machines
	NODES=1 $(bin)/pytest tests/swarm/test_machines.py tests/tracker/test_server.py

test-classic: .venv/dev
	CLASSIC=1 $(bin)/pytest tests/notebook/test_classic.py

test-index: .venv/dev
	INDEX=1 $(bin)/pytest tests/dataset/test_clip_retrieval.py

pictures: .venv/dev
	PICTURES=1 $(bin)/pytest tests/notebook/test_lab.py
	$(bin)/python -m tests.pictures

bench: .venv/dev
	$(bin)/python -m tests.benchmarks

bench-gpu: .venv/dev
	$(bin)/python -m tests.benchmarks.bench_gpu

FUZZ ?= 300
fuzz: .venv/dev
	$(bin)/python -m tests.fuzz --seconds $(FUZZ)

MINUTES ?= 60
soak: .venv/dev
	$(bin)/python -m tests.soak --minutes $(MINUTES)

docs: .venv/dev
	$(bin)/python -m tests.docs
	$(bin)/python -m tests.test_messages

.venv/demo: setup.py
	test -x $(bin)/python || $(PYTHON) -m venv .venv
	$(bin)/pip install --quiet --editable '.[gpu]'
	touch $@

# What tests run on beside Python: a real database, a browser, sshd on hosts of their own, shells.
# Installed where it is absent and may be; else those tests are skipped and say so. An sshd that
# came for the tests alone is not left listening.
system := postgresql chromium openssh-server iproute2 nftables zsh fish shellcheck
.venv/dev: .venv/demo
	@sshd=$$(command -v sshd); dpkg -s $(system) >/dev/null 2>&1 \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update --quiet=2 \
	&& DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 $(system) >/dev/null \
	&& { [ -n "$$sshd" ] || systemctl disable --now ssh >/dev/null 2>&1; }; } || true
	$(bin)/pip install --quiet --editable '.[gpu,swarm,tracker,notebook,kaggle,dev]'
	touch $@
