"""What the Python test suites share: processes, raw protocol, certificates, a faulty network, SQL shells.

Nothing here knows how the engine or the server works inside; it knows the protocol, the command
lines and the printed words only.
"""
