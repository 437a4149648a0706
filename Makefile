# PYTHON: the interpreter of an environment that has the dependencies, nanobind, cmake and ninja.
PYTHON ?= .venv/bin/python

.PHONY: native

# The compiled module, built in place (src/codeword/_native*.so) and again only where a source changed.
native: build/native/build.ninja
	@$(PYTHON) -m cmake --build build/native

build/native/build.ninja: CMakeLists.txt Makefile
	@$(PYTHON) -m cmake -S . -B build/native -G Ninja -DCMAKE_BUILD_TYPE=Release -DCODEWORD_INPLACE=ON \
	    -DPython_EXECUTABLE="$$($(PYTHON) -c 'import sys; print(sys.executable)')" -Dnanobind_DIR="$$($(PYTHON) -m nanobind --cmake_dir)"
