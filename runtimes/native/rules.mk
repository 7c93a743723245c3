# Build and test the native driver. What the tests need from registries, and all that they write, is in .native/.

NATIVE := .native
NATIVE_SOURCES := runtimes/native
NATIVE_BUILD := $(NATIVE)/build
FUZZ_SECONDS ?= 5

export CMAKE_GENERATOR := $(if $(shell command -v ninja),Ninja,Unix Makefiles)
CTEST := ctest --parallel $(shell nproc) --timeout 900 --output-on-failure --no-tests=error

.PRECIOUS: $(NATIVE)/.fetched-%
.PHONY: native test-native lint-native format-native test-arm64 test-android test-swift fuzz-native

$(NATIVE)/.fetched-%: $(NATIVE_SOURCES)/scripts/fetch.py $(READY)
	$(BIN)/python $< $(NATIVE) $*
	@touch $@

# Configure and build one of the configurations of CMakePresets.json.
native-%: $(NATIVE)/.fetched-headers $(NATIVE)/.fetched-library
	cmake -S $(NATIVE_SOURCES) --preset $* > /dev/null
	cmake --build $(NATIVE_BUILD)/$* --parallel $(shell nproc)

native: native-release  # the library and the tool molkv, in .native/build/release

test-native:  # what CI runs of the native driver
	$(eval START := $(shell date +%s))
	$(MAKE) native-release
	$(CTEST) --test-dir $(NATIVE_BUILD)/release
	MOLKV_NATIVE_BUILD=$(CURDIR)/$(NATIVE_BUILD)/release ONNXRUNTIME_INCLUDE_DIR=$(CURDIR)/$(NATIVE)/include $(PYTEST) \
	    -m "not excerpt" tests/native tests/molkv_export/packaging/test_native_example.py
	$(MAKE) native-sanitize
	$(CTEST) --test-dir $(NATIVE_BUILD)/sanitize
	$(MAKE) lint-native
	$(MAKE) test-arm64
	$(MAKE) test-android
	@echo "== tested the native driver in $$(($$(date +%s) - $(START))) s"

NATIVE_CODE = $(shell find $(NATIVE_SOURCES) runtimes/android/src runtimes/ios -name '*.cpp' -o -name '*.h')
CLANG_FORMAT := clang-format --style=file:$(NATIVE_SOURCES)/.clang-format

lint-native: native-sanitize
	$(CLANG_FORMAT) --dry-run --Werror $(NATIVE_CODE)
	$(BIN)/python $(BIN)/run-clang-tidy.py -clang-tidy-binary $(BIN)/clang-tidy -config-file $(NATIVE_SOURCES)/.clang-tidy \
	    -quiet -p $(NATIVE_BUILD)/sanitize -j $(shell nproc) '/$(NATIVE_SOURCES)/(src|tool|tests|fuzz)/'

format-native:
	$(CLANG_FORMAT) -i $(NATIVE_CODE)

# On two processors: with instructions for dot products and without them.
test-arm64: native-arm64 $(NATIVE)/.fetched-arm64
	ARM64_CPU=max $(CTEST) --test-dir $(NATIVE_BUILD)/arm64
	ARM64_CPU=cortex-a53 $(CTEST) --test-dir $(NATIVE_BUILD)/arm64
	cp $(NATIVE_BUILD)/arm64/libmolkv.so $(NATIVE)/libmolkv-arm64.so
	aarch64-linux-gnu-strip $(NATIVE)/libmolkv-arm64.so
	@echo "== the stripped library for arm64 has $$(stat -c %s $(NATIVE)/libmolkv-arm64.so) bytes"

# A long run, such as make fuzz-native FUZZ_SECONDS=3600 (for each target). It continues with the inputs of earlier runs.
fuzz-native: native-sanitize
	cmake -S $(NATIVE_SOURCES) --preset sanitize -DMOLKV_FUZZ_SECONDS=$(FUZZ_SECONDS) > /dev/null
	$(CTEST) --test-dir $(NATIVE_BUILD)/sanitize --label-regex fuzz --timeout $$(($(FUZZ_SECONDS) + 600))

