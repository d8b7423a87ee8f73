# Everything here works on a fresh clone: each target first lets scripts/bootstrap.sh check, or install, what it needs.
# There is one profile, release: tests, benchmarks and the shipped binary share one build of the dependencies.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Outside of the clone, so that a new clone finds the dependencies built.
CARGO_TARGET_DIR ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/streamshield/target
export CARGO_TARGET_DIR
export PATH := $(PATH):$(HOME)/.cargo/bin
STREAMSHIELD := $(CARGO_TARGET_DIR)/release/streamshield

DEMO_SECONDS ?=
SOAK_MINUTES ?= 20
KILLS ?= 100
KILL_RECORDS ?=
EVENTS ?=
SEEDS ?= 2000
RUNS ?= 10
SEED ?=
ARGS ?=

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: bootstrap
bootstrap: ## check or install what a build needs
	@scripts/bootstrap.sh build

.PHONY: build
build: bootstrap ## the binary, in $CARGO_TARGET_DIR/release/streamshield
	cargo build --release --workspace

.PHONY: demo
demo: build ## hot items of a generated auction, live in the terminal; no broker, no Java (DEMO_SECONDS=10 ends by itself)
	@$(STREAMSHIELD) run examples/hot-items.yaml $(if $(DEMO_SECONDS),--duration $(DEMO_SECONDS)s) --summary json

.PHONY: demo-failover
demo-failover: build ## three workers, one killed every 10 s: gaps by phase and a running proof; no broker, no Java (DEMO_SECONDS=60 ends by itself)
	@$(CARGO_TARGET_DIR)/release/bench demo $(if $(DEMO_SECONDS),--seconds $(DEMO_SECONDS)) $(ARGS)

.PHONY: test
test: bootstrap ## everything, with a real Apache Kafka on loopback (ARGS="-- name" for some tests)
	@scripts/test.sh $(ARGS)

.PHONY: test-kill
test-kill: build ## the short kill test, as in `make test`
	@scripts/with-kafka.sh cargo test --release --workspace --test integration -- --nocapture kill_test

.PHONY: kill-test
kill-test: build ## the long kill test: KILLS=100 → target/bench/kill-test.json
	@scripts/with-kafka.sh $(CARGO_TARGET_DIR)/release/kill-test --kills $(KILLS) $(if $(KILL_RECORDS),--records $(KILL_RECORDS)) $(ARGS)

.PHONY: simulate
simulate: build ## SEEDS=2000 simulated clusters with faults, all invariants checked → target/bench/simulation.json (SEED=17 replays one)
	@$(CARGO_TARGET_DIR)/release/simulate $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(ARGS)

# A broker to measure beside: room for its buffers, and the JVM's own compilers (scripts/kafka.sh is for brokers that live for a test).
STEADY_BROKER := KAFKA_HEAP=$${KAFKA_HEAP:-512m} KAFKA_JVM_PERFORMANCE_OPTS=-XX:+UseSerialGC

.PHONY: bench
bench: build ## Nexmark q0 q1 q2 q12 beside Apache Flink → target/bench/nexmark.json (EVENTS=…)
	@$(STEADY_BROKER) scripts/with-kafka.sh $(CARGO_TARGET_DIR)/release/bench nexmark $(if $(EVENTS),--events $(EVENTS)) $(ARGS)

.PHONY: bench-latency
bench-latency: build ## from the moment an event is due to committed output, two stages, 20,000 events/s → target/bench/latency.json
	@$(STEADY_BROKER) scripts/with-kafka.sh $(CARGO_TARGET_DIR)/release/bench latency $(ARGS)

.PHONY: bench-memory
bench-memory: build ## 10 million keys in one window, 512 MiB budget → target/bench/memory.json
	@$(STEADY_BROKER) scripts/with-kafka.sh $(CARGO_TARGET_DIR)/release/bench memory $(if $(EVENTS),--events $(EVENTS)) $(ARGS)

.PHONY: bench-control-log
bench-control-log: bootstrap ## the control log of 10,000 workers and 70,000 regions, without a broker → target/bench/control-log.json (ARGS="100 700")
	cargo build --release -p streamshield-core -p unify --example control_log
	@$(CARGO_TARGET_DIR)/release/examples/control_log $(ARGS)

# The broker lets Kafka Streams use its best settings: short sessions, and transactions of the dead that end soon.
STREAMS_BROKER := group.min.session.timeout.ms=100 transaction.abort.timed.out.transaction.cleanup.interval.ms=100

