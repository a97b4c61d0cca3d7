# Random sequences of SQL calls against a model, in both databases.
.PHONY: random
random: all $(VENV)/ready  ## random SQL calls against a model, SECONDS=30 for each database; SEED=
	@for database in sqlite $(if $(PG_HEADERS),postgres); do \
		BUILD=$(BUILD) $(VENV)/bin/python tests/random/run --database $$database --seconds $(SECONDS) \
			$(if $(SEED),--seed $(SEED)) || exit 1; done
