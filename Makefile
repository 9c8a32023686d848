# Thin on purpose: each target is a line or two onto cargo. See README.md.
TARGET = $(or $(CARGO_TARGET_DIR),target)

.PHONY: demo demo-down test check bench deb lab lab-shell lab-down
.DEFAULT_GOAL := help

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 18

demo: ## one host, end to end, before your eyes (root)
	@tests/prepare demo
	cargo build --release --locked
	@$(TARGET)/release/demo up

demo-down: ## removes every trace of the demo
	@if [ -x $(TARGET)/release/demo ]; then $(TARGET)/release/demo down; fi

test: check ## everything that checks the project (root)
	cargo build --workspace --locked
	@tests/kubectls
	@if cargo nextest --version >/dev/null 2>&1; then \
	  cargo nextest run --workspace --locked --no-fail-fast; else cargo test --workspace --locked --no-fail-fast; fi

check: ## format, lints, dependencies
	@tests/prepare test
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@tests/dependencies

bench: ## how fast and how small, against plain containerd (root)
	@tests/prepare test
	cargo build --release --locked
	@$(TARGET)/release/bench

deb: ## Debian packages of both daemons, in target/debian
	@tests/prepare deb
	cargo build --release --locked
	systemd/deb $(TARGET)/release $(TARGET)/debian

lab: ## virtual machines with systemd and NFS (root); SCENARIO=name runs one on them, SIZE=small is two machines
	@tests/prepare lab
	cargo build --workspace --locked
	@$(TARGET)/debug/lab $(if $(SCENARIO),run $(SCENARIO),up $(if $(filter small,$(SIZE)),--small))

lab-shell: ## a shell on one of them: HOST=node1
	@$(TARGET)/debug/lab shell $(HOST)

lab-down: ## removes them all
	@if [ -x $(TARGET)/debug/lab ]; then $(TARGET)/debug/lab down; fi
