# make build   the binary, ./unum
# make play    a three-node cluster on this machine and a shell in it (root)
# make test    everything that runs in a few minutes (root for most of it)
# make test-long   builds, floods, deaths and other kernels: about an hour (root)
# make bench   what it costs, beside native (root)

SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

# The go to build with; see there. One that says GOTOOLCHAIN=local and is older
# than go.mod wants would only refuse: let it fetch the right one.
GO := $(shell .ci/go)
ifneq ($(GO),)
ifneq ($(shell GOTOOLCHAIN=local $(GO) list -m 2>/dev/null),unum)
ifeq ($(shell cd / && $(GO) env GOTOOLCHAIN),local)
export GOTOOLCHAIN := auto
endif
endif
endif
export CGO_ENABLED := 0
# The go command asks git about the checkout, and git would freshen its index:
# under sudo that leaves a file of root's in the user's checkout.
export GIT_OPTIONAL_LOCKS := 0

# git refuses to tell the revision of a checkout that is somebody else's.
VCS := $(shell git rev-parse HEAD >/dev/null 2>&1 || echo -buildvcs=false)

PLAY ?=
TEST ?= ./...
LONGTEST ?= ./unumtest/...
# How long test-long may take.
LONG ?= 60m
# The tests of test-long that are steady, however slow or busy the machine is:
# these decide in continuous integration. The others kill at random, for long.
STEADY := ^(TestBuildXZ|TestBoot)$$
RUN ?= .
SKIP ?= ^$$

.PHONY: build play test test-long test-steady test-random bench need-go need-root tools clean

# -s -w: no debugger's tables, a third less. -E: see first/entry_amd64.s; without
# it unum works, but for signals that were ignored when `unum run` was called.
build: need-go
	@[ ! -e unum ] || [ -O unum ] || rm -f unum # of another user: not to be written over
	@$(GO) build -trimpath $(VCS) -ldflags '-s -w -E first.entry' -o unum ./cmd/unum

play: need-root build
	@./unum play $(PLAY)

test: need-go tools build
	@$(GO) vet ./...
	@rm -f unsteady.out
	@UNUM_UNSTEADY="$$PWD/unsteady.out" UNUM_BIN="$$PWD/unum" $(GO) test -p 1 -timeout 20m $(TEST); \
	code=$$?; cat unsteady.out 2>/dev/null; rm -f unsteady.out; exit $$code

test-long: need-root need-go tools build
	@UNUM_LONG=1 UNUM_BIN="$$PWD/unum" $(GO) test -p 1 -timeout $(LONG) -v -count=1 -run '$(RUN)' -skip '$(SKIP)' $(LONGTEST)

# The two halves of test-long.
test-steady:
	@$(MAKE) test-long RUN='$(subst $$,$$$$,$(STEADY))'

test-random:
	@$(MAKE) test-long SKIP='$(subst $$,$$$$,$(STEADY))'

# BENCH=-quick takes three minutes instead of half an hour or more.
bench: need-root need-go tools build
	@$(GO) run ./bench/cmd/unum-bench -unum ./unum $(BENCH)

need-go:
	@if [ -z "$(GO)" ]; then \
	  echo "unum needs Go 1.21 or newer, and found none: https://go.dev/dl (Debian 12's own is 1.19)" >&2; exit 1; fi

need-root:
	@if [ "$$(id -u)" != 0 ]; then echo "this needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; fi

# What the tests run. Whatever cannot be installed is named; its tests skip.
tools:
	@.ci/tools

clean:
	@rm -f unum
