# PEER is a program around a client of another language (tests/interop/comers.py says how it is spoken to; there are such
# programs for Go and TypeScript in tests/interop/peers); without it, the official Python client.
# SERVER_COMMAND is another lock server's program.
.PHONY: interop
interop: all $(VENV)/ready  ### clients of other languages and our databases on the same locks: PEER='program ...'
	@BUILD=$(BUILD) PGSERVER=$(PGSERVER) PG_CONFIG='$(if $(PG_HEADERS),$(PG_CONFIG_PATH))' PYTHONDONTWRITEBYTECODE=1 \
		$(VENV)/bin/python -m pytest tests/interop/test_peers.py -c tests/pytest.ini --rootdir tests \
		-p no:cacheprovider -q
