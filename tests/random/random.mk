# Random sequences of SQL calls against a model. `tests/run --suites random` plants bugs and sees them found.
DATABASE ?= sqlite $(if $(PG_HEADERS),postgres)
.PHONY: random
random: all $(VENV)/ready  ### random SQL calls against a model, SECONDS=30 for each database; DATABASE=sqlite|postgres SEED=
	@for database in $(DATABASE); do \
		BUILD=$(BUILD) $(VENV)/bin/python tests/random/run --database $$database --seconds $(SECONDS) \
			$(if $(SEED),--seed $(SEED)) || exit 1; done
