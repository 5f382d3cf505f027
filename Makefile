# Two commands on a fresh Debian with python3 and make, and nothing done before: `make demo` and `make test`.
# Everything else: `make help`. What is installed goes into .venv; Debian packages only where this user may.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready-$(subst /,_,$(PYTHON))
ARGS   ?=
# Tests mostly wait for what they have started: with few cores, more at once than cores.
AT_ONCE := $(shell n=$$(nproc); [ $$n -gt 4 ] && echo $$n || echo 4)

PYTHON_PATHS := mailbalancer tests

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench clean tools
.DELETE_ON_ERROR:

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS='	' read -r name text; do \
		printf '  make %-8s %s\n' "$$name" "$$text"; done

demo: $(READY)  ## mail servers and a balancer in front of them, to try by hand (ARGS="--seconds 60" ends it)
	@$(BIN)/mailbalancer demo $(ARGS)

test: $(READY) tools  ## every test, also those that drive programs from Debian (ARGS="tests/balance -k ramp")
	@$(BIN)/python -m pytest -n $(AT_ONCE) --dist loadgroup $(ARGS)

check: $(READY)  ## style, types and the direction of imports
	$(BIN)/ruff check $(PYTHON_PATHS)
	$(BIN)/ruff format --check $(PYTHON_PATHS)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## put the code into shape
	$(BIN)/ruff check --fix --select I $(PYTHON_PATHS)
	$(BIN)/ruff format $(PYTHON_PATHS)

bench: $(READY)  ## measure against HAProxy and nginx on this machine, in under five minutes
	@sh tests/support/install-packages.sh haproxy nginx libnginx-mod-stream libnginx-mod-mail wrk postfix nftables iproute2
	@$(BIN)/python -m tests.bench $(ARGS)

clean:  ## remove everything that was made here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What the tests drive. Missing packages are installed when this user may; tests say themselves what they lack.
tools: $(READY)
	@sh tests/support/install-packages.sh swaks telnet curl openssl postfix dovecot-imapd dovecot-pop3d dovecot-submissiond nginx apache2 chromium prometheus procps systemd nftables iproute2 tcpdump
	@sh tests/support/make-sslyze.sh $(VENV)

# pip, the pinned packages, and this project as an editable install; again whenever the pins or pyproject.toml change.
$(READY): constraints.txt pyproject.toml tests/support/make-venv.sh
	@PYTHON='$(PYTHON)' sh tests/support/make-venv.sh $(VENV)
	@touch $@
