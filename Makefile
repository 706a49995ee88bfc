# Two commands matter: `make demo` and `make test`.  Everything lives in .venv; nothing else on the machine is touched.

VENV := .venv
BIN := $(VENV)/bin
# One thread each: the run itself says which process may use more.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1

.PHONY: help demo test test-processors test-slow test-slurm check bench bench-quick docs clean

help:  ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: pyproject.toml constraints.txt
	@sh scripts/find_python.sh > $(VENV).python || { rm -f $(VENV).python; exit 1; }
	"$$(cat $(VENV).python)" -m venv $(VENV)
	@rm -f $(VENV).python
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.ready  ## the main job: solve, stream, train, keep, report (about ninety seconds)
	$(BIN)/forebay run examples/darcy_demo.toml

# Runs with Ray and MPI use all cores by themselves, so they come one after the other; the rest shares the cores.
QUICK := not slow and not gpu and not slurm

test: $(VENV)/.ready  ## everything but the slow tests
	$(BIN)/python -m pytest -q -n auto --dist loadfile -m "$(QUICK) and not ray and not mpi"
	$(BIN)/python -m pytest -q -m "$(QUICK) and (ray or mpi)"

# Rounding differs between processors; OpenBLAS, PyTorch and numba can be told to compute as on an older one.
OLDER := "SkylakeX avx512 skylake-avx512" "Haswell avx2 haswell" "Nehalem default nehalem"

test-processors: $(VENV)/.ready  ## the quick tests without Ray and MPI, with the arithmetic of three older processors
	@failed=0; for older in $(OLDER); do set -- $$older; echo "== $$1"; \
	  OPENBLAS_CORETYPE=$$1 ATEN_CPU_CAPABILITY=$$2 NUMBA_CPU_NAME=$$3 NUMBA_CPU_FEATURES= \
	  $(BIN)/python -m pytest -q -n auto --dist loadfile -m "$(QUICK) and not ray and not mpi" || failed=1; \
	done; exit $$failed

test-slow: $(VENV)/.ready  ## the slow tests alone
	$(BIN)/python -m pytest -q -m "slow"

test-slurm: $(VENV)/.ready  ## a run on a real Slurm of two nodes on this host; as root it installs what it needs
	FOREBAY_REQUIRE_SLURM=1 $(BIN)/python -m pytest -q -m "slurm"

check: $(VENV)/.ready  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.ready  ## every benchmark in full; results go to benchmarks/results
	@status=0; for name in overlap ring online_vs_offline fno_step recycling skr auto solves_per_second \
	  rom_accuracy academic_cube rom_adaptive indicator cubature_scaling local_bases \
	  batched_cpu batched_gpu learned online_aggregation dcdm dataset_io scaling chaos; do \
	  $(BIN)/python benchmarks/$$name.py --write || status=1; done; exit $$status

bench-quick: $(VENV)/.ready  ## every benchmark in under a minute each
	@status=0; for name in overlap ring online_vs_offline fno_step recycling skr auto solves_per_second \
	  rom_accuracy academic_cube rom_adaptive indicator cubature_scaling local_bases \
	  batched_cpu batched_gpu learned online_aggregation dcdm dataset_io scaling chaos; do \
	  $(BIN)/python benchmarks/$$name.py --quick || status=1; done; exit $$status

docs: $(VENV)/.ready  ## the documentation as a site in build/docs; fails on a broken link
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict --quiet --site-dir build/docs
	@echo build/docs/index.html

clean:  ## everything that was made here, runs excepted
	rm -rf $(VENV) build dist src/forebay.egg-info .pytest_cache .mypy_cache .ruff_cache
