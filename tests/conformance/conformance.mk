# SERVER=host:port judges a running server, SERVER_COMMAND=program one that every test starts for itself (then with flags,
# signals and restarts too); without either, the bundled server and dflockd's first one. SERVER_DIALECT names the row of
# tests/conformance/dialects.py, which is otherwise found out by asking.
.PHONY: conformance
conformance: all $(VENV)/ready  ### every line of the protocol, judged: SERVER=host:port or SERVER_COMMAND=program
	@BUILD=$(BUILD) PYTHONDONTWRITEBYTECODE=1 $(VENV)/bin/python -m pytest tests/conformance -c tests/pytest.ini \
		--rootdir tests -p no:cacheprovider -q
