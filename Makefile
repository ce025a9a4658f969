# Two commands matter: `make demo` and `make test`. Each sets up everything it needs.
PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python -m alignment.run

.PHONY: venv demo demo-full test test-slow test-lm-eval faults gpu-check check audit experiments wheel bench clean

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,data,deepspeed]'
	touch $@

demo: venv
	$(RUN) stage=pipeline pipeline=mini

demo-full: venv
	$(RUN) stage=pipeline pipeline=full

# Two at once, each with one thread of arithmetic: threads that share cores wait for each other.
test: venv
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal

# What takes minutes: kills at random moments, the demo's figures, real text end to end.
test-slow: venv
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal -m slow

# The suite of lm-evaluation-harness with the harness itself, which is an extra; without it its tests are passed over.
test-lm-eval: venv
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lm-eval]'
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest tests/evals/suites/test_lm_eval.py

# Every stage struck by kills, full disks and damaged files, and started again: at most an hour, and it goes on where it
# was stopped.
faults: venv
	$(VENV)/bin/python tests/faults/campaign.py

# On a machine with a CUDA device, with whatever python there has PyTorch for it: PYTHON_GPU=python3
PYTHON_GPU := $(VENV)/bin/python
gpu-check:
	timeout 480 $(PYTHON_GPU) -m pytest -m gpu tests/gpu -rs --durations=10 -p no:cacheprovider

check: venv
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Known flaws in the pinned versions; says so where nobody can be asked.
audit: venv
	$(VENV)/bin/python .ci/audit.py

wheel: venv
	$(VENV)/bin/python -m build --wheel

bench: venv
	$(VENV)/bin/python benchmarks/sampling.py
	$(VENV)/bin/python benchmarks/sft.py
	$(VENV)/bin/python benchmarks/filters.py
	$(VENV)/bin/python benchmarks/data.py
	$(VENV)/bin/python benchmarks/reward.py
	$(VENV)/bin/python benchmarks/roles.py
	$(VENV)/bin/python benchmarks/rl.py --natural
	$(VENV)/bin/python benchmarks/merge.py --shape 2b
	$(VENV)/bin/python benchmarks/estimate.py
	$(VENV)/bin/python benchmarks/scaling.py

# What shows a trend, over several seeds: some six hours on two cores; what is finished is reused.
experiments: venv
	$(RUN) stage=pipeline pipeline=reward_effects
	$(RUN) stage=pipeline pipeline=warm
	$(RUN) stage=pipeline pipeline=reward_rounds
	$(RUN) stage=pipeline pipeline=reward_scaling
	$(RUN) stage=pipeline pipeline=rl_effects
	$(RUN) stage=pipeline pipeline=warp_effects
	$(RUN) stage=pipeline pipeline=distillation
	$(RUN) stage=pipeline pipeline=on_policy
	$(RUN) stage=pipeline pipeline=llama2
	$(RUN) stage=pipeline pipeline=gemma2
	$(RUN) stage=pipeline pipeline=ghost_effects
	$(RUN) stage=pipeline pipeline=hedging
	$(RUN) stage=pipeline pipeline=safety_scaling
	$(RUN) stage=pipeline pipeline=observations
	$(RUN) stage=pipeline pipeline=alignment_tax

clean:
	rm -rf runs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
