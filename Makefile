# Every target does its own set-up, and can be repeated.

AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo)
# Three for each processor and one more, because tests wait more than they compute.
PROCESSES := $(shell expr 3 '*' $$(nproc) + 1)
SHELL_SCRIPTS = $(shell grep -rlIE '^\#!.*[/ ](ba|da)?sh$$' .ci benchmarks contrib scripts tests)
C_FILES = $(wildcard $(addsuffix /*.[ch],benchmarks bpf soak))
# They run side by side; the slowest comes first.
LINTERS := lint-mypy lint-shell lint-ruff lint-format lint-c

.PHONY: help check audit demo page-picture test test-bcc test-clients test-discovery test-page fuzz lint $(LINTERS) build man deb test-deb test-fresh test-kernels test-systemd soak bench bench-change bench-consul bench-failure bench-hooks bench-plots bench-scale bench-sidecar bench-vm clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 24

check: lint ## run lint and every test that needs no root, kernel, Consul or DNS server, in a minute
	@.venv/bin/pytest --check -n $(PROCESSES) $(PYTEST_ARGS)

audit: ## look for known advisories about the Python packages (fails if pypi.org's JSON API cannot be reached); AUDIT_ARGS="--dry-run"
	@scripts/setup audit
	@scripts/audit $(AUDIT_ARGS)

demo: ## show everything at work on this machine (root, or through sudo)
	@scripts/setup run
	@$(AS_ROOT) .venv/bin/clb-discovery demo

test: ## run lint and every test but those of the targets below (root, or through sudo)
	@scripts/setup test
	@$(MAKE) --no-print-directory lint
	@$(AS_ROOT) .venv/bin/pytest -n $(PROCESSES) --dist loadgroup --durations 20 $(PYTEST_ARGS)

test-bcc: ## run the kernel tests with programs that BCC compiles on this machine (root, or through sudo)
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/pytest -n $$(nproc) --dist loadgroup --loader bcc tests/kernel $(PYTEST_ARGS)

test-clients: ## run the tests with a JDK, Node, nginx and HAProxy (root, or through sudo)
	@scripts/setup clients
	@$(AS_ROOT) .venv/bin/pytest -m clients $(PYTEST_ARGS)

test-discovery: ## run the slow tests of discovery: clusters, ACLs, TLS, 1,000 services, faults (root, or through sudo)
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/pytest -m discovery $(PYTEST_ARGS)

fuzz: ## fuzz every parser of untrusted input for ten minutes; FUZZ_ARGS="--seconds 60 srv"
	@scripts/setup fuzz
	@.venv/bin/python -m fuzz $(FUZZ_ARGS)

test-page: ## run the tests of the page of --metrics in Chromium (root, or through sudo)
	@scripts/setup page
	@$(AS_ROOT) .venv/bin/pytest -m page $(PYTEST_ARGS)

page-picture: ## take docs/page.png from the page in Chromium (root, or through sudo)
	@scripts/setup page
	@$(AS_ROOT) .venv/bin/pytest -m page -k test_looks_right
	@cp .cache/page/light.png docs/page.png

lint: ## run ruff, mypy, shellcheck and clang-format
	@scripts/setup check
	@$(MAKE) --no-print-directory --jobs --keep-going --output-sync $(LINTERS)

lint-mypy:
	@.venv/bin/mypy

lint-shell:
	@shellcheck $(SHELL_SCRIPTS)

lint-ruff:
	@.venv/bin/ruff check .

lint-format:
	@.venv/bin/ruff format --check .

lint-c:
	@clang-format --dry-run --Werror $(C_FILES)

build: ## build the wheel and the sdist into dist/
	@scripts/setup run
	@.venv/bin/python -m hatchling build

man: ## make the manual page, dist/clb-discovery.1
	@scripts/setup run
	@mkdir -p dist
	@.venv/bin/python scripts/manual.py >dist/clb-discovery.1

deb: ## build a Debian package, for 12 and 13, into dist/
	@scripts/setup deb
	@scripts/build-deb

test-deb: deb ## install, use and purge the Debian package in bare roots of Debian 12 and 13 (root, or through sudo)
	@$(AS_ROOT) scripts/test-fresh --deb

test-fresh: ## type the commands of README, and run demo and test, in bare roots of Debian 12 and 13 (root, or through sudo)
	@$(AS_ROOT) scripts/test-fresh --readme
	@$(AS_ROOT) scripts/test-fresh

test-systemd: deb ## run the units under the systemd of Debian 12 and 13 in QEMU (root, or through sudo)
	@scripts/setup kernels
	@$(AS_ROOT) scripts/test-systemd

soak: ## let everything fail at once for ten minutes, without a lost connect (root, or through sudo); SOAK_ARGS="--seconds 60 --seed 1"
	@scripts/setup soak
	@$(AS_ROOT) .venv/bin/python -m soak $(SOAK_ARGS)

bench: ## measure connects, connections and requests, compared with iptables, nftables and HAProxy (root, or through sudo); BENCH_ARGS="--save"
	@scripts/setup bench
	@$(AS_ROOT) .venv/bin/python -m benchmarks.connect $(BENCH_ARGS)
	@$(AS_ROOT) .venv/bin/python -m benchmarks.connection $(BENCH_ARGS)
	@$(AS_ROOT) .venv/bin/python -m benchmarks.established $(BENCH_ARGS)

bench-change: ## measure how soon a change in Consul takes effect, compared with HAProxy (root, or through sudo); BENCH_ARGS="--save"
	@scripts/setup bench
	@$(AS_ROOT) .venv/bin/python -m benchmarks.change $(BENCH_ARGS)

bench-consul: ## measure the load of sidecars on a Consul cluster (root, or through sudo); BENCH_ARGS="--save"
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/python -m benchmarks.consul_load $(BENCH_ARGS)

bench-failure: ## measure what clients see when a real server fails, compared with iptables, HAProxy and nginx (root, or through sudo); BENCH_ARGS="--save"
	@scripts/setup bench
	@$(AS_ROOT) .venv/bin/python -m benchmarks.failure $(BENCH_ARGS)

bench-hooks: ## measure the cost of the BPF programs per connect (root, or through sudo)
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/python -m benchmarks.hooks

bench-plots: ## make the pictures and tables of docs/benchmarks.md from benchmarks/results
	@scripts/setup test
	@.venv/bin/python -m benchmarks.plot

bench-scale: ## measure the sidecar with up to 10,000 virtual and real servers (root, or through sudo); BENCH_ARGS="--save"
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/python -m benchmarks.scale $(BENCH_ARGS)

bench-sidecar: ## measure start, memory and idle time of the sidecar with 100 services (root, or through sudo)
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/python -m benchmarks.sidecar $(BENCH_ARGS)

bench-vm: ## count instructions of a connection, and compare with IPVS and iptables, in emulated machines (root, or through sudo); BENCH_ARGS="--save"
	@scripts/setup kernels
	@$(AS_ROOT) .venv/bin/python -m benchmarks.vm $(BENCH_ARGS)

test-kernels: ## run the kernel tests on Debian's 5.10, 6.1 and 6.12 in QEMU (root, or through sudo)
	@scripts/setup kernels
	@$(AS_ROOT) scripts/test-kernels

clean: ## remove all files that the targets made, also .venv
	@$(AS_ROOT) rm -rf .venv .cache dist clb_discovery/_bpf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -prune -exec $(AS_ROOT) rm -rf {} +
