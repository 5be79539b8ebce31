# The front door. Every target works on its own on a fresh Debian-like machine with git, make and Rust, as root
# or with sudo; whatever is already there is not done again. `make` alone lists the targets.

# Everything that is built, downloaded or stored goes here, so that `make clean` really cleans.
export CARGO_TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))

# rustup puts cargo here, and a shell that was started before the installation does not know.
export PATH := $(PATH):$(HOME)/.cargo/bin

PREFIX ?= /usr/local

# Recipes share the package manager and cargo's locks: in parallel they would only wait for each other.
.NOTPARALLEL:
.PHONY: help build guest-init run test test-units test-tools test-arm64 check-macos check-vfkit bench bench-docs lint fuzz deny docs clean install image

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

build: ## lazyroot and the static guest-init, in target/release
	@sh scripts/deps.sh build
	@sh scripts/build.sh

guest-init: ## guest-init for guests of another architecture: ARCH=aarch64
	@sh scripts/deps.sh build
	@case "$(ARCH)" in aarch64) sh scripts/deps.sh arm64 ;; esac
	@sh scripts/guest-init.sh $(ARCH)

image: ## the demo image and kernel package, in target/demo
	@sh scripts/deps.sh image
	@sh scripts/image.sh

run: build image ## import the demo image, boot it lazily and run a command in it
	@sh scripts/deps.sh run
	@sh scripts/demo.sh

test: build image ## formatting, lints and every test, real VMs included
	@sh scripts/deps.sh test
	@sh scripts/test.sh

test-units: ## unit tests, and that of the architecture: no root, no VM, nothing else installed
	@sh scripts/deps.sh build
	@sh scripts/test-units.sh

test-tools: ## the programs that tests want besides; then `cargo test` and `cargo nextest run` work on their own
	@sh scripts/deps.sh test

test-arm64: build image ## boot arm64 guests, emulated on other machines
	@sh scripts/deps.sh arm64
	@sh scripts/deps.sh test
	@sh scripts/guest-init.sh aarch64
	@sh scripts/image-arm64.sh
	@sh scripts/test-arm64.sh

check-macos: ## type-check for macOS, warnings denied (LINK=link: link a program too)
	@sh scripts/deps.sh macos
	@sh scripts/check-macos.sh $(LINK)

check-vfkit: ## vfkit's own parser reads our command lines: VFKIT_SOURCES=DIR; needs Go
	@sh scripts/deps.sh build
	@sh scripts/check-vfkit.sh

bench: build image ## measure; figures go to target/bench (ARGS="--help" lists what can be chosen)
	@sh scripts/deps.sh bench
	@sh scripts/bench.sh $(ARGS)

bench-docs: ## write the last figures into the book
	@sh scripts/bench.sh --docs docs/src/explanation

lint: ## rustfmt, clippy and, where it is installed, shellcheck
	@sh scripts/deps.sh lint
	@sh scripts/lint.sh

fuzz: ## fuzz the verifier and the parsers, FUZZ_SECONDS (60) each
	@sh scripts/deps.sh fuzz
	@sh scripts/fuzz.sh

deny: ## licences and sources of all dependencies (cargo-deny)
	@sh scripts/deps.sh lint
	@sh scripts/deny.sh

docs: ## the book, in target/book
	@sh scripts/docs.sh

# Does not build, so that `make build && sudo make install` never runs cargo as root.
install: ## into PREFIX (/usr/local), below DESTDIR
	@test -x "$(CARGO_TARGET_DIR)/release/guest-init" || { echo 'nothing to install: run "make build" first' >&2; exit 1; }
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(PREFIX)/libexec/lazyroot"
	install -m 755 "$(CARGO_TARGET_DIR)/release/lazyroot" "$(DESTDIR)$(PREFIX)/bin/lazyroot"
	install -m 755 "$(CARGO_TARGET_DIR)/release/guest-init" "$(DESTDIR)$(PREFIX)/libexec/lazyroot/guest-init"
	"$(CARGO_TARGET_DIR)/release/lazyroot" man "$(DESTDIR)$(PREFIX)/share/man/man1"
	for pair in bash:bash-completion/completions/lazyroot zsh:zsh/site-functions/_lazyroot fish:fish/vendor_completions.d/lazyroot.fish; do \
	    file="$(DESTDIR)$(PREFIX)/share/$${pair#*:}"; install -d "$${file%/*}"; \
	    "$(CARGO_TARGET_DIR)/release/lazyroot" completions "$${pair%%:*}" >"$$file" || exit 1; \
	done

clean: ## remove everything that the targets above made
	@sh scripts/clean.sh
