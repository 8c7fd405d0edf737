# Every target does its own set-up, and can be repeated.

AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo)

.PHONY: help audit demo test test-bcc test-clients test-discovery test-page fuzz lint build deb test-deb test-fresh test-kernels test-systemd soak bench bench-change bench-consul bench-hooks bench-plots bench-scale bench-sidecar bench-vm clean

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 24

audit: ## look for known advisories about the Python packages (fails where pypi.org's JSON cannot be asked); AUDIT_ARGS="--dry-run"
	@scripts/setup audit
	@scripts/audit $(AUDIT_ARGS)

demo: ## show the whole thing at work on this machine (root, or through sudo)
	@scripts/setup run
	@$(AS_ROOT) .venv/bin/clb-discovery demo

test: lint ## run every check and every test (root, or through sudo)
	@$(AS_ROOT) .venv/bin/pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

test-bcc: ## run the tests of the kernel's side over programs that BCC compiles here (root, or through sudo)
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/pytest -n 2 --dist loadgroup --loader bcc tests/kernel $(PYTEST_ARGS)

test-clients: ## run the tests with a JDK, Node, nginx and HAProxy (root, or through sudo)
	@scripts/setup clients
	@$(AS_ROOT) .venv/bin/pytest -m clients $(PYTEST_ARGS)

test-discovery: ## run the slow tests of discovery: clusters, ACLs, TLS, 1,000 services, faults (root, or through sudo)
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/pytest -m discovery $(PYTEST_ARGS)

fuzz: ## throw bytes at whoever reads what comes from outside, for ten minutes; FUZZ_ARGS="--seconds 60 srv"
	@scripts/setup fuzz
	@.venv/bin/python -m fuzz $(FUZZ_ARGS)

test-page: ## run the tests of the page of --metrics in Chromium (root, or through sudo)
	@scripts/setup page
	@$(AS_ROOT) .venv/bin/pytest -m page $(PYTEST_ARGS)

lint: ## run ruff and mypy
	@scripts/setup test
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

build: ## build the wheel and the sdist into dist/
	@scripts/setup run
	@.venv/bin/python -m hatchling build

deb: ## build a Debian package, for 12 and 13, into dist/
	@scripts/setup deb
	@scripts/build-deb

test-deb: deb ## install, use and purge the Debian package in bare Debian 12 and 13 roots (root, or through sudo)
	@$(AS_ROOT) scripts/test-fresh --deb

test-fresh: ## run demo and test in bare Debian 12 and 13 roots (root, or through sudo)
	@$(AS_ROOT) scripts/test-fresh

test-systemd: deb ## run the units under the systemd of Debian 12 and 13 in QEMU (root, or through sudo)
	@scripts/setup kernels
	@$(AS_ROOT) scripts/test-systemd

soak: ## ten minutes of everything that goes wrong, with nothing lost (root, or through sudo); SOAK_ARGS="--seconds 60 --seed 1"
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/python -m soak $(SOAK_ARGS)

bench: ## measure connects and requests beside iptables, nftables and HAProxy (root, or through sudo); BENCH_ARGS="--save"
	@scripts/setup bench
	@$(AS_ROOT) .venv/bin/python -m benchmarks.connect $(BENCH_ARGS)
	@$(AS_ROOT) .venv/bin/python -m benchmarks.established $(BENCH_ARGS)

bench-change: ## measure how soon a change in Consul is felt, beside HAProxy (root, or through sudo); BENCH_ARGS="--save"
	@scripts/setup bench
	@$(AS_ROOT) .venv/bin/python -m benchmarks.change $(BENCH_ARGS)

bench-consul: ## measure what sidecars ask of a Consul cluster (root, or through sudo); BENCH_ARGS="--save"
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/python -m benchmarks.consul_load $(BENCH_ARGS)

bench-hooks: ## measure what the programs cost a connect (root, or through sudo)
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/python -m benchmarks.hooks

bench-plots: ## make the pictures and tables of docs/benchmarks.md from what is in benchmarks/results
	@scripts/setup test
	@.venv/bin/python -m benchmarks.plot

bench-scale: ## measure the sidecar with up to 10,000 virtual and real servers (root, or through sudo); BENCH_ARGS="--save"
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/python -m benchmarks.scale $(BENCH_ARGS)

bench-sidecar: ## measure start, memory and idle time of the sidecar with 100 services (root, or through sudo)
	@scripts/setup test
	@$(AS_ROOT) .venv/bin/python -m benchmarks.sidecar $(BENCH_ARGS)

bench-vm: ## compare with IPVS and iptables by instructions, in emulated machines (root, or through sudo); BENCH_ARGS="--save"
	@scripts/setup kernels
	@$(AS_ROOT) .venv/bin/python -m benchmarks.vm $(BENCH_ARGS)

test-kernels: ## run the kernel tests on Debian's 5.10, 6.1 and 6.12 in QEMU (root, or through sudo)
	@scripts/setup kernels
	@$(AS_ROOT) scripts/test-kernels

clean: ## remove everything that the targets made, .venv included
	@$(AS_ROOT) rm -rf .venv .cache dist clb_discovery/_bpf .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -prune -exec $(AS_ROOT) rm -rf {} +
