# PYTHON: the interpreter of an environment that has the dependencies, nanobind, cmake and ninja.
PYTHON ?= .venv/bin/python

.PHONY: native

# The compiled module, built in place (src/codeword/_native*.so) and again only where a source changed.
native: build/native/build.ninja
	@$(PYTHON) -m cmake --build build/native

build/native/build.ninja: CMakeLists.txt Makefile
	@$(PYTHON) -m cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release -DCODEWORD_INPLACE=ON \
	    -DPython_EXECUTABLE="$$($(PYTHON) -c 'import sys; print(sys.executable)')" -Dnanobind_DIR="$$($(PYTHON) -m nanobind --cmake_dir)"

# ---------------------------------------------------------------- a fresh machine: Python >= 3.11 and a C++20 compiler, nothing else

PYTHON3 ?= python3
SOURCES := $(shell find src csrc -type f \( -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.npy' -o -name '*.txt' -o -name '*.gz' -o -name '*.safetensors' \))
# PIP_CONSTRAINT reaches the isolated build as well, -c would not.
INSTALL = PIP_CONSTRAINT=constraints.txt .venv/bin/python -m pip install --disable-pip-version-check --quiet

.PHONY: demo test

# Compare quantizers on real vectors, build an index, search it. Under a minute once installed.
demo: .venv/installed
	@.venv/bin/codeword demo --out demo

.venv/installed: constraints.txt pyproject.toml CMakeLists.txt $(SOURCES)
	@echo "Installing codeword into .venv (once; the larger part is torch)"
	@test -x .venv/bin/python || $(PYTHON3) -m venv .venv
	@$(INSTALL) '.[report]'
	@touch $@

# The whole suite from a fresh environment.
test:
	@rm -rf .venv
	@$(PYTHON3) -m venv .venv
	@$(INSTALL) '.[dev]'
	@touch .venv/installed
	@.venv/bin/python -m pytest -n 2

# ---------------------------------------------------------------- files under attack; counts go to results/reliability.csv

FUZZ_SECONDS ?= 60
NIGHT ?= --rounds 1000 --stride 1 --seconds 1800

.PHONY: fuzz night

# Coverage-guided fuzzing of every reader, FUZZ_SECONDS for all of them together.
fuzz:
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(INSTALL) '.[dev,fuzz]'
	@PYTHONPATH=src $(PYTHON) fuzz/run.py --seconds $(FUZZ_SECONDS)

# Hours: kill loops, every prefix and bit of every kind of file, long fuzzing, and the tests marked night.
night:
	@$(PYTHON) -c 'import atheris' 2>/dev/null || $(INSTALL) '.[dev,fuzz]'
	@PYTHONPATH=src $(PYTHON) fuzz/night.py $(NIGHT)
	@PYTHONPATH=src $(PYTHON) -m pytest -m night

# ---------------------------------------------------------------- numbers: every table in README.md and docs/ comes from results/

.PHONY: results

# Measure again what the tables show (on a quiet machine), then write the tables. Runs the checkout, so that rows carry its commit.
results: native
	@rm -rf build/demo
	cd build && PYTHONPATH=../src $(abspath $(PYTHON)) -m codeword demo --out demo | tee ../results/demo.txt
	cp build/demo/compare/results.csv results/compare.csv
	cp build/demo/compare/plot.png docs/rate_distortion.png
	for name in rabitq pvq_llm simvq survey_taxonomy saq fvq_vqbridge vqgan_lc fqgan vit_vqgan dq_vae; do PYTHONPATH=src $(PYTHON) -m codeword reproduce $$name --save results/claims.csv; done
	PYTHONPATH=src $(PYTHON) docs/build.py

.PHONY: benchmarks

# Beside the peers (extra bench) on a quiet machine, some hours; product, additive, tokenizers and equal_bits go on where they stopped.
VECTORS ?= ../shared/data/vectors
benchmarks: native
	for name in nearest kmeans; do PYTHONPATH=src $(PYTHON) benchmarks/$$name.py --data $(VECTORS) || exit 1; done
	for name in bit_scan after_torch ops; do PYTHONPATH=src $(PYTHON) benchmarks/$$name.py || exit 1; done
	PYTHONPATH=src $(PYTHON) benchmarks/lut_scan.py $(VECTORS)/minilm_sentences.f16.npy --out results/lut_scan.csv
	for name in ivf_rabitq segment_scan; do \
	  PYTHONPATH=src $(PYTHON) benchmarks/$$name.py $(VECTORS)/minilm_sentences.f16.npy --out results/$$name.csv || exit 1; done
	PYTHONPATH=src $(PYTHON) benchmarks/saq.py $(VECTORS) --out results/saq.csv
	PYTHONPATH=src $(PYTHON) benchmarks/gaussian.py --out results/gaussian.csv
	PYTHONPATH=src $(PYTHON) benchmarks/anisotropic.py $(VECTORS)/minilm_sentences.f16.npy
	PYTHONPATH=src $(PYTHON) benchmarks/streaming.py
	OMP_WAIT_POLICY=passive PYTHONPATH=src $(PYTHON) benchmarks/product.py $(VECTORS)/minilm_sentences.f16.npy $(VECTORS)/mnist784.npz
	PYTHONPATH=src $(PYTHON) benchmarks/additive.py $(VECTORS)
	for name in layers lattices sources; do PYTHONPATH=src $(PYTHON) benchmarks/$$name.py --out results/$$name.csv || exit 1; done
	PYTHONPATH=src $(PYTHON) benchmarks/tokenizer_job.py $(VECTORS)/../cifar10/train.parquet --valid $(VECTORS)/../cifar10/test.parquet
	PYTHONPATH=src $(PYTHON) benchmarks/equal_bits.py $(VECTORS)/../cifar10
	PYTHONPATH=src $(PYTHON) benchmarks/tokenizers.py $(VECTORS)/../cifar10 --minutes 20
	PYTHONPATH=src $(PYTHON) docs/build.py