# The Kotlin library on the JVM: it is compiled with its tests and run over JNI. The part for Android and the example app
# are only compiled, with declarations of Android's classes (src/test/android).
ANDROID := runtimes/android/src
KOTLIN := $(NATIVE)/kotlin
KOTLIN_LIBRARIES := $(KOTLIN)/kotlin-stdlib.jar:$(KOTLIN)/kotlinx-coroutines-core-jvm.jar:$(KOTLIN)/kotlin-test.jar
JNI = $(dir $(realpath $(shell command -v javac)))../include
KOTLINC := java -Xmx1g -cp "$(KOTLIN)/compiler/*:$(KOTLIN_LIBRARIES)" org.jetbrains.kotlin.cli.jvm.K2JVMCompiler \
    -Werror -no-stdlib -no-reflect -jvm-target 17 -cp $(KOTLIN_LIBRARIES)
WARNINGS := -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wsign-conversion -Werror

test-android: native-release $(NATIVE)/.fetched-kotlin
	mkdir -p $(NATIVE_BUILD)/android
	g++ -std=c++20 -O1 -shared -fPIC -fvisibility=hidden $(WARNINGS) -I$(NATIVE_SOURCES)/include \
	    -isystem $(JNI) -isystem $(JNI)/linux -isystem $(NATIVE)/include $(ANDROID)/main/cpp/*.cpp \
	    $(NATIVE_BUILD)/release/libmolkv_core.a -o $(NATIVE_BUILD)/android/libmolkv_jni.so
	$(KOTLINC) -d $(NATIVE_BUILD)/android/classes $(ANDROID)/main/kotlin $(ANDROID)/test
	$(KOTLINC):$(NATIVE_BUILD)/android/classes -d $(NATIVE_BUILD)/android/example runtimes/android/example/src/main/kotlin
	java -Xcheck:jni -cp $(NATIVE_BUILD)/android/classes:$(KOTLIN_LIBRARIES) \
	    -Dmolkv.library=$(CURDIR)/$(NATIVE_BUILD)/android/libmolkv_jni.so \
	    -Dmolkv.onnxruntime=$(CURDIR)/$(NATIVE)/x86_64/libonnxruntime.so \
	    -Dmolkv.bundles=$(CURDIR)/runtimes/conformance/bundles dev.molkv.JvmTestKt > $(NATIVE_BUILD)/android/test.log 2>&1 \
	    || { cat $(NATIVE_BUILD)/android/test.log; exit 1; }
	cat $(NATIVE_BUILD)/android/test.log
	@! grep "WARNING in native method" $(NATIVE_BUILD)/android/test.log  # what -Xcheck:jni found

# The Swift package in a Debian system that has Swift. Not in CI: the system is a download of 570 MB. Needs root. On Apple
# platforms, ONNX Runtime's headers are in a folder of its name, so they get one here, too.
SWIFT := $(CURDIR)/$(NATIVE)/swift

test-swift: $(NATIVE)/.fetched-headers $(NATIVE)/.fetched-library
	mkdir -p $(SWIFT)
	ln -sfn ../include $(SWIFT)/onnxruntime
	ln -sfn ../x86_64/libonnxruntime.so $(SWIFT)/libonnxruntime.so.1
	runtimes/ios/Tests/run_in_trixie.sh env LD_LIBRARY_PATH=$(SWIFT) swift run \
	    --package-path runtimes/ios/Tests --scratch-path $(NATIVE_BUILD)/swift -Xswiftc -warnings-as-errors \
	    -Xcxx -I$(SWIFT) -Xlinker $(SWIFT)/libonnxruntime.so.1 MolkvTest $(CURDIR)/runtimes/conformance

# Compare with the Python driver. Writes 7 GiB of models to demo/ and keeps them.
.PHONY: contender bench-native bench-gemma4
contender: native-release
	g++ -std=c++20 -O2 $(WARNINGS) -I$(NATIVE_SOURCES)/include -isystem $(NATIVE)/include benchmarks/native/contender.cpp \
	    $(NATIVE_BUILD)/release/libmolkv_core.a -ldl -pthread -o $(NATIVE_BUILD)/release/contender

bench-native: contender
	$(BIN)/python -m benchmarks.native --folder demo/bench-native --build $(NATIVE_BUILD)/release

bench-gemma4: contender  # writes 13 GB of models to demo/ and keeps them
	$(BIN)/python -m benchmarks.gemma4 --folder demo/bench-gemma4 --build $(NATIVE_BUILD)/release