.PHONY: bench-failover
bench-failover: build ## kill -9 of a worker under load, by tier and state, beside Kafka Streams → target/bench/failover.json (ARGS="--tier 1 --kills 50")
	@scripts/bootstrap.sh streams
	@$(STEADY_BROKER) KAFKA_EXTRA="$$(printf '%s\n' $(STREAMS_BROKER))" scripts/with-kafka.sh $(CARGO_TARGET_DIR)/release/bench failover $(ARGS)

.PHONY: bench-overhead
bench-overhead: build ## what tiers, checkpoints, restores, planned hand-overs and a failing region cost → target/bench/overhead.json
	@$(STEADY_BROKER) scripts/with-kafka.sh $(CARGO_TARGET_DIR)/release/bench overhead $(ARGS)

.PHONY: soak
soak: build ## a kill every 10 s for SOAK_MINUTES=20: nothing grows, nothing is left → target/bench/soak.json
	@$(STEADY_BROKER) scripts/with-kafka.sh $(CARGO_TARGET_DIR)/release/bench soak --minutes $(SOAK_MINUTES) $(ARGS)

.PHONY: chaos-smoke
chaos-smoke: build ## a short plan of faults on a real 3-broker Kafka, under three minutes → target/chaos/smoke (journal.json, report.html)
	@scripts/bootstrap.sh kafka chaos
	@$(STREAMSHIELD) chaos run smoke $(ARGS)

.PHONY: gate
gate: build ## the gate of a release: 30 kills, 16 types of faults and more, a million records → target/chaos/gate/journal.json
	@scripts/bootstrap.sh kafka s3 chaos
	@$(STREAMSHIELD) chaos run gate $(ARGS)

.PHONY: campaign
campaign: build ## an hour of random faults, several at once → target/chaos/campaign/journal.json (ARGS="--seed 7")
	@scripts/bootstrap.sh kafka s3 chaos
	@$(STREAMSHIELD) chaos run campaign $(ARGS)

FALSE_ALARMS := target/chaos/false-alarms

.PHONY: false-alarms
false-alarms: build ## RUNS=10 runs in which nothing is broken, seeds 1 to RUNS: how many pass → target/chaos/false-alarms/false-alarms.json
	@scripts/bootstrap.sh kafka chaos
	@# Each run takes the signal by itself; without the trap the next one would begin.
	@trap 'exit 130' INT TERM; mkdir -p $(FALSE_ALARMS); passed=0; runs=; \
	for seed in $$(seq $(RUNS)); do \
	  status=0; $(STREAMSHIELD) chaos run calm --seed $$seed --out $(FALSE_ALARMS)/$$seed $(ARGS) || status=$$?; \
	  if [ $$status = 0 ]; then passed=$$((passed + 1)); fi; \
	  runs+="$${runs:+, }{\"seed\": $$seed, \"exit_code\": $$status}"; \
	done; \
	echo "{\"plan\": \"calm\", \"passed\": $$passed, \"of\": $(RUNS), \"runs\": [$$runs]}" >$(FALSE_ALARMS)/false-alarms.json; \
	echo "$$passed of $(RUNS) runs without a fault passed: $(FALSE_ALARMS)/false-alarms.json"; [ $$passed = $(RUNS) ]

.PHONY: mutants
mutants: bootstrap ## a test build with one guard off at a time, which short plans must catch → target/chaos/mutants/mutants.json (ARGS="skip-fence doubt" for some)
	@mkdir -p target/chaos/mutants
	cargo build --release -p streamshield -p unify --features streamshield/mutants
	@cp --remove-destination $(STREAMSHIELD) target/chaos/mutants/streamshield
	@# The program without mutants takes its place again, so that nobody runs the other one by mistake.
	cargo build --release -p streamshield -p unify
	@target/chaos/mutants/streamshield chaos mutants $(ARGS)

.PHONY: fmt
fmt: ## format the code
	@scripts/bootstrap.sh build lint
	cargo fmt --all

.PHONY: lint
lint: ## formatting and clippy, as strict as a review
	@scripts/bootstrap.sh build lint
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings

.PHONY: clean-kafka
clean-kafka: ## stop and wipe the Kafka of an interrupted run
	@for folder in target/kafka/*; do [ ! -d "$$folder" ] || scripts/kafka.sh stop "$$folder" --wipe; done
