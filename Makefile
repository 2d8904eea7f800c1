# Weft. `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
NAME    ?= default
NODES   ?= 2
BIN     := $(CURDIR)/bin
CLANG   ?= clang-19

# The Kubernetes version that is linked, as the API server reports it.
KUBERNETES := -X k8s.io/component-base/version.gitVersion=v1.37.2 -X k8s.io/component-base/version.gitMajor=1 \
	-X k8s.io/component-base/version.gitMinor=37 -X k8s.io/client-go/pkg/version.gitVersion=v1.37.2

# Static programs: no cgo, no debug information. Tests are built alike, so that
# one build cache serves both.
export CGO_ENABLED := 0
GOBUILD := go build -ldflags "-s -w -X main.version=$(VERSION) $(KUBERNETES)"

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: up
up: build images ## build, start a cluster of NODES nodes with the demo, print what to try
	@$(BIN)/weft up --name $(NAME) --nodes $(NODES)
	@tools/demo/run $(NAME)

.PHONY: down
down: ## remove the cluster and all it made
	@$(BIN)/weft down --name $(NAME)

.PHONY: build
build: weft runtime ## build every program into bin/

.PHONY: weft
weft: ## build Weft's own programs
	@mkdir -p $(BIN)
	@tools/step "weft, weft-cni" $(GOBUILD) -o $(BIN)/ ./cmd/weft ./cmd/weft-cni
	@tools/step "weft-server (several minutes the first time)" $(GOBUILD) -o $(BIN)/ ./cmd/weft-server

# The container runtime comes from pinned modules and is built once.
RUNTIME := $(BIN)/containerd $(BIN)/containerd-shim-runc-v2 $(BIN)/runc
.PHONY: runtime
runtime: $(RUNTIME) ## build containerd, its shim and runc

$(BIN)/containerd $(BIN)/containerd-shim-runc-v2: tools/runtime/go.mod
	@mkdir -p $(BIN)
	@tools/step "$(@F) (several minutes the first time)" \
		go -C tools/runtime build -trimpath -ldflags "-s -w" -o $@ github.com/containerd/containerd/v2/cmd/$(@F)
	@touch $@

$(BIN)/runc: tools/runtime/go.mod
	@tools/install gcc libc6-dev libseccomp-dev pkg-config
	@mkdir -p $(BIN)
	@CGO_ENABLED=1 tools/step runc go -C tools/runtime build -trimpath -ldflags "-s -w" -tags seccomp -o $@ github.com/opencontainers/runc
	@touch $@

IMAGES := $(addprefix $(BIN)/images/,pause.tar busybox.tar demo.tar)
.PHONY: images
images: $(IMAGES) ## build the container images: pause, busybox, the demo

