"""Where the built things are. Every one can be moved by an environment variable."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("BUILD", ROOT / "build"))
if not BUILD.is_absolute():
    BUILD = ROOT / BUILD

DFLOCKD_LOCAL = pathlib.Path(os.environ.get("DFLOCKD_LOCAL", BUILD / "dflockd-local"))
SQLITE_EXTENSION = pathlib.Path(os.environ.get("DFLOCKD_SQLITE", BUILD / "dflockd.so"))
CORE_LIBRARY = pathlib.Path(os.environ.get("DFLOCKD_CORE", BUILD / "libdflcore.a"))