$(BIN)/image: $(wildcard tools/image/*.go)
	@$(GOBUILD) -o $@ ./tools/image

$(BIN)/images/pause.tar: tools/pause/pause.c $(BIN)/image
	@tools/install gcc libc6-dev
	@mkdir -p $(@D)
	@gcc -static -Os -s -Wall -Werror -o $(BIN)/pause $<
	@$(BIN)/image -name registry.weft.local/pause:1 -out $@ -entrypoint /pause -user 65535:65535 $(BIN)/pause:/pause

$(BIN)/images/busybox.tar: $(BIN)/image
	@tools/install busybox-static
	@mkdir -p $(@D)
	@$(BIN)/image -name registry.weft.local/busybox:1,docker.io/library/busybox:latest -out $@ -busybox /bin/busybox -cmd sh

$(BIN)/images/demo.tar: $(wildcard tools/demo/app/*.go) $(BIN)/image
	@mkdir -p $(@D)
	@$(GOBUILD) -o $(BIN)/demo ./tools/demo/app
	@$(BIN)/image -name registry.weft.local/demo:1 -out $@ -entrypoint /app -user 65532 $(BIN)/demo:/app

.PHONY: test
test: lint test-unit test-others test-e2e ## every test: unit, BPF, real kernel, against upstream's controllers, end to end

.PHONY: lint
lint: ## formatting, go vet, staticcheck
	@tools/lint

.PHONY: test-unit
test-unit: runtime images ## unit, BPF and real-kernel tests
	@tools/install iproute2 iputils-ping
	@WEFT_BIN=$(BIN) go test -timeout 20m $$(go list ./... | grep -v /test/e2e)

.PHONY: test-others
test-others: ## tests of the other modules, with a few of test-traces' histories
	@$(CONFORMANCE) test .
	@$(MAKE) --no-print-directory test-traces SEQUENCES=50

.PHONY: test-e2e
test-e2e: build images ## end-to-end tests on a cluster of their own
	@tools/install curl diffutils iproute2 iptables nftables
	@WEFT_BIN=$(BIN) go test -count=1 -timeout 30m -v ./test/e2e

# Upstream's programs, in the version that the module of the conformance tests
# pins.
CONFORMANCE := go -C test/conformance
UPSTREAM := $(addprefix $(BIN)/,ginkgo kubectl agnhost nnp sample-apiserver etcd)
$(BIN)/ginkgo: PACKAGE := github.com/onsi/ginkgo/v2/ginkgo
$(BIN)/kubectl: PACKAGE := k8s.io/kubernetes/cmd/kubectl
$(BIN)/agnhost: PACKAGE := k8s.io/kubernetes/test/images/agnhost
$(BIN)/nnp: PACKAGE := k8s.io/kubernetes/test/images/nonewprivs
$(BIN)/sample-apiserver: PACKAGE := k8s.io/sample-apiserver
$(BIN)/etcd: PACKAGE := go.etcd.io/etcd/server/v3
$(UPSTREAM): test/conformance/go.mod
	@mkdir -p $(BIN)
	@tools/step $(@F) $(CONFORMANCE) build -ldflags "-s -w $(KUBERNETES)" -o $@ $(PACKAGE)
	@touch $@

$(BIN)/e2e.test: test/conformance/go.mod
	@mkdir -p $(BIN)
	@tools/step "e2e.test (several minutes the first time)" $(CONFORMANCE) test -c -ldflags "-s -w $(KUBERNETES)" -o $@ k8s.io/kubernetes/test/e2e
	@touch $@

FOCUS    ?=
PARALLEL ?= 4
.PHONY: conformance
conformance: $(BIN)/e2e.test $(UPSTREAM) $(BIN)/image $(BIN)/images/pause.tar ## upstream's [Conformance] specs against cluster NAME; FOCUS=regexp selects
	@tools/install bash curl bind9-dnsutils netcat-openbsd iproute2 socat libc-bin busybox-static
	@$(CONFORMANCE) build -o $(BIN)/sh ./sh
	@$(CONFORMANCE) build -o $(BIN)/conformance-run .
	@$(BIN)/conformance-run -bin $(BIN) -name $(NAME) -focus '$(FOCUS)' -parallel $(PARALLEL)

# kube-proxy, which the benchmarks compare with, comes from a pinned module.
$(BIN)/kube-proxy: tools/kubeproxy/go.mod
	@mkdir -p $(BIN)
	@tools/step "kube-proxy (several minutes the first time)" \
		go -C tools/kubeproxy build -ldflags "-s -w $(KUBERNETES)" -o $@ k8s.io/kubernetes/cmd/kube-proxy
	@touch $@

BENCH ?=
.PHONY: bench
bench: build images $(BIN)/kube-proxy ## measure against plain pods, kube-proxy and bare CRI calls; BENCH=-help lists flags
	@tools/install iptables nftables iproute2
	@$(GOBUILD) -o $(BIN)/bench-run ./test/bench
	@$(BIN)/bench-run -bin $(BIN) $(BENCH)

# The comparisons with upstream's workload controllers have a module of their
# own, so that nothing else links them.
CONTROLLERS := go -C test/controllers

BENCH_CONTROLLERS ?=
.PHONY: bench-controllers
bench-controllers: ## measure the workload controllers against kube-controller-manager's; BENCH_CONTROLLERS='-scale 0.1' is quick, -help lists flags
	@mkdir -p $(BIN)
	@tools/step "bench-controllers (several minutes the first time)" $(CONTROLLERS) build -ldflags "-s -w $(KUBERNETES)" -o $(BIN)/bench-controllers ./bench
	@$(BIN)/bench-controllers -json $(BIN)/bench-controllers.json $(BENCH_CONTROLLERS)

SEQUENCES ?= 300
SEED      ?= 1
.PHONY: test-traces
test-traces: ## hold the workload controllers against upstream's in SEQUENCES random histories of each kind, from SEED on
	@$(CONTROLLERS) test ./bench
	@$(CONTROLLERS) test -count=1 -timeout 2h ./traces -args -sequences $(SEQUENCES) -seed $(SEED)

.PHONY: generate
generate: ## compile the BPF programs into dataplane/bpfobj
	@tools/install $(CLANG) llvm-19 libbpf-dev
	@go generate ./...

.PHONY: generated
generated: generate ## fail unless the committed BPF objects are current
	@git diff --exit-code --stat -- dataplane/bpfobj || { echo "dataplane/bpfobj is not current: run make generate and commit"; exit 1; }

.PHONY: clean
clean: ## remove what was built
	@rm -rf $(BIN)
